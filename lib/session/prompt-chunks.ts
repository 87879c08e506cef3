/** Tokens of a prompt that go through the graph at once. */

/** Longest first; the last is for any context. */
const CHUNKS = [256, 192, 128, 96, 64] as const;
/** Scores in memory at once, at most: they grow with queries and keys, and would be what takes most memory behind a long context. */
const SCORES = 2 ** 22;
/** Scores of one head that are always allowed: a chunk for each of many heads at once would be too short for the linear layers. */
const SCORES_OF_HEAD = 2 ** 19;

/**
 * 256 tokens, and fewer behind a long context, so that the scores of `heads` query heads, which are in memory at once, are
 * at most 2^22 numbers, or those of one head 2^19. For 3 heads 192 behind 5,300 tokens, 128 behind 7,100, at least 64.
 */
export function chunkBehind(cached: number, heads: number): number {
  const scores = Math.max(SCORES_OF_HEAD, SCORES / heads);
  return CHUNKS.find((chunk) => chunk * (cached + chunk) <= scores) ?? 64;
}
