import { bank } from './bank.ts';
import { high } from './high.ts';
import { low } from './low.ts';
import { roRope } from './ro-rope.ts';
import type { PlanStrategy } from './strategy.ts';
import { twoNorm, twoNormSum } from './two-norm.ts';
import { uniform } from './uniform.ts';

/** Every way to choose what keeps rotating, by name. */
export const planStrategies = { high, low, uniform, '2-norm': twoNorm, '2-norm-sum': twoNormSum, 'ro-rope': roRope, bank } as const satisfies Record<string, PlanStrategy>;
export type PlanStrategyName = keyof typeof planStrategies;

export const isPlanStrategyName = (name: string): name is PlanStrategyName => Object.hasOwn(planStrategies, name);
