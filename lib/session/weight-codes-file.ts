/**
 * Codes of a model's weights in a file: a .safetensors file with WEIGHT.codes, WEIGHT.scales and, where they differ, WEIGHT.zeros; its
 * metadata say of which model, in how many bits, and what rounding cost every weight.
 */
import { z } from 'zod';
import { openSafetensors, readTensor } from '../checkpoint/safetensors.ts';
import { tensorSources, writeSafetensors } from '../checkpoint/write-safetensors.ts';
import type { HostTensor } from '../graph/subgraph.ts';
import { conversionFingerprint } from '../models/fingerprint.ts';
import type { Model } from '../models/model.ts';
import { blocksOf, type BlockCodes } from '../passes/block-codes.ts';
import type { WeightCodes } from './calibrate-weights.ts';

const KIND = 'attention-surgery weight codes';
const VERSION = '1';

/** What tensors do not say, by weight. */
const weightSchema = z.object({ bits: z.union([z.literal(4), z.literal(8)]), inputs: z.int().positive(), blockSize: z.int().positive(), relativeError: z.number() });
const schema = z.record(z.string(), weightSchema);

const tensorNames = (weight: string) => ({ codes: `${weight}.codes`, scales: `${weight}.scales`, zeros: `${weight}.zeros` });

/** Writes codes to a file, which appears when it is whole. Errors: what writeFileAtomic reports. */
export async function saveWeightCodes(path: string, { model, codes }: WeightCodes, options: { readonly signal?: AbortSignal | undefined } = {}): Promise<void> {
  const tensors = [...codes].flatMap(([weight, { outputs, inputs, blockSize, codes: bytes, scales, zeros }]): [string, HostTensor][] => {
    const names = tensorNames(weight), blocks = blocksOf(inputs, blockSize);
    return [
      [names.codes, { dtype: 'uint8', shape: [outputs, blocks, bytes.length / (outputs * blocks)], data: bytes }],
      [names.scales, { dtype: 'float32', shape: [outputs, blocks], data: scales }],
      ...(zeros === null ? [] : [[names.zeros, { dtype: 'uint8', shape: [outputs, zeros.length / outputs], data: zeros }] satisfies [string, HostTensor]]),
    ];
  });
  const weights: z.infer<typeof schema> = Object.fromEntries([...codes].map(([weight, { bits, inputs, blockSize, relativeError }]) => [weight, { bits, inputs, blockSize, relativeError }]));
  await writeSafetensors(path, tensorSources(tensors), { ...options, metadata: { kind: KIND, version: VERSION, model, weights: JSON.stringify(weights) } });
}

/** Reads the codes of `model` back. Errors: a truncated file, one of another kind, version or model, tensors that do not fit; each named. */
export async function loadWeightCodes(path: string, model: Model): Promise<WeightCodes> {
  const file = await openSafetensors(path);
  const fingerprint = await conversionFingerprint(model);
  for (const [field, wanted] of Object.entries({ kind: KIND, version: VERSION, model: fingerprint })) {
    if (file.metadata[field] !== wanted) throw new TypeError(`loadWeightCodes: ${field} of ${path} must be ${wanted}, got ${file.metadata[field] ?? 'none'}`);
  }
  const parsed = schema.safeParse(parsedJson(file.metadata['weights']));
  if (!parsed.success) throw new TypeError(`loadWeightCodes: weights of ${path} must be described in its metadata: ${z.prettifyError(parsed.error)}`);
  const codes = new Map<string, BlockCodes>();
  for (const [weight, described] of Object.entries(parsed.data)) {
    const { bits, inputs, blockSize } = described, names = tensorNames(weight), blocks = blocksOf(inputs, blockSize);
    const outputs = file.tensors.get(names.codes)?.shape[0] ?? 0;
    const refuse = ({ dtype, shape }: HostTensor, name: string, wanted: string): never => { throw new TypeError(`loadWeightCodes: ${name} of ${path} must be ${wanted}, got ${dtype} [${shape}]`); };
    const bytes = async (name: string, columns: number): Promise<Uint8Array> => {
      const tensor = await readTensor(file, name);
      return tensor.dtype === 'uint8' && tensor.data.length === outputs * columns ? tensor.data : refuse(tensor, name, `uint8 with ${outputs * columns} elements`);
    };
    const floats = async (name: string, columns: number): Promise<Float32Array> => {
      const tensor = await readTensor(file, name);
      return tensor.dtype === 'float32' && tensor.data.length === outputs * columns ? tensor.data : refuse(tensor, name, `float32 with ${outputs * columns} elements`);
    };
    codes.set(weight, {
      ...described, outputs, codes: await bytes(names.codes, (blocks * blockSize * bits) / 8), scales: await floats(names.scales, blocks),
      zeros: file.tensors.has(names.zeros) ? await bytes(names.zeros, Math.ceil((blocks * bits) / 8)) : null,
    });
  }
  return { model: fingerprint, codes };
}

function parsedJson(text: string | undefined): unknown {
  try {
    return JSON.parse(text ?? '');
  } catch {
    return null;
  }
}
