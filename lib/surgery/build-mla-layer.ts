import { mlaAttentionLayer, type HostTensor, type LatentForm, type MlaRows, type Segmentation, type SplitHeadNorm } from '../../kernels/index.ts';
import { record, type Recorder, type Value } from '../graph/record.ts';
import type { Port, Subgraph } from '../graph/subgraph.ts';
import { lazily } from '../lazily.ts';
import type { AttentionLayer, Projection } from './attention-layer.ts';
import { keyRopeRows, queryElements, queryNopeRows, queryRopeRows, takeProjection, takeRows } from './complex-rows.ts';
import type { KvFactors } from './joint-kv-svd.ts';
import { splitHeadNorm } from './head-norm.ts';
import { headNormValues, layerInputs, projectionValues, recordAngles } from './layer-graph.ts';
import { keepsOwnPairs, type RopePlan } from './rope-plan.ts';

/** A layer of multi-head latent attention: every weight, and what a loader needs beside them. */
export interface MlaLayer {
  readonly layer: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly valueWidth: number;
  /** Width of the latent. */
  readonly rank: number;
  /** Groups of KV heads with a latent of their own, rank / latentGroups wide each. */
  readonly latentGroups: number;
  /** Radians per position of each rotating component; the rope key has twice as many elements. */
  readonly frequencies: readonly number[];
  /** Width per head of the remainder that does not rotate. */
  readonly nopeWidth: number;
  /** Factor on the scores before softmax: the source's. */
  readonly scale: number;
  readonly window: number | null;
  readonly maxPositions: number;
  /** Null where nothing of that part is left. */
  readonly weights: {
    /** [h 2n, d], per head [n real | n imaginary]; [h 2n / g, d] where heads see the components of their own KV head only. */
    readonly queryRope: Projection | null;
    readonly queryNope: Projection | null; // [h nope, d]
    readonly keyRope: Projection | null; // [2n, d]
    readonly down: Projection; // [R, d]
    readonly keyUp: Projection | null; // [g nope, R / latentGroups]
    readonly valueUp: Projection; // [g v, R / latentGroups]
    readonly output: Projection; // [d, h v]
  };
  /** RMSNorm per head in the order of the split weights; null where the source has none. */
  readonly headNorm: SplitHeadNorm<HostTensor<'float32'>> | null;
  /** Elements of one cache row [rope key 2n | latent R], and one per KV head where heads have norms. */
  readonly cacheElementsPerToken: number;
  /**
   * Expanded form. hidden [b, s, d], positions [s], past_positions [p], past_rope [b, p, 2n], past_latent [b, p, R] ->
   * output [b, s, d], rope [b, s, 2n], latent [b, s, R] (the new rows); and past_key_scale [b, p, g] -> key_scale [b, s, g]
   * where heads have norms.
   */
  readonly subgraph: Subgraph;
}

/**
 * Assembles a layer from its plan and factors. Exact where they are: with all pairs kept and full rank it equals the
 * source layer. Biases stay exact too: a key bias follows the rotating components; its part in the remainder adds the
 * same to all scores of a query and cancels in softmax; a value bias passes softmax unchanged (weights sum to 1) and
 * becomes W_o b_v in the output bias.
 * Errors: plan, factors and layer must belong together. Source: Ji et al. 2025 (MHA2MLA), section 3.
 */
export function buildMlaLayer(attention: AttentionLayer, plan: RopePlan, factors: KvFactors): MlaLayer {
  const { layer, hidden, heads, kvHeads, headDim, scale, window, maxPositions } = attention;
  for (const [name, part] of [['plan', plan], ['factors', factors]] as const) {
    if (part.layer !== layer) throw new RangeError(`buildMlaLayer: ${name} must be that of layer ${layer}, got layer ${part.layer}`);
  }
  const { rank, latentGroups, nopeWidth } = factors;
  if (plan.nopeElements.some((elements) => elements.length !== nopeWidth)) {
    throw new RangeError(`buildMlaLayer: factors must rebuild ${plan.nopeElements[0]?.length} elements per head for layer ${layer}, got ${nopeWidth}`);
  }
  const weights: MlaLayer['weights'] = {
    queryRope: plan.components.length === 0 ? null : takeProjection(queryRopeRows(attention, plan, keepsOwnPairs(attention, plan))),
    keyRope: plan.components.length === 0 ? null : takeProjection(keyRopeRows(attention, plan)),
    queryNope: nopeWidth === 0 ? null : takeProjection(takeRows(queryNopeRows(attention, plan), queryElements(plan, attention))),
    keyUp: nopeWidth === 0 ? null : { weight: factors.keyUp, bias: null },
    down: { weight: factors.down, bias: null },
    valueUp: { weight: factors.valueUp, bias: null },
    output: { weight: attention.output.weight, bias: outputBias(attention, factors.outputBias) },
  };
  const frequencies = plan.components.map(({ frequency }) => frequency);
  const parts = { layer, hidden, heads, kvHeads, valueWidth: headDim, rank, latentGroups, frequencies, nopeWidth, scale, window, maxPositions, weights, headNorm: splitHeadNorm(attention, plan) };
  const subgraph = lazily(() => mlaSubgraph(parts, 'expanded'));
  return { ...parts, cacheElementsPerToken: 2 * frequencies.length + rank + (parts.headNorm === null ? 0 : kvHeads), get subgraph() { return subgraph(); } };
}

