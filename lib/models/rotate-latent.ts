import type { Constant } from '../graph/subgraph.ts';
import type { Gemm } from '../linalg/gemm.ts';
import { matrix, sliceRows, toFloat64, type Matrix } from '../linalg/matrix.ts';
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
 * spread evenly over its channels, which is what a row of 8 or 4 bits with one step per token needs.
 * Layers with a norm on the latent are left alone: there the channels' own scales matter.
 * Source: Ashkboos et al. 2024 (QuaRot), with a random rotation instead of Hadamard's, so that any rank will do.
 */
export async function rotateLatents(model: Model, constants: ReadonlyMap<string, Constant>, { gemm, seed = 0 }: { readonly gemm: Gemm; readonly seed?: number }): Promise<ReadonlyMap<string, Constant>> {
  const rotated = new Map(constants);
  const rotations = new Map<number, Matrix>();
  for (const [layer, { rank, latentNormEps, latentGroups = 1 }] of (model.mla?.layers ?? []).entries()) {
    if (latentNormEps !== undefined) continue;
    // Groups turn alike, each in its own channels.
    const width = rank / latentGroups;
    const q = rotations.get(width) ?? await randomRotation(width, seed, gemm);
    rotations.set(width, q);
    const replace = async (name: string, turn: (a: Matrix) => Promise<Matrix>): Promise<void> => {
      const constant = constants.get(name);
      if (constant === undefined) return;
      const { data } = await model.checkpoint.read(name);
      const [rows = 1, cols = 1] = constant.shape;
      const turned = await turn(toFloat64(matrix(rows, cols, data)));
      rotated.set(name, { dtype: 'float32', shape: constant.shape, data: Float32Array.from(turned.data) });
    };
    await replace(`${mlaTensorName(layer, 'down')}.weight`, (down) => turnGroups(q, down, latentGroups, gemm));
    await replace(`${mlaTensorName(layer, 'down')}.bias`, (bias) => turnGroups(q, bias, latentGroups, gemm));
    for (const up of ['keyUp', 'valueUp'] as const) {
      await replace(`${mlaTensorName(layer, up)}.weight`, (weight) => gemm.multiply(weight, q, { transposeB: true }));
    }
  }
  return rotated;
}

/** Q times every group of rows. */
async function turnGroups(q: Matrix, rows: Matrix, groups: number, gemm: Gemm): Promise<Matrix> {
  const out = new Float64Array(rows.data.length);
  for (let group = 0; group < groups; group++) {
    const turned = await gemm.multiply(q, sliceRows(rows, group * q.rows, (group + 1) * q.rows));
    out.set(turned.data, group * turned.data.length);
  }
  return matrix(rows.rows, rows.cols, out);
}
