/** Statistics as a directory: statistics.json says whose they are, layer-N.safetensors holds one layer in float64. */
import { existsSync } from 'node:fs';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFileAtomic, type WriteOptions } from '../atomic-write.ts';
import { readSafetensors } from '../checkpoint/safetensors.ts';
import { tensorSources, writeSafetensors } from '../checkpoint/write-safetensors.ts';
import type { HostTensor } from '../graph/subgraph.ts';
import { matrix, type Matrix } from '../linalg/matrix.ts';
import type { LayerStatistics, StatisticsIdentity } from './layer-statistics.ts';

/** Statistics of all layers, read one layer at a time. */
export interface ModelStatistics {
  readonly identity: StatisticsIdentity;
  readonly layers: number;
  /** Errors: the layer has not been collected yet, or its file is damaged. */
  layer(layer: number): Promise<LayerStatistics>;
}

const VERSION = 1;
const manifestPath = (directory: string): string => join(directory, 'statistics.json');
const layerPath = (directory: string, layer: number): string => join(directory, `layer-${layer}.safetensors`);

export const hasStatistics = (directory: string): boolean => existsSync(manifestPath(directory));
export const hasLayer = (directory: string, layer: number): boolean => existsSync(layerPath(directory, layer));

/** Starts a directory for `layers` layers. */
export async function createStatistics(directory: string, identity: StatisticsIdentity, layers: number, options: WriteOptions = {}): Promise<void> {
  await mkdir(directory, { recursive: true });
  await writeFileAtomic(manifestPath(directory), `${JSON.stringify({ version: VERSION, layers, identity }, null, 1)}\n`, options);
}

const float64 = (shape: readonly number[], data: Float64Array): HostTensor<'float64'> => ({ dtype: 'float64', shape, data });
const asTensor = ({ rows, cols, data }: Matrix): HostTensor<'float64'> => float64([rows, cols], data);

export async function saveLayerStatistics(directory: string, statistics: LayerStatistics, options: WriteOptions = {}): Promise<void> {
  const { secondMoment, mean, queryPairNorms, keyPairNorms, queryMoments, keyMoment, distances, outputSensitivity, meanAttended } = statistics;
  const vector = (data: Float64Array): HostTensor<'float64'> => float64([data.length], data);
  await writeSafetensors(layerPath(directory, statistics.layer), tensorSources([
    ['secondMoment', asTensor(secondMoment)], ['mean', vector(mean)], ['queryPairNorms', vector(queryPairNorms)], ['keyPairNorms', vector(keyPairNorms)],
    ['queryMoments', asTensor(queryMoments)], ['keyMoment', asTensor(keyMoment)],
    ['distances', asTensor(distances)], ['outputSensitivity', vector(outputSensitivity)], ['meanAttended', asTensor(meanAttended)],
  ]), options);
}

/**
 * Opens saved statistics. Errors: no statistics there, or those of something else than `expected` (each field that is
 * given must agree; the first that does not is named).
 */
export async function openStatistics(directory: string, expected: Partial<StatisticsIdentity> = {}): Promise<ModelStatistics> {
  const { layers, identity } = await readManifest(directory);
  const kinds = { model: 'model', tokenizer: 'tokenizer', texts: 'calibration text', window: 'window length', tokens: 'number of tokens', attentionTokens: 'number of attention tokens' } as const;
  for (const [field, kind] of Object.entries(kinds) as [keyof typeof kinds, string][]) {
    const [want, got] = [expected[field], identity[field]];
    if (want !== undefined && JSON.stringify(want) !== JSON.stringify(got)) {
      throw new Error(`openStatistics: statistics in ${directory} must be of this ${kind}, ${JSON.stringify(want)}, got ${JSON.stringify(got)}`);
    }
  }
  return { identity, layers, layer: (layer) => readLayer(directory, layer, identity) };
}

async function readManifest(directory: string): Promise<{ layers: number; identity: StatisticsIdentity }> {
  const path = manifestPath(directory);
  const fail = (rule: string): never => { throw new TypeError(`openStatistics: ${path} must ${rule}`); };
  if (!existsSync(path)) fail('exist: no statistics were saved there');
  let raw: unknown;
  try {
    raw = JSON.parse(await readFile(path, 'utf8'));
  } catch (error) {
    throw new TypeError(`openStatistics: ${path} must be JSON: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
  const object = (value: unknown): Readonly<Record<string, unknown>> => (typeof value === 'object' && value !== null ? { ...value } : fail('hold objects'));
  const text = (value: unknown): string => (typeof value === 'string' ? value : fail('name things by text'));
  const count = (value: unknown): number => (typeof value === 'number' && Number.isInteger(value) && value > 0 ? value : fail('count in whole numbers above 0'));
  const { version, layers, identity } = object(raw);
  if (version !== VERSION) fail(`have version ${VERSION}, got ${String(version)}`);
  const parts = object(identity);
  const texts: readonly unknown[] = Array.isArray(parts.texts) ? parts.texts : fail('list its texts');
  return {
    layers: count(layers),
    identity: {
      model: text(parts.model), tokenizer: text(parts.tokenizer),
      texts: texts.map(object).map(({ name, sha256 }) => ({ name: text(name), sha256: text(sha256) })),
      tokens: count(parts.tokens), attentionTokens: count(parts.attentionTokens), window: count(parts.window),
    },
  };
}

async function readLayer(directory: string, layer: number, identity: StatisticsIdentity): Promise<LayerStatistics> {
  const path = layerPath(directory, layer);
  if (!existsSync(path)) throw new RangeError(`openStatistics: statistics of layer ${layer} must be in ${directory}, but collecting stopped before it`);
  const tensors = await readSafetensors(path);
  const read = (name: string): HostTensor<'float64'> => {
    const tensor = tensors.get(name);
    if (tensor?.dtype !== 'float64') throw new TypeError(`openStatistics: ${name} of ${path} must be float64, got ${tensor?.dtype ?? 'none'}`);
    return tensor;
  };
  const asMatrix = (name: string): Matrix => {
    const { shape, data } = read(name);
    return matrix(shape[0] ?? 0, shape[1] ?? 0, data);
  };
  return {
    layer, identity,
    secondMoment: asMatrix('secondMoment'), mean: read('mean').data, queryPairNorms: read('queryPairNorms').data, keyPairNorms: read('keyPairNorms').data,
    queryMoments: asMatrix('queryMoments'), keyMoment: asMatrix('keyMoment'), distances: asMatrix('distances'), outputSensitivity: read('outputSensitivity').data, meanAttended: asMatrix('meanAttended'),
  };
}
