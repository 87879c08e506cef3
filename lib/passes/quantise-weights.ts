/** Weight quantisation as a pass: products with constant matrices become MatMulNBits over block-wise 4- or 8-bit codes. */
import { int } from '../graph/record.ts';
import type { Constant, Node, Subgraph } from '../graph/subgraph.ts';
import { addedBias, constantMatrix, constantProduct, constantValues, type ConstantProduct } from './constant-weight.ts';
import { blocksOf, quantiseBlocks, type Bits, type BlockCodes } from './block-codes.ts';
import type { BlockRoundingName } from './block-rounding.ts';
import { gatherCodes, type CodeNames } from './gather-codes.ts';
import { contrib, edgesOf, freshNames, intAttribute, operator, replaceNodes } from './pass.ts';
import { infoOf, naming, storedBytes, type QuantisedSubgraph, type QuantisedWeight, type WeightInfo } from './weight-report.ts';

/** Smaller matrices are not worth an error: their bytes and their time do not count. */
export const MIN_WEIGHTS = 4096;

export interface QuantiseOptions {
  /** 4 or 8. */
  readonly bits: Bits;
  /** Weights along K that share a scale, a power of two from 16 on; halved for a matrix that it would pad by more than an eighth. Default 64. */
  readonly blockSize?: number;
  /** Default 'nearest-asymmetric' for 4 bits, 'nearest-symmetric' for 8. */
  readonly rounding?: BlockRoundingName;
  /** Matrices with fewer weights stay as they are: their bytes and their time do not count. Default 4096. */
  readonly minWeights?: number;
  /** Bits of one matrix, or null to leave it alone. Default: `bits` for all. */
  readonly bitsOf?: (weight: WeightInfo) => Bits | null;
  /** E[x^2] of a matrix' inputs, [K], which the search then weighs errors with; null where it is not known. Default: all unknown. */
  readonly importanceOf?: (weight: WeightInfo) => ArrayLike<number> | null;
  /** Codes of a matrix that were made before (compensatedCodes), used as they are; null to make them here. Default: all are made here. */
  readonly codesOf?: (weight: WeightInfo, constant: Constant) => BlockCodes | null;
}

/** Codes as constants of the subgraph, and what they were made of. */
interface StoredCodes {
  readonly codes: BlockCodes;
  readonly names: CodeNames;
}

/**
 * Every MatMul, FusedMatMul or Gemm with a constant matrix (also behind Transpose or a widening Cast) becomes
 * com.microsoft MatMulNBits with accuracy_level 4: inputs are rounded to 8 bits per block while it computes. A constant
 * bias that is added right behind moves into the node. A table that Gather reads and a product too (tied embedding and
 * head) is read by GatherBlockQuantized from the very codes of the product; a table that only Gather reads stays.
 * Left alone: batches of matrices, and what `minWeights` or `bitsOf` exempt. Stored constants are read here.
 *
 * Errors: bits, block size or importance out of range; weights that are not finite, naming the matrix.
 */
export function quantiseWeights(subgraph: Subgraph, options: QuantiseOptions): QuantisedSubgraph {
  const { blockSize = 64 } = options;
  if (blockSize < 16 || !Number.isInteger(Math.log2(blockSize))) throw new RangeError(`quantiseWeights: blockSize must be a power of two from 16 on, got ${blockSize}`);
  checkBits(options.bits);
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph);
  const constants = new Map<string, Constant>(), replaced = new Map<Node, readonly Node[]>(), report: QuantisedWeight[] = [];
  const known = new Map<string, StoredCodes | null>();
  const codesOf = (product: ConstantProduct): StoredCodes | null => {
    const key = `${product.weight.name} ${product.weight.transposed}`;
    const had = known.get(key);
    if (had !== undefined) return had;
    const made = quantiseProduct(product, options, blockSize);
    known.set(key, made === null ? null : storeCodes(made.codes, product.weight.name, fresh, constants));
    if (made !== null) report.push(made.report);
    return known.get(key) ?? null;
  };
  for (const node of subgraph.nodes) {
    const product = constantProduct(edges, node);
    const stored = product === null ? null : codesOf(product);
    if (product === null || stored === null) continue;
    const added = product.bias === '' ? addedBias(edges, node, product.outputs) : null;
    const bias = added?.bias ?? product.bias;
    const output = added === null ? node.outputs[0]! : added.node.outputs[0]!;
    replaced.set(node, [productNode(product, stored, bias, output)]);
    if (added !== null) replaced.set(added.node, []);
  }
  for (const node of subgraph.nodes) {
    const table = operator(node) === 'Gather' && intAttribute(node, 'axis', 0) === 0 ? constantMatrix(edges, node.inputs[0] ?? '') : null;
    const shared = table === null || table.transposed ? null : known.get(`${table.name} true`) ?? null;
    if (shared === null) continue;
    const rank = subgraph.inputs.find((port) => port.name === node.inputs[1])?.shape.length ?? null;
    const added = gatherCodes(node, shared.codes, shared.names, rank, fresh);
    replaced.set(node, added.nodes);
    for (const [name, constant] of added.constants) constants.set(name, constant);
  }
  return { ...replaceNodes(subgraph, replaced, constants), quantised: report };
}

