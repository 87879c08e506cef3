/** What a released checkpoint becomes: the same model in our own layout. */
import type { Checkpoint } from '../checkpoint/checkpoint.ts';

export interface OpenReleasedOptions {
  /** MHA2MLA's table of pair ranks or scores. Default: the file of the name that config.json gives, beside it. */
  readonly pairTable?: string;
}

export interface Released {
  /** Whose format it is, for people. */
  readonly format: string;
  /** config.json of the model in our layout, with its `mla` block. */
  readonly raw: Readonly<Record<string, unknown>>;
  /** Its tensors under our names. */
  readonly checkpoint: Checkpoint;
}

/** A format others release. Adding one is a file and a row in index.ts. */
export interface ReleasedFormat {
  readonly name: string;
  /** Whether a config.json and its tensors are of this format. */
  readonly recognises: (raw: Readonly<Record<string, unknown>>, checkpoint: Checkpoint) => boolean;
  readonly open: (raw: Readonly<Record<string, unknown>>, checkpoint: Checkpoint, directory: string, options: OpenReleasedOptions) => Promise<Released>;
}

/** `raw` without the named keys. */
export const without = (raw: Readonly<Record<string, unknown>>, ...keys: readonly string[]): Record<string, unknown> =>
  Object.fromEntries(Object.entries(raw).filter(([key]) => !keys.includes(key)));
