import type { ModelFamily } from './family.ts';
import { llama } from './llama.ts';

/** Qwen 1.5 to 2.5: Llama with biases on q, k and v and none on o. */
export const qwen2: ModelFamily = {
  ...llama,
  attentionBias: () => ({ qkv: true, output: false }),
  mlpBias: () => false,
};