/** b_o + W_o b_v, the value bias repeated for the query heads of its group, and what the factors add. */
function outputBias({ output, value, heads, kvHeads, headDim, hidden }: AttentionLayer, added: KvFactors['outputBias']): Projection['bias'] {
  if (value.bias === null && added === null) return output.bias;
  const width = heads * headDim;
  const perGroup = heads / kvHeads;
  const data = Float32Array.from({ length: hidden }, (_, row) => {
    let sum = (output.bias?.data[row] ?? 0) + (added?.data[row] ?? 0);
    for (let column = 0; value.bias !== null && column < width; column++) {
      const group = Math.floor(column / headDim / perGroup);
      sum += (output.weight.data[row * width + column] ?? NaN) * (value.bias.data[group * headDim + (column % headDim)] ?? NaN);
    }
    return sum;
  });
  return { dtype: 'float32', shape: [hidden], data };
}

/** What a layer's attention is recorded from; `maxPositions` sizes the table of angles. */
export type MlaParts = Omit<MlaLayer, 'subgraph' | 'cacheElementsPerToken'>;

/** Records a layer's attention, its weights as constants: x [b, s, d], past rows or null where none are cached. */
export function recordMlaLayer(
  g: Recorder, mla: MlaParts, x: Value, positions: Value, past: Partial<MlaRows<Value>> | null, segmentation: Segmentation<Value>, form: LatentForm,
): ReturnType<typeof mlaAttentionLayer<Value>> {
  const { heads, kvHeads, valueWidth, rank, latentGroups, frequencies, nopeWidth, scale, maxPositions, weights, headNorm } = mla;
  const ropeWidth = 2 * frequencies.length;
  const value = projectionValues(g);
  const optional = (name: string, projection: Projection | null) => (projection === null ? null : value(name, projection));
  return mlaAttentionLayer(
    g, x,
    {
      queryRope: optional('q_rope_proj', weights.queryRope), queryNope: optional('q_nope_proj', weights.queryNope), keyRope: optional('k_rope_proj', weights.keyRope),
      down: value('kv_down_proj', weights.down), output: value('o_proj', weights.output),
      up: {
        key: weights.keyUp === null ? null : g.reshape(value('k_up_proj', weights.keyUp).weight, [kvHeads, nopeWidth, rank / latentGroups]),
        value: g.reshape(value('v_up_proj', weights.valueUp).weight, [kvHeads, valueWidth, rank / latentGroups]),
        groups: latentGroups,
      },
      headNorm: headNormValues(g, headNorm),
    },
    ropeWidth === 0 ? null : recordAngles(g, frequencies, positions, maxPositions),
    past === null ? [] : [past], segmentation, { heads, kvHeads, ropeWidth, nopeWidth, valueWidth, scale }, form,
  );
}

/** A layer on its own as a subgraph, in either form. */
export function mlaSubgraph(mla: MlaParts, form: LatentForm): Subgraph {
  const { layer, hidden, kvHeads, rank, frequencies, window, headNorm } = mla;
  const ropeWidth = 2 * frequencies.length;
  const inputs = {
    ...layerInputs(hidden),
    past_positions: { dtype: 'int64', shape: ['p'] },
    past_rope: { dtype: 'float32', shape: ['b', 'p', ropeWidth] },
    past_latent: { dtype: 'float32', shape: ['b', 'p', rank] },
  } as const satisfies Record<string, Omit<Port, 'name'>>;
  return record(`mla-${form}-${layer}`, inputs, (g, x) => {
    const pastScale = headNorm === null ? null : g.input({ name: 'past_key_scale', dtype: 'float32', shape: ['b', 'p', kvHeads] });
    const mask = g.causalMask(x.positions, g.concat(0, [x.past_positions, x.positions]), window);
    const past = { rope: ropeWidth === 0 ? null : x.past_rope, latent: x.past_latent, keyScale: pastScale };
    const { output, rows } = recordMlaLayer(g, mla, x.hidden, x.positions, past, { join: true, masks: [mask] }, form);
    return { output, ...(rows.rope === null ? {} : { rope: rows.rope }), latent: rows.latent, ...(rows.keyScale == null ? {} : { key_scale: rows.keyScale }) };
  });
}
