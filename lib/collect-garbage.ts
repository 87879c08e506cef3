/**
 * Asks for the collector, where Node runs with --expose-gc. Arrays of a hundred megabytes hardly count for it: left alone, it
 * comes long after they are garbage, and a process keeps twice what it needs.
 */
export const collectGarbage = (): void => { globalThis.gc?.(); };
