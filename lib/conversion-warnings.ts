/** What experience says about a conversion before it starts. */
import type { ResolvedBudget } from './budget.ts';
import type { ModelConfig } from './checkpoint/config.ts';
import type { Calibration } from './statistics/calibration.ts';

/** Query heads per KV head from which one rope key has many to serve. */
const MANY_QUERIES = 6;

/**
 * Warnings, each with its figures: few rotating elements for many query heads per KV head (Qwen2.5-0.5B, 7 per KV head,
 * lost far more than others with 8 pairs: MHA2MLA issue 13), key biases, and text shorter than the model's context.
 */
export function conversionWarnings(
  { heads, kvHeads, headDim, maxPositions, attentionBias }: Pick<ModelConfig, 'heads' | 'kvHeads' | 'headDim' | 'maxPositions' | 'attentionBias'>,
  { pairs, components }: Pick<ResolvedBudget, 'pairs' | 'components'>, calibration: Pick<Calibration, 'window' | 'identity'> | null,
): string[] {
  const ropeElements = pairs === null ? 2 * (components ?? 0) : 2 * pairs * kvHeads;
  const perGroup = heads / kvHeads;
  return [
    ...(perGroup >= MANY_QUERIES && ropeElements < headDim
      ? [`${perGroup} query heads share each KV head and only ${ropeElements} elements rotate: more pairs or components are safer where so many heads share one key`] : []),
    ...(attentionBias ? ['keys have biases, which often carry much of their energy: they stay exact where they rotate, and cancel where they do not'] : []),
    ...(calibration !== null && calibration.window < maxPositions
      ? [`calibration windows have ${calibration.window} tokens and the model's context ${maxPositions}: rotations slower than the window count as none`] : []),
  ];
}
