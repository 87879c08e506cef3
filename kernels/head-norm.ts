import type { Emit } from './emit.ts';
import { rmsNorm } from './rms-norm.ts';

/** What happens to query and key heads between their projections and RoPE: [b, s, heads, k] -> the same shape. */
export interface HeadMaps<V> {
  readonly query: (heads: V) => V;
  readonly key: (heads: V) => V;
}

/** Llama, Mistral, Qwen2: nothing. */
export const asTheyAre = { query: <V>(heads: V): V => heads, key: <V>(heads: V): V => heads };

/** Qwen3: RMSNorm of every head by itself, all heads with the same weight [k]; null leaves that side as it is. */
export function headNorms<V>(g: Emit<V>, weights: { readonly query: V | null; readonly key: V | null }, eps: number): HeadMaps<V> {
  const normed = (weight: V | null) => (heads: V): V => (weight === null ? heads : rmsNorm(g, heads, weight, eps));
  return { query: normed(weights.query), key: normed(weights.key) };
}
