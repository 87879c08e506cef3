import type { Constant } from '../graph/subgraph.ts';
import type { Gemm } from '../linalg/gemm.ts';
import { matrix, toFloat64, type Matrix } from '../linalg/matrix.ts';
import { orthonormalise } from '../linalg/orthonormalise.ts';
import { normals, seededRandom } from '../random.ts';
import { mlaTensorName } from './mla-config.ts';
import type { Model } from './model.ts';

/** A random orthogonal matrix of the given size, the same for the same seed. */
export async function randomRotation(size: number, seed: number, gemm: Gemm): Promise<Matrix> {
  const random = seededRandom(seed);
  return orthonormalise(matrix(size, size, normals(random, size * size)), { gemm, random });
}

/**
 * The same model with every latent rotated: down' = Q down, up' = up Q^T. No output changes, but the energy of a row is
 * spread evenly over its channels, which is what a 4-bit row with one step per token needs.
 * Layers with a norm on the latent are left alone: there the channels' own scales matter.
 * Source: Ashkboos et al. 2024 (QuaRot), with a random rotation instead of Hadamard's, so that any rank will do.
 */
export async function rotateLatents(model: Model, constants: ReadonlyMap<string, Constant>, { gemm, seed = 0 }: { readonly gemm: Gemm; readonly seed?: number }): Promise<ReadonlyMap<string, Constant>> {
  const rotated = new Map(constants);
  const rotations = new Map<number, Matrix>();
  for (const [layer, { rank, latentNormEps }] of (model.mla?.layers ?? []).entries()) {
    if (latentNormEps !== undefined) continue;
    const q = rotations.get(rank) ?? await randomRotation(rank, seed, gemm);
    rotations.set(rank, q);
    const replace = async (name: string, turn: (a: Matrix) => Promise<Matrix>): Promise<void> => {
      const constant = constants.get(name);
      if (constant === undefined) return;
      const { data } = await model.checkpoint.read(name);
      const [rows = 1, cols = 1] = constant.shape;
      const turned = await turn(toFloat64(matrix(rows, cols, data)));
      rotated.set(name, { dtype: 'float32', shape: constant.shape, data: Float32Array.from(turned.data) });
    };
    await replace(`${mlaTensorName(layer, 'down')}.weight`, (down) => gemm.multiply(q, down));
    await replace(`${mlaTensorName(layer, 'down')}.bias`, (bias) => gemm.multiply(q, bias));
    for (const up of ['keyUp', 'valueUp'] as const) {
      await replace(`${mlaTensorName(layer, up)}.weight`, (weight) => gemm.multiply(weight, q, { transposeB: true }));
    }
  }
  return rotated;
}
