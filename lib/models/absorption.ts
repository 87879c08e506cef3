/** Which layers decode with their up-projections multiplied into the projections around them, and what each way costs. */
import type { ModelConfig } from '../checkpoint/config.ts';
import type { MlaConfig, MlaLayerConfig } from './mla-config.ts';

/** How a layer decodes: up-projections as products of their own, or multiplied into queries and output beforehand. */
export type Absorption = 'separate' | 'merged';

/** What one token reads of a layer's attention weights. */
export interface AbsorptionCost {
  readonly weights: number;
  /** Operators that the other way does without. */
  readonly extraNodes: number;
}

export interface LayerAbsorption {
  readonly chosen: Absorption;
  readonly separate: AbsorptionCost;
  /** Null where a norm stands between the factors, or latents are grouped: these layers cannot be merged. */
  readonly merged: AbsorptionCost | null;
}

/**
 * A small operator costs as much time as reading so many bytes of weights: 2.2 us each, at 25 GB/s (measured, docs/log.md:
 * sixteen of them as much as 0.86 MB). Weights of 4 bytes move the balance towards fewer weights.
 */
const NODE_BYTES = 55_000;
/** Per layer: the products by both up-projections, scales, and what moves their operands and the row into place. */
const SEPARATE_NODES = 16;

const isMergeable = ({ latentNormEps, queryRank, headNorm, latentGroups = 1 }: MlaLayerConfig): boolean =>
  latentNormEps === undefined && queryRank === undefined && headNorm === undefined && latentGroups === 1;

/** The rule: fewer bytes per token, a node counted as bytes. `bytesPerWeight`: 4, or less where weights are quantised. */
export function layerAbsorption({ heads, kvHeads, headDim, hidden }: ModelConfig, layer: MlaLayerConfig, bytesPerWeight: number): LayerAbsorption {
  const { rank, nopeWidth, frequencies, latentGroups = 1 } = layer, rope = 2 * frequencies.length;
  const shared = (heads + 1) * rope * hidden + rank * hidden;
  const separate = {
    weights: shared + heads * (nopeWidth + headDim) * hidden + (kvHeads * (nopeWidth + headDim) * rank) / latentGroups,
    extraNodes: SEPARATE_NODES,
  };
  const merged = isMergeable(layer) ? { weights: shared + heads * ((nopeWidth === 0 ? 0 : rank) + rank) * hidden, extraNodes: 0 } : null;
  const bytes = ({ weights, extraNodes }: AbsorptionCost): number => weights * bytesPerWeight + extraNodes * NODE_BYTES;
  return { chosen: merged !== null && bytes(merged) <= bytes(separate) ? 'merged' : 'separate', separate, merged };
}

/** `layerAbsorption` of every layer; `wanted` overrules the choice where a layer can be merged. */
export const absorptions = (config: ModelConfig, { layers }: Pick<MlaConfig, 'layers'>, bytesPerWeight: number, wanted: Absorption | 'auto' = 'auto'): LayerAbsorption[] =>
  layers.map((layer) => {
    const by = layerAbsorption(config, layer, bytesPerWeight);
    return wanted === 'auto' || by.merged === null ? by : { ...by, chosen: wanted };
  });
