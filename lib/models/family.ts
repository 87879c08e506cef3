/** What one architecture calls its tensors; the only place where checkpoint spellings occur. Adding a model is one such record. */
import type { ModelConfig } from '../checkpoint/config.ts';

/** Prefixes without `.weight` or `.bias`. */
export interface LayerNames {
  readonly attentionNorm: string;
  readonly mlpNorm: string;
  readonly query: string;
  readonly key: string;
  readonly value: string;
  readonly output: string;
  /** RMSNorm on each query and key head before it rotates; null where there is none. */
  readonly queryNorm: string | null;
  readonly keyNorm: string | null;
  readonly gate: string;
  readonly up: string;
  readonly down: string;
}

export interface ModelFamily {
  readonly embedding: string;
  readonly finalNorm: string;
  /** The output head; the embedding itself where the two are tied. */
  readonly head: (config: ModelConfig) => string;
  readonly layer: (layer: number) => LayerNames;
  readonly attentionBias: (config: ModelConfig) => { readonly qkv: boolean; readonly output: boolean };
  readonly mlpBias: (config: ModelConfig) => boolean;
}
