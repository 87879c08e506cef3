/** The passes that make a graph fast and leave its numbers, in the order in which they find each other's work. */
import { blockSingleRows } from './block-single-rows.ts';
import { fuseIntegerProducts } from './fuse-integer-products.ts';
import { fuseTransposedWeights } from './fuse-transposed-weights.ts';
import { mergeProjections } from './merge-projections.ts';
import { mergeRotations } from './merge-rotations.ts';
import { mergeReshapes } from './merge-reshapes.ts';
import { mergeRoundings } from './merge-roundings.ts';
import { mergeSplits } from './merge-splits.ts';
import type { Pass } from './pass.ts';
import { scoreByRows } from './score-by-rows.ts';
import { fuseSkipNorms } from './skip-norm.ts';
import { sumBlocksOnce } from './sum-blocks-once.ts';
import { viewBeforeSplit } from './view-before-split.ts';

/** Run behind all other passes on the graph of a decoding step, unless a session is given others. */
export const decodePasses: readonly Pass[] = [fuseSkipNorms, fuseTransposedWeights, mergeProjections, mergeSplits, mergeRotations, mergeRoundings, fuseIntegerProducts];

/** Longest context at which queries stay on the left of scores: what rows on the left save grows with them, the operators they cost do not. */
const QUERIES_LEFT_TOKENS = 768;

/** `decodePasses`, and for a long context `scoreByRows` and `blockSingleRows`, with what brings together the sums and views that they leave. */
export const decodePassesFor = (contextTokens: number): readonly Pass[] => (contextTokens <= QUERIES_LEFT_TOKENS ? decodePasses : [...decodePasses, scoreByRows, blockSingleRows, sumBlocksOnce, mergeReshapes, viewBeforeSplit]);
