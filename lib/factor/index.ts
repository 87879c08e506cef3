import { joint } from './joint.ts';
import { split } from './split.ts';
import type { FactorStrategy } from './strategy.ts';
import { twoSided } from './two-sided.ts';

/** Every way to factorise keys and values, by name. */
export const factorStrategies = { joint, split, 'two-sided': twoSided } as const satisfies Record<string, FactorStrategy>;
export type FactorStrategyName = keyof typeof factorStrategies;

export const isFactorStrategyName = (name: string): name is FactorStrategyName => Object.hasOwn(factorStrategies, name);
