/** The `mla` block of a converted model's config.json: what a loader must know and cannot read off tensor shapes. */
import { z } from 'zod';

const layerSchema = z.object({
  /** Width of the latent. */
  rank: z.int().positive(),
  /** Frequency of every rotating component, in radians per position; the rope key has twice as many elements. */
  frequencies: z.array(z.number()),
  /** Width per head of the remainder that does not rotate. */
  nopeWidth: z.int().nonnegative(),
});

const schema = z.object({
  version: z.literal(1),
  /** Factor on the scores before softmax: the source's, never recomputed from a new width. */
  scale: z.number().positive(),
  layers: z.array(layerSchema),
  plan: z.object({ strategy: z.string(), pairs: z.int().nonnegative() }),
  factor: z.object({ strategy: z.string(), rank: z.int().positive(), singularValues: z.string() }),
  /** What was converted, so that two artefacts can be told apart. */
  source: z.object({ name: z.string(), architecture: z.string(), fingerprint: z.string() }),
});

export type MlaLayerConfig = Readonly<z.infer<typeof layerSchema>>;
export type MlaConfig = Readonly<z.infer<typeof schema>>;

/** Cached elements per token of one layer: [rope key 2n | latent R]. */
export const rowElements = (layer: MlaLayerConfig): number => 2 * layer.frequencies.length + layer.rank;

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

/** Checks the `mla` block of config.json; null when there is none (an unconverted model). */
export function parseMlaConfig(raw: unknown, layers: number): MlaConfig | null {
  if (raw === undefined || raw === null) return null;
  const parsed = schema.safeParse(raw);
  if (!parsed.success) throw new TypeError(`parseMlaConfig: the mla block of config.json must be valid: ${z.prettifyError(parsed.error)}`);
  if (parsed.data.layers.length !== layers) throw new RangeError(`parseMlaConfig: mla.layers must have ${layers} entries, got ${parsed.data.layers.length}`);
  return parsed.data;
}
