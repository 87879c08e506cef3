/** The `mla` block of a converted model's config.json: what a loader must know and cannot read off tensor shapes. */
import { z } from 'zod';

const layerSchema = z.object({
  /** Width of the latent. */
  rank: z.int().positive(),
  /** Frequency of every rotating component, in radians per position; the rope key has twice as many elements. */
  frequencies: z.array(z.number()),
  /** Width per head of the remainder that does not rotate. */
  nopeWidth: z.int().nonnegative(),
  /** Groups of KV heads with a latent of their own, side by side in the row; absent where one latent serves all. */
  latentGroups: z.int().positive().optional(),
  /** Width that queries come through, where they are of low rank (DeepSeek); absent where they come from the hidden state. */
  queryRank: z.int().positive().optional(),
  /** Epsilon of the RMSNorm on the latent, and on the queries' low rank (DeepSeek); absent where there is none. */
  latentNormEps: z.number().positive().optional(),
  queryNormEps: z.number().positive().optional(),
  /** RMSNorm per head (Qwen3): its epsilon, and the KV heads that each cache one more number per token; absent where there is none. */
  headNorm: z.object({ eps: z.number().positive(), kvHeads: z.int().positive() }).optional(),
});

const schema = z.object({
  version: z.literal(1),
  /** Factor on the scores before softmax: the source's, never recomputed from a new width. */
  scale: z.number().positive(),
  layers: z.array(layerSchema),
  /** Pairs per KV head, or components of a layer: what the strategy counts in. */
  plan: z.object({ strategy: z.string(), pairs: z.int().nonnegative().optional(), components: z.int().positive().optional(), fold: z.int().positive().optional() }),
  factor: z.object({ strategy: z.string(), rank: z.int().positive(), singularValues: z.string() }),
  /** What was converted, so that two artefacts can be told apart. */
  source: z.object({ name: z.string(), architecture: z.string(), fingerprint: z.string() }),
});

export type MlaLayerConfig = Readonly<z.infer<typeof layerSchema>>;
export type MlaConfig = Readonly<z.infer<typeof schema>>;

/** Cached elements per token of one layer: [rope key 2n | latent R], and the scale of every KV head's keys where heads have norms. */
export const rowElements = ({ frequencies, rank, headNorm }: MlaLayerConfig): number => 2 * frequencies.length + rank + (headNorm?.kvHeads ?? 0);

/** Tensor names of a converted layer, below `model.layers.N.self_attn.`; see docs/artefact.md. */
export const mlaTensorNames = {
  queryRope: 'q_rope_proj',
  queryNope: 'q_nope_proj',
  keyRope: 'k_rope_proj',
  down: 'kv_down_proj',
  keyUp: 'k_up_proj',
  valueUp: 'v_up_proj',
  output: 'o_proj',
} as const;
export type MlaTensor = keyof typeof mlaTensorNames;

/** What only some layers have: a low rank of queries, and norms (weights without bias). */
export const mlaExtraNames = {
  queryDown: 'q_down_proj',
  queryDownNorm: 'q_down_norm', // [queryRank]
  latentNorm: 'kv_down_norm', // [rank]
  queryRopeNorm: 'q_rope_norm', // [2n]
  keyRopeNorm: 'k_rope_norm', // [2n]
  nopeNorm: 'nope_norm', // [kvHeads, nopeWidth]
} as const;
export type MlaExtra = keyof typeof mlaExtraNames;

/** Name of a converted layer's tensor without its ending. */
export const mlaTensorName = (layer: number, tensor: MlaTensor | MlaExtra): string =>
  `model.layers.${layer}.self_attn.${{ ...mlaTensorNames, ...mlaExtraNames }[tensor]}`;

/** Checks the `mla` block of config.json; null when there is none (an unconverted model). */
export function parseMlaConfig(raw: unknown, layers: number): MlaConfig | null {
  if (raw === undefined || raw === null) return null;
  const parsed = schema.safeParse(raw);
  if (!parsed.success) throw new TypeError(`parseMlaConfig: the mla block of config.json must be valid: ${z.prettifyError(parsed.error)}`);
  if (parsed.data.layers.length !== layers) throw new RangeError(`parseMlaConfig: mla.layers must have ${layers} entries, got ${parsed.data.layers.length}`);
  return parsed.data;
}
