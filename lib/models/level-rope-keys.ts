import type { Constant, HostTensor } from '../graph/subgraph.ts';
import { constantValues } from '../passes/constant-weight.ts';
import { mlaTensorName } from './mla-config.ts';
import type { Model } from './model.ts';

/**
 * The same model with rope keys of even size: the two elements of every rotating component are divided by what the component
 * measures, and multiplied by what a latent's element does; queries the other way round. No score changes, but a row with one
 * step for all its elements is no longer as coarse as its largest component asks for, which in the frequency bank is ten times
 * as large as the others, and rope key and latent can share that step.
 * Sizes are estimated from weights, inputs being normed: sum over j of (w_j gamma_j)^2, and the bias squared. Layers with a norm
 * per head are left alone: there the size of a key is the norm's.
 */
export function levelRopeKeys(model: Model, constants: ReadonlyMap<string, Constant>): ReadonlyMap<string, Constant> {
  const levelled = new Map(constants);
  for (const [layer, { frequencies, headNorm }] of (model.mla?.layers ?? []).entries()) {
    const read = (name: string): HostTensor<'float32'> | null => {
      const constant = constants.get(name);
      return constant === undefined ? null : constantValues(constant);
    };
    const key = read(`${mlaTensorName(layer, 'keyRope')}.weight`), down = read(`${mlaTensorName(layer, 'down')}.weight`);
    if (key === null || down === null || headNorm !== undefined) continue;
    const components = frequencies.length, { kvHeads, heads } = model.config;
    const gains = read(`${model.family.layer(layer).attentionNorm}.weight`)?.data ?? null;
    const latent = Math.sqrt(mean(rowPowers(down, gains, null)));
    const powers = rowPowers(key, gains, read(`${mlaTensorName(layer, 'keyRope')}.bias`));
    const sizes = Float64Array.from({ length: components }, (_, c) => Math.sqrt(powers[c]! + powers[c + components]!) / (latent || 1) || 1);
    const scaleRows = (tensor: 'keyRope' | 'queryRope', factorOf: (row: number, rows: number) => number): void => {
      for (const name of ['weight', 'bias'].map((ending) => `${mlaTensorName(layer, tensor)}.${ending}`)) {
        const values = read(name);
        if (values !== null) levelled.set(name, rowsTimes(values, factorOf));
      }
    };
    scaleRows('keyRope', (row) => 1 / sizes[row % components]!);
    scaleRows('queryRope', (row, rows) => {
      // Heads hold all components, or those of their own KV head only (kernels/partial-rope.ts).
      const own = rows / heads / 2, head = Math.floor(row / (2 * own));
      return sizes[(row % own) + (own === components ? 0 : Math.floor(head / (heads / kvHeads)) * own)]!;
    });
  }
  return levelled;
}

/** Of every row of a matrix: the sum of (w_j gain_j)^2, and its bias squared. */
function rowPowers({ data, shape }: HostTensor<'float32'>, gains: Float32Array | null, bias: HostTensor<'float32'> | null): Float64Array {
  const rows = shape[0] ?? 1, width = data.length / rows, powers = Float64Array.from({ length: rows }, (_, row) => (bias === null ? 0 : bias.data[row]! ** 2));
  data.forEach((value, at) => { powers[Math.floor(at / width)]! += (value * (gains === null ? 1 : gains[at % width]!)) ** 2; });
  return powers;
}

const mean = (values: Float64Array): number => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Every row of a matrix or element of a vector times its factor. */
function rowsTimes({ data, shape }: HostTensor<'float32'>, factorOf: (row: number, rows: number) => number): HostTensor<'float32'> {
  const rows = shape[0] ?? 1, width = data.length / rows;
  return { dtype: 'float32', shape, data: data.map((value, at) => value * factorOf(Math.floor(at / width), rows)) };
}
