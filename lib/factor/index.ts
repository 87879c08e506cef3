import { balancedPca } from './balanced-pca.ts';
import { care } from './care.ts';
import { joint } from './joint.ts';
import { keyOnly, none, valueOnly } from './one-sided.ts';
import { split } from './split.ts';
import type { FactorStrategy } from './strategy.ts';
import { twoSided } from './two-sided.ts';
import { whitened } from './whitened.ts';

/** Every way to factorise keys and values, by name. */
export const factorStrategies = {
  joint, split, none, 'key-only': keyOnly, 'value-only': valueOnly, whitened, care, 'balanced-pca': balancedPca, 'two-sided': twoSided,
} as const satisfies Record<string, FactorStrategy>;
export type FactorStrategyName = keyof typeof factorStrategies;

export const isFactorStrategyName = (name: string): name is FactorStrategyName => Object.hasOwn(factorStrategies, name);
