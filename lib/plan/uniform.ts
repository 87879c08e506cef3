import { byIndex } from './strategy.ts';

/** Evenly spaced frequencies: pair floor(i all / pairs). Needs no data and suits every layer. */
export const uniform = byIndex('Ji et al. 2025 (MHA2MLA), section 3.1', (i, pairs, all) => Math.floor((i * all) / pairs));
