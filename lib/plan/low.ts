import { byIndex } from './strategy.ts';

/** The slowest frequencies: the last pairs. */
export const low = byIndex('Ji et al. 2025 (MHA2MLA), section 3.1', (i, pairs, all) => all - pairs + i);
