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
 * The same model with every latent levelled and rotated: down' = Q S down, up' = up S^-1 Q^T. No output changes, but the
 * energy of a row is spread evenly over its channels, which is what a row of 8 or 4 bits with one step per token needs.
 * A rotated row's rounding error is the same in all channels, sum(s^2 var) of it, and channel c comes out of it with w / s^2 of
 * that, w the power of the up-projections that read it. So the least error has s^4 = w / var: channels that weigh more are
 * stored larger. Where the singular values are on the up side latents have even variance and s = w^(1/4); elsewhere s = 1.
 * Layers with a norm on the latent are left alone: there the channels' own scales matter.
 * Source: Ashkboos et al. 2024 (QuaRot), with a random rotation instead of Hadamard's, so that any rank will do.
 */
export async function rotateLatents(model: Model, constants: ReadonlyMap<string, Constant>, { gemm, seed = 0 }: { readonly gemm: Gemm; readonly seed?: number }): Promise<ReadonlyMap<string, Constant>> {
  const rotated = new Map(constants);
  const rotations = new Map<number, Matrix>();
  const isEven = model.mla?.factor.singularValues === 'up';
  for (const [layer, { rank, latentNormEps, latentGroups = 1 }] of (model.mla?.layers ?? []).entries()) {
    if (latentNormEps !== undefined) continue;
    // Groups turn alike, each in its own channels.
    const width = rank / latentGroups;
    const q = rotations.get(width) ?? await randomRotation(width, seed, gemm);
    rotations.set(width, q);
    const read = async (name: string): Promise<Matrix | null> => {
      const constant = constants.get(name);
      if (constant === undefined) return null;
      const { data } = await model.checkpoint.read(name);
      const [rows = 1, cols = 1] = constant.shape;
      return toFloat64(matrix(rows, cols, data));
    };
    const put = (name: string, { data }: Matrix): void => {
      const shape = constants.get(name)?.shape;
      if (shape !== undefined) rotated.set(name, { dtype: 'float32', shape, data: Float32Array.from(data) });
    };
    const ups = await Promise.all((['keyUp', 'valueUp'] as const).map(async (up) => ({ name: `${mlaTensorName(layer, up)}.weight`, weight: await read(`${mlaTensorName(layer, up)}.weight`) })));
    const levels = isEven ? latentLevels(ups.flatMap(({ weight }) => weight ?? []), latentGroups, width) : new Float64Array(rank).fill(1);
    for (const ending of ['weight', 'bias']) {
      const name = `${mlaTensorName(layer, 'down')}.${ending}`, down = await read(name);
      if (down === null) continue;
      const levelled = matrix(down.rows, down.cols, Float64Array.from(down.data, (value, at) => value * levels[Math.floor(at / down.cols)]!));
      put(name, await turnGroups(q, levelled, latentGroups, gemm));
    }
    for (const { name, weight } of ups) {
      if (weight === null) continue;
      const levelOf = channelOf(weight, latentGroups);
      const levelled = matrix(weight.rows, weight.cols, Float64Array.from(weight.data, (value, at) => value / levels[levelOf(at)]!));
      put(name, await gemm.multiply(levelled, q, { transposeB: true }));
    }
  }
  return rotated;
}

/** The channel of the latent that an element of an up-projection [heads * n, R / groups] multiplies: heads read their own group's. */
function channelOf({ rows, cols }: Matrix, groups: number): (at: number) => number {
  const perGroup = (rows * cols) / groups;
  return (at) => Math.floor(at / perGroup) * cols + (at % cols);
}

/** w^(1/4) of each channel, with w its part of the power of the key up-projection plus its part of that of the value up-projection. */
function latentLevels(ups: readonly Matrix[], groups: number, width: number): Float64Array {
  const importance = new Float64Array(groups * width);
  for (const up of ups) {
    const power = new Float64Array(groups * width), channel = channelOf(up, groups);
    up.data.forEach((value, at) => { power[channel(at)]! += value * value; });
    const whole = power.reduce((a, b) => a + b, 0);
    if (whole > 0) power.forEach((value, c) => { importance[c]! += (value * power.length) / whole; });
  }
  // A channel that nobody reads must not be divided by nothing.
  return importance.map((value) => Math.max(value, 1e-6) ** 0.25);
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
