/** Shapes of models by name: what one layer needs, and the layers and vocabulary that make a whole of it. */

export interface Shape {
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly ffn: number;
  readonly vocab: number;
}

const shape = (hidden: number, layers: number, heads: number, kvHeads: number, headDim: number, ffn: number, vocab: number): Shape =>
  ({ hidden, layers, heads, kvHeads, headDim, ffn, vocab });

/** `tiny` is for the tests: every case runs on it in seconds. */
export const presets = {
  tiny: shape(48, 2, 6, 2, 16, 80, 97),
  'smollm2-135m': shape(576, 30, 9, 3, 64, 1536, 49152),
  'smollm2-1.7b': shape(2048, 24, 32, 32, 64, 8192, 49152),
  'llama-2-7b': shape(4096, 32, 32, 32, 128, 11008, 32000),
  'llama-3-8b': shape(4096, 32, 32, 8, 128, 14336, 128256),
  'qwen2.5-7b': shape(3584, 28, 28, 4, 128, 18944, 152064),
} as const satisfies Record<string, Shape>;
export type PresetName = keyof typeof presets;

export const isPresetName = (name: string): name is PresetName => Object.hasOwn(presets, name);

/** What a converted layer of a shape keeps: n rotating components and a latent of `rank`, in groups. */
export interface Latent {
  readonly components: number;
  readonly rank: number;
  readonly latentGroups: number;
}
