/** The RoPE part of a config.json, already checked key by key, to the record ropeFrequencies takes. */
import type { RopeConfig } from '../rope-frequencies.ts';

type Maybe<T> = T | null | undefined;

/** rope_scaling or rope_parameters. */
export interface RawRope {
  readonly rope_type?: Maybe<string>;
  readonly type?: Maybe<string>;
  readonly rope_theta?: Maybe<number>;
  readonly partial_rotary_factor?: Maybe<number>;
  readonly factor?: Maybe<number>;
  readonly low_freq_factor?: Maybe<number>;
  readonly high_freq_factor?: Maybe<number>;
  readonly original_max_position_embeddings?: Maybe<number>;
  readonly beta_fast?: Maybe<number>;
  readonly beta_slow?: Maybe<number>;
  readonly attention_factor?: Maybe<number>;
  readonly mscale?: Maybe<number>;
  readonly mscale_all_dim?: Maybe<number>;
  readonly truncate?: Maybe<boolean>;
}

/** Keys that some type reads, or that transformers writes for all; any other would change the rotation unseen. */
const knownKeys: Readonly<Record<keyof RawRope, true>> = {
  rope_type: true,
  type: true,
  rope_theta: true,
  partial_rotary_factor: true,
  factor: true,
  low_freq_factor: true,
  high_freq_factor: true,
  original_max_position_embeddings: true,
  beta_fast: true,
  beta_slow: true,
  attention_factor: true,
  mscale: true,
  mscale_all_dim: true,
  truncate: true,
};

/** The keys of config.json that bear on RoPE. */
export interface RawRopeConfig {
  readonly max_position_embeddings: number;
  readonly original_max_position_embeddings?: Maybe<number>;
  readonly rope_theta?: Maybe<number>;
  readonly partial_rotary_factor?: Maybe<number>;
  readonly rope_scaling?: Maybe<RawRope>;
  readonly rope_parameters?: Maybe<RawRope>;
}

/** Precedence as in transformers: a non-empty rope_scaling, else rope_parameters; rope_theta inside it, beside it, 10000. */
export function ropeConfig(config: RawRopeConfig, refuse: (rule: string) => Error): RopeConfig {
  const scaling = config.rope_scaling ?? {};
  const rope = Object.keys(scaling).length > 0 ? scaling : (config.rope_parameters ?? {});
  const type = rope.rope_type ?? rope.type ?? 'default';
  const base = rope.rope_theta ?? config.rope_theta ?? 10000;
  const rotated = rope.partial_rotary_factor ?? config.partial_rotary_factor ?? 1;
  if (rotated !== 1) throw refuse(`partial_rotary_factor must be 1, got ${rotated}`);
  const originalMaxPositions =
    config.original_max_position_embeddings ?? rope.original_max_position_embeddings ?? config.max_position_embeddings;
  const needed = (key: 'factor' | 'low_freq_factor' | 'high_freq_factor'): number => {
    const value = rope[key];
    if (value == null) throw refuse(`rope type ${type} needs ${key}`);
    return value;
  };
  const known: Readonly<Record<RopeConfig['type'], () => RopeConfig>> = {
    default: () => ({ type: 'default', base }),
    linear: () => ({ type: 'linear', base, factor: needed('factor') }),
    llama3: () => ({
      type: 'llama3',
      base,
      factor: needed('factor'),
      lowFreqFactor: needed('low_freq_factor'),
      highFreqFactor: needed('high_freq_factor'),
      originalMaxPositions,
    }),
    yarn: () => ({
      type: 'yarn',
      base,
      factor: rope.factor ?? config.max_position_embeddings / originalMaxPositions,
      originalMaxPositions,
      betaFast: rope.beta_fast || 32, // zero counts as absent, as in the reference
      betaSlow: rope.beta_slow || 1,
      attentionFactor: rope.attention_factor ?? null,
      mscale: rope.mscale ?? null,
      mscaleAllDim: rope.mscale_all_dim ?? null,
      truncate: rope.truncate ?? true,
    }),
  };
  const isKnown = (name: string): name is RopeConfig['type'] => Object.hasOwn(known, name);
  if (!isKnown(type)) throw refuse(`rope type must be one of ${Object.keys(known).join(', ')}, got ${type}`);
  const unknown = Object.keys(rope).find((key) => !Object.hasOwn(knownKeys, key));
  if (unknown !== undefined) throw refuse(`${unknown} is not a known parameter of rope type ${type}`);
  return known[type]();
}
