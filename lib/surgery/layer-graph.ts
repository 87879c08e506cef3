/** What the subgraphs of one layer have in common: their inputs, their weights as values, their angles. */
import { ropeAngles, ropeTables, type HostTensor, type Linear, type RopeAngles, type SplitHeadNorm } from '../../kernels/index.ts';
import type { Recorder, Value } from '../graph/record.ts';
import type { Port } from '../graph/subgraph.ts';
import type { Projection } from './attention-layer.ts';

type Declared = Omit<Port, 'name'>;

/** hidden [b, s, d] and positions [s]. */
export const layerInputs = (hidden: number): { readonly hidden: Declared; readonly positions: Declared } => ({
  hidden: { dtype: 'float32', shape: ['b', 's', hidden] },
  positions: { dtype: 'int64', shape: ['s'] },
});

/** Projections as values of a recording, under their tensor names. */
export const projectionValues = (g: Recorder) => (name: string, { weight, bias }: Projection): Linear<Value> => ({
  weight: g.parameter(`${name}.weight`, weight),
  bias: bias === null ? null : g.parameter(`${name}.bias`, bias),
});

/** A norm per head as values of a recording, under its tensor names. */
export function headNormValues(g: Recorder, norm: SplitHeadNorm<HostTensor> | null): SplitHeadNorm<Value> | null {
  if (norm === null) return null;
  const value = (name: string, weight: HostTensor | null): Value | null => (weight === null ? null : g.parameter(`${name}.weight`, weight));
  return { ...norm, queryRope: value('q_rope_norm', norm.queryRope), keyRope: value('k_rope_norm', norm.keyRope), nope: value('nope_norm', norm.nope) };
}

export function recordAngles(g: Recorder, frequencies: readonly number[], positions: Value, maxPositions: number): RopeAngles<Value> {
  const { cos, sin } = ropeTables(frequencies, maxPositions);
  return ropeAngles(g, { cos: g.parameter('rope_table.cos', cos), sin: g.parameter('rope_table.sin', sin) }, positions);
}
