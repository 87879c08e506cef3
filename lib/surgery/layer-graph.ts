/** What the subgraphs of one layer have in common: their inputs, their weights as values, their angles. */
import { ropeAngles, ropeTables, type Linear, type RopeAngles } from '../../kernels/index.ts';
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

export function recordAngles(g: Recorder, frequencies: readonly number[], positions: Value, maxPositions: number): RopeAngles<Value> {
  const { cos, sin } = ropeTables(frequencies, maxPositions);
  return ropeAngles(g, { cos: g.parameter('rope_table.cos', cos), sin: g.parameter('rope_table.sin', sin) }, positions);
}
