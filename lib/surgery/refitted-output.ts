/** Changes of a converted layer's output side: which values o_proj reads, and its weights. */
import type { HostTensor } from '../../kernels/emit.ts';
import { lazily } from '../lazily.ts';
import { mlaSubgraph, type MlaLayer, type MlaParts } from './build-mla-layer.ts';

/** The same layer with other parts, and the subgraph that belongs to them. */
function withParts({ subgraph: _replaced, cacheElementsPerToken, ...parts }: MlaLayer, changed: Partial<MlaParts>): MlaLayer {
  const next: MlaParts = { ...parts, ...changed };
  const subgraph = lazily(() => mlaSubgraph(next, 'expanded'));
  return { ...next, cacheElementsPerToken, get subgraph() { return subgraph(); } };
}

const float32 = (shape: readonly number[], data: Float64Array | Float32Array): HostTensor<'float32'> => ({ dtype: 'float32', shape, data: Float32Array.from(data) });

/**
 * The same function spelled so that o_proj reads the attended latent itself: values are the channels of the latent that the
 * head reads, and o_proj of head h becomes W_o,h valueUp_g. Gives a regression on o_proj all directions it may use, evenly
 * scaled. Where there are more channels than a value is wide nothing is gained, and the layer comes back as it is.
 */
export function valuesFromLatent(mla: MlaLayer): MlaLayer {
  const { heads, kvHeads, valueWidth, hidden, weights } = mla;
  const rank = mla.rank / mla.latentGroups; // channels that one head reads
  if (rank > valueWidth) return mla;
  const identity = new Float32Array(kvHeads * valueWidth * rank);
  for (let group = 0; group < kvHeads; group++) for (let r = 0; r < rank; r++) identity[(group * valueWidth + r) * rank + r] = 1;
  const [up, output] = [weights.valueUp.weight.data, weights.output.weight.data];
  const width = heads * valueWidth;
  const absorbed = new Float64Array(hidden * width);
  for (let row = 0; row < hidden; row++) {
    for (let head = 0; head < heads; head++) {
      const group = Math.floor(head / (heads / kvHeads));
      for (let v = 0; v < valueWidth; v++) {
        const weight = output[row * width + head * valueWidth + v]!;
        for (let r = 0; r < rank; r++) absorbed[row * width + head * valueWidth + r]! += weight * up[(group * valueWidth + v) * rank + r]!;
      }
    }
  }
  return withParts(mla, {
    weights: { ...weights, valueUp: { weight: float32([kvHeads * valueWidth, rank], identity), bias: null }, output: { weight: float32([hidden, width], absorbed), bias: weights.output.bias } },
  });
}

/** Adds a regression's solution [h v + 1, hidden] to o_proj: its last row belongs to the bias. */
export function replaceOutput(mla: MlaLayer, step: Float64Array): MlaLayer {
  const { heads, valueWidth, hidden, weights } = mla;
  const width = heads * valueWidth;
  const { weight, bias } = weights.output;
  const data = weight.data.map((x, at) => x + step[(at % width) * hidden + Math.floor(at / width)]!);
  const offset = Float64Array.from({ length: hidden }, (_, row) => (bias?.data[row] ?? 0) + step[width * hidden + row]!);
  return withParts(mla, { weights: { ...weights, output: { weight: { dtype: 'float32', shape: [hidden, width], data }, bias: float32([hidden], offset) } } });
}
