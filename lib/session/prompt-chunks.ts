/** Tokens of a prompt that go through the graph at once. */

/** Longest first; the last is for any context. */
const CHUNKS = [256, 192, 128, 96, 64] as const;
/** Queries times keys of one head: scores grow with both, and would be what takes most memory behind a long context. */
const SCORES = 2 ** 19;

/** 256 tokens, and fewer where one head's scores would be more than 2^19 numbers: 128 behind 3,000 tokens, 64 behind 8,000. At least 64. */
export const chunkBehind = (cached: number): number => CHUNKS.find((chunk) => chunk * (cached + chunk) <= SCORES) ?? 64;
