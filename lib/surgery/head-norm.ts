/** RMSNorm per query and key head (Qwen3) through surgery: what a plan may do, and how the norm's weights follow it. */
import type { HostTensor } from '../../kernels/emit.ts';
import type { SplitHeadNorm } from '../../kernels/index.ts';
import type { AttentionLayer } from './attention-layer.ts';
import { keepsOwnPairs, type PlanChoice, type RopePlan } from './rope-plan.ts';

/** Weights of the norms on each query and each key head before RoPE. */
export interface HeadNorm {
  readonly query: HostTensor<'float32'>; // [headDim]
  readonly key: HostTensor<'float32'>; // [headDim]
  readonly eps: number;
}

/**
 * Refuses what a norm per head does not allow: the norm is taken over one whole head, so every KV head must keep the same
 * number of its own pairs as they are, and its keys must have no bias (which would be scaled token by token).
 */
export function checkHeadNorm(caller: string, attention: AttentionLayer, strategy: string, { components, fold }: PlanChoice): void {
  if (attention.headNorm == null) return;
  const { layer } = attention;
  if (fold.length > 0 || !keepsOwnPairs(attention, { components })) {
    throw new RangeError(`${caller}: strategy must keep whole pairs of single heads (uniform, high, low, 2-norm) where heads have norms, got ${strategy} for layer ${layer}`);
  }
  if (attention.key.bias !== null) throw new RangeError(`${caller}: keys must have no bias where heads have norms, got one for layer ${layer}`);
}

/** The norm's weights in the order of a plan's rotating elements and of its remainder; null where heads have no norms. */
export function splitHeadNorm(attention: AttentionLayer, { components, nopeElements }: Pick<RopePlan, 'components' | 'nopeElements'>): SplitHeadNorm<HostTensor<'float32'>> | null {
  const { headNorm = null, headDim, kvHeads } = attention;
  if (headNorm === null) return null;
  const vector = (shape: readonly number[], elements: readonly number[], weight: (element: number) => number): HostTensor<'float32'> | null =>
    (elements.length === 0 ? null : { dtype: 'float32', shape, data: Float32Array.from(elements, weight) });
  const pairs = components.map(({ key }) => key[0]?.pair ?? NaN);
  const rotating = [...pairs, ...pairs.map((pair) => pair + headDim / 2)];
  const of = ({ data }: HostTensor<'float32'>) => (element: number): number => data[element] ?? NaN;
  const [query, key] = [of(headNorm.query), of(headNorm.key)];
  return {
    queryRope: vector([rotating.length], rotating, query), keyRope: vector([rotating.length], rotating, key),
    nope: vector([kvHeads, nopeElements[0]?.length ?? 0], nopeElements.flat(), (element) => query(element) * key(element)),
    eps: headNorm.eps, headWidth: headDim,
  };
}