function checkBits(bits: number): asserts bits is Bits {
  if (bits !== 4 && bits !== 8) throw new RangeError(`quantiseWeights: bits must be 4 or 8, got ${bits}`);
}

/** The largest block size up to `wanted` that pads K by at most an eighth; null when even 16 pads more. */
export function fittingBlockSize(inputs: number, wanted: number): number | null {
  for (let size = wanted; size >= 16; size /= 2) if (blocksOf(inputs, size) * size <= inputs * 1.125) return size;
  return null;
}

function quantiseProduct(product: ConstantProduct, options: QuantiseOptions, wanted: number): { codes: BlockCodes; report: QuantisedWeight } | null {
  const { weight, inputs, outputs } = product, info = infoOf(product);
  const given = options.codesOf?.(info, weight.constant) ?? null;
  if (given !== null) {
    if (given.inputs !== inputs || given.outputs !== outputs) throw new RangeError(`quantiseWeights: codes of ${weight.name} must be [${outputs}, ${inputs}], got [${given.outputs}, ${given.inputs}]`);
    return { codes: given, report: reportOf(given, product) };
  }
  const bits = inputs * outputs < (options.minWeights ?? MIN_WEIGHTS) ? null : options.bitsOf === undefined ? options.bits : options.bitsOf(info);
  const blockSize = fittingBlockSize(inputs, wanted);
  if (bits === null || blockSize === null) return null;
  checkBits(bits);
  const rounding = options.rounding ?? (bits === 4 ? 'nearest-asymmetric' : 'nearest-symmetric');
  const importance = options.importanceOf?.(info) ?? null;
  // A transposed constant lies as codes are made: [outputs, inputs].
  const codes = naming('quantiseWeights', weight.name, () => quantiseBlocks(
    constantValues(weight.constant).data, outputs, inputs, !weight.transposed, { bits, blockSize, rounding, ...(importance === null ? {} : { importance }) },
  ));
  return { codes, report: reportOf(codes, product) };
}

const reportOf = (codes: BlockCodes, product: ConstantProduct): QuantisedWeight => ({
  ...infoOf(product), bits: codes.bits, blockSize: codes.blockSize, relativeError: codes.relativeError, bytesBefore: storedBytes(product),
  bytesAfter: codes.codes.byteLength + codes.scales.byteLength + (codes.zeros?.byteLength ?? 0),
});

function storeCodes(codes: BlockCodes, name: string, fresh: (base: string) => string, constants: Map<string, Constant>): StoredCodes {
  const { outputs, inputs, bits, blockSize } = codes, blocks = blocksOf(inputs, blockSize);
  const names = { codes: fresh(`${name}.codes${bits}`), scales: fresh(`${name}.scales${bits}`), zeros: codes.zeros === null ? '' : fresh(`${name}.zeros${bits}`) };
  constants.set(names.codes, { dtype: 'uint8', shape: [outputs, blocks, (blockSize * bits) / 8], data: codes.codes });
  constants.set(names.scales, { dtype: 'float32', shape: [outputs, blocks], data: codes.scales });
  if (codes.zeros !== null) constants.set(names.zeros, { dtype: 'uint8', shape: [outputs, codes.zeros.length / outputs], data: codes.zeros });
  return { codes, names };
}

function productNode({ x, inputs, outputs }: ConstantProduct, { codes, names }: StoredCodes, bias: string, output: string): Node {
  const optional = bias !== '' ? [names.zeros, '', bias] : names.zeros === '' ? [] : [names.zeros];
  return contrib('MatMulNBits', [x, names.codes, names.scales, ...optional], [output], {
    K: int(inputs), N: int(outputs), bits: int(codes.bits), block_size: int(codes.blockSize), accuracy_level: int(4),
  });
}

