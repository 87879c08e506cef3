import { byIndex } from './strategy.ts';

/** The fastest frequencies: pairs 0..pairs-1. */
export const high = byIndex('Ji et al. 2025 (MHA2MLA), section 3.1', (i) => i);
