/** Ways to hold the weights of a model that runs, by name: what `--weights` and SessionOptions.passes take. */
import type { Pass } from './pass.ts';
import { quantiseDynamic } from './quantise-dynamic.ts';
import { quantiseWeights } from './quantise-weights.ts';
import { isRotatedGain, rotateResidual } from './rotate-residual.ts';

export interface WeightFormat {
  /** One line for a list of options. */
  readonly summary: string;
  readonly passes: readonly Pass[];
}

/** The formats by name, each with the passes that bring weights into it. */
export const weightFormats = {
  f32: { summary: 'as the model has them', passes: [] },
  int8: { summary: '8 bits, a scale per 32 weights', passes: [(subgraph) => quantiseWeights(subgraph, { bits: 8, blockSize: 32 })] },
  int4: { summary: '4 bits, a scale and zero point per 64 weights', passes: [(subgraph) => quantiseWeights(subgraph, { bits: 4 })] },
  // Processors without AVX-512 take time for zero points, those with it for short blocks (docs/log.md).
  'int4-symmetric': {
    summary: '4 bits, a scale per 32 weights, as in Q4_0 of llama.cpp',
    passes: [(subgraph) => quantiseWeights(subgraph, { bits: 4, blockSize: 32, rounding: 'nearest-symmetric' })],
  },
  // What bears 4 bits without calibration: see docs/log.md, "Four bits", for what each part of a model loses by them.
  'int4-mixed': {
    summary: '4 bits per 32 weights for what goes into the MLP, 8 bits as in int8 for the rest',
    passes: [(subgraph) => quantiseWeights(subgraph, { bits: 8, blockSize: 32, bitsOf: ({ name }) => (/\.mlp\.(gate|up)_proj\./.test(name) ? 4 : 8) })],
  },
  'int8-dynamic': {
    summary: '8 bits, a scale per output, inputs rounded to 8 bits per token; a tied embedding as in int8',
    passes: [
      (subgraph) => rotateResidual(subgraph),
      (subgraph) => quantiseDynamic(subgraph, { select: ({ name }) => !isRotatedGain(name) }),
      (subgraph) => quantiseWeights(subgraph, { bits: 8, bitsOf: ({ name }) => (isRotatedGain(name) ? null : 8) }),
    ],
  },
} as const satisfies Readonly<Record<string, WeightFormat>>;

export type WeightFormatName = keyof typeof weightFormats;

/** The passes that bring weights into a format. */
export const weightPasses = (format: WeightFormatName): readonly Pass[] => weightFormats[format].passes;
