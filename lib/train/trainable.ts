/** Which weights learn, by name; all others are frozen. */
import { attentionShapes } from '../models/decoder-weights.ts';
import { mlaTensorName, type MlaTensor } from '../models/mla-config.ts';
import type { Model } from '../models/model.ts';

export interface TrainableSet {
  readonly name: string;
  readonly what: string;
}

const rows = {
  all: { name: 'all', what: 'every weight' },
  layers: { name: 'layers', what: 'every weight but the embedding and the output head' },
  attention: { name: 'attention', what: 'the weights of the attention layers' },
  'attention-and-norms': { name: 'attention-and-norms', what: 'the attention layers and every norm' },
  factors: { name: 'factors', what: 'the down and up projections of the latent (converted models)' },
} as const;

export type TrainableName = keyof typeof rows;
/** Sets of weights by name. */
export const trainableSets: Readonly<Record<TrainableName, TrainableSet>> = rows;

const FACTORS: readonly MlaTensor[] = ['down', 'keyUp', 'valueUp'];

/** Names of the weights of `which` among `names`, in that order. Errors: `factors` of a model that has none. */
export function trainableNames(model: Model, names: Iterable<string>, which: TrainableName): string[] {
  const { config, family, mla } = model;
  if (which === 'factors' && mla === null) throw new TypeError(`trainableNames: factors are there in converted models only, got ${model.path}`);
  const layers = Array.from({ length: config.layers }, (_, layer) => layer);
  const attention = new Set(layers.flatMap((layer) => [...attentionShapes(model, layer).keys()]));
  const norms = new Set([family.finalNorm, ...layers.flatMap((layer) => [family.layer(layer).attentionNorm, family.layer(layer).mlpNorm])].map((name) => `${name}.weight`));
  const factors = new Set(layers.flatMap((layer) => FACTORS.flatMap((tensor) => ['weight', 'bias'].map((end) => `${mlaTensorName(layer, tensor)}.${end}`))));
  const ends = new Set([family.embedding, family.head(config)].map((name) => `${name}.weight`));
  const has: Readonly<Record<TrainableName, (name: string) => boolean>> = {
    all: () => true,
    layers: (name) => !ends.has(name),
    attention: (name) => attention.has(name),
    'attention-and-norms': (name) => attention.has(name) || norms.has(name),
    factors: (name) => factors.has(name),
  };
  return [...names].filter(has[which]);
}
