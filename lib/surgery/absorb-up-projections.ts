import type { Subgraph } from '../graph/subgraph.ts';
import { lazily } from '../lazily.ts';
import { mlaSubgraph, type MlaLayer } from './build-mla-layer.ts';

/** The same layer whose subgraph reads the latent as it is cached: the form of decoding. */
export type AbsorbedLayer = Omit<MlaLayer, 'subgraph'> & {
  /** The ports of MlaLayer.subgraph; keys and values are never expanded. */
  readonly subgraph: Subgraph;
  readonly form: 'absorbed';
};

/**
 * Moves the key up-projection into the query (q keyUp^T against the latent) and the value up-projection behind the
 * softmax. Equal to the expanded form for any input; costs more FLOPs per score, but never expands the cache.
 * Source: DeepSeek-AI 2024 (V2), section 2.1.2; Ji et al. 2025, appendix B.
 */
export function absorbUpProjections(mlaLayer: MlaLayer): AbsorbedLayer {
  const { subgraph: _expanded, ...parts } = mlaLayer;
  const subgraph = lazily(() => mlaSubgraph(parts, 'absorbed'));
  return { ...parts, form: 'absorbed', get subgraph() { return subgraph(); } };
}
