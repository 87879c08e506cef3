/** Dynamic int8 as a pass: weights as int8 per output, inputs rounded to 8 bits while the graph runs, integer products. */
import { hasShapeRule, inferShapes } from '../graph/infer.ts';
import { int } from '../graph/record.ts';
import type { Constant, HostTensor, Node, Subgraph } from '../graph/subgraph.ts';
import { addedBias, constantProduct, constantValues, type ConstantProduct } from './constant-weight.ts';
import { COLUMN_ZERO, quantiseColumns } from './column-codes.ts';
import { contrib, edgesOf, freshNames, operator, replaceNodes, standard, type Edges } from './pass.ts';
import { infoOf, naming, storedBytes, type QuantisedSubgraph, type QuantisedWeight, type WeightInfo } from './weight-report.ts';

export interface DynamicOptions {
  /**
   * What shares a scale of the inputs. 'row': each token its own, so that a token's result does not depend on its
   * neighbours; 5 nodes per distinct input and 2 per product, or 1 node where the shapes say that there is one row only.
   * 'tensor': everything a product sees in one run, 1 node; one outlier among the tokens spoils all. Default 'row'.
   */
  readonly inputScale?: 'tensor' | 'row';
  /** Matrices with fewer weights stay as they are. Default 4096. */
  readonly minWeights?: number;
  /** Whether to quantise a matrix. Default: all. */
  readonly select?: (weight: WeightInfo) => boolean;
}

const literals = {
  /** Axes of a reduction over the last axis. */
  last: { dtype: 'int64', shape: [1], data: BigInt64Array.of(-1n) },
  step: { dtype: 'float32', shape: [], data: Float32Array.of(1 / 127) },
  one: { dtype: 'float32', shape: [], data: Float32Array.of(1) },
  middle: { dtype: 'uint8', shape: [], data: Uint8Array.of(COLUMN_ZERO) },
} as const satisfies Readonly<Record<string, HostTensor>>;

/** Constants and edges that all products of one run of the pass share. */
interface Shared {
  readonly fresh: (base: string) => string;
  readonly constants: Map<string, Constant>;
  /** Edge of a constant that every product uses. */
  readonly literal: (name: keyof typeof literals) => string;
  readonly weights: Map<string, { readonly codes: string; readonly scales: string } | null>;
  /** Rounded rows and their scales by input edge. */
  readonly rows: Map<string, { readonly codes: string; readonly scale: string }>;
}

/**
 * Every MatMul, FusedMatMul or Gemm with a constant matrix becomes an integer product: y = (x / s_x rounded) (W / s_w
 * rounded) s_x s_w with s_w per output (largest magnitude on 127)
 * and s_x as `inputScale` says. A matrix that Gather
 * reads too (a tied embedding) is left to quantiseWeights, which can share its bytes. Stored constants are read here.
 * Errors: weights that are not finite, naming the matrix.
 */
export function quantiseDynamic(subgraph: Subgraph, options: DynamicOptions = {}): QuantisedSubgraph {
  const { inputScale = 'row' } = options;
  const edges = edgesOf(subgraph);
  const fresh = freshNames(subgraph), constants = new Map<string, Constant>();
  const literalNames = new Map<string, string>();
  const literal: Shared['literal'] = (name) => {
    const edge = literalNames.get(name) ?? fresh(`quantise_dynamic.${name}`);
    literalNames.set(name, edge);
    constants.set(edge, literals[name]);
    return edge;
  };
  const shared: Shared = { fresh, constants, literal, weights: new Map(), rows: new Map() };
  const replaced = new Map<Node, readonly Node[]>(), report: QuantisedWeight[] = [];
  const isOneRow = inputScale === 'tensor' ? () => true : oneRow(subgraph);
  for (const node of subgraph.nodes) {
    const product = constantProduct(edges, node);
    const weight = product === null ? null : codesOf(product, edges, options, shared, report);
    if (product === null || weight === null) continue;
    if (isOneRow(product.x)) {
      const added = product.bias === '' ? addedBias(edges, node, product.outputs) : null;
      const bias = added?.bias ?? product.bias;
      replaced.set(node, [contrib('DynamicQuantizeMatMul', [product.x, weight.codes, weight.scales, shared.literal('middle'), ...(bias === '' ? [] : [bias])], [added?.node.outputs[0] ?? node.outputs[0]!])]);
      if (added !== null) replaced.set(added.node, []);
    } else {
      replaced.set(node, rowProduct(product, weight, node.outputs[0]!, shared));
    }
  }
  return { ...replaceNodes(subgraph, replaced, shared.constants), quantised: report };
}

/** Whether an edge is known to hold one row; never, when an operator without a shape rule is among the nodes. */
function oneRow(subgraph: Subgraph): (edge: string) => boolean {
  if (!subgraph.nodes.every(hasShapeRule)) return () => false;
  const facts = inferShapes(subgraph);
  return (edge) => facts.get(edge)?.shape.slice(0, -1).every((dim) => dim === 1) ?? false;
}

function codesOf(product: ConstantProduct, edges: Edges, options: DynamicOptions, shared: Shared, report: QuantisedWeight[]): { codes: string; scales: string } | null {
  const { weight, inputs, outputs } = product;
  const key = `${weight.name} ${weight.transposed}`, known = shared.weights.get(key);
  if (known !== undefined) return known;
  const info = infoOf(product);
  const isTable = edges.readers(weight.name).some((reader) => operator(reader) === 'Gather');
  const wanted = !isTable && inputs * outputs >= (options.minWeights ?? 4096) && (options.select?.(info) ?? true);
  const made = wanted ? naming('quantiseDynamic', weight.name, () => quantiseColumns(constantValues(weight.constant).data, outputs, inputs, !weight.transposed)) : null;
  const names = made === null ? null : { codes: shared.fresh(`${weight.name}.columns8`), scales: shared.fresh(`${weight.name}.column_scales`) };
  shared.weights.set(key, names);
  if (made === null || names === null) return null;
  shared.constants.set(names.codes, { dtype: 'uint8', shape: [inputs, outputs], data: made.codes });
  shared.constants.set(names.scales, { dtype: 'float32', shape: [outputs], data: made.scales });
  report.push({
    ...info, bits: 8, blockSize: inputs, relativeError: made.relativeError, bytesBefore: storedBytes(product), bytesAfter: made.codes.byteLength + made.scales.byteLength,
  });
  return names;
}

/** Rounded rows x / s, s = max |x| / 127, in uint8 around 128; a row of zeros has s = 0, whatever its codes. */
function roundedRows(x: string, { fresh, literal, rows }: Shared): { nodes: Node[]; codes: string; scale: string } {
  const known = rows.get(x);
  if (known !== undefined) return { nodes: [], ...known };
  const [magnitude, extreme, scale, unit, codes] = ['magnitude', 'extreme', 'scale', 'unit', 'codes'].map((base) => fresh(`${x}.${base}`)) as [string, string, string, string, string];
  rows.set(x, { codes, scale });
  return {
    codes, scale,
    nodes: [
      standard('Abs', [x], [magnitude]),
      standard('ReduceMax', [magnitude, literal('last')], [extreme], { keepdims: int(1) }),
      standard('Mul', [extreme, literal('step')], [scale]),
      standard('Div', [x, scale], [unit]),
      standard('QuantizeLinear', [unit, literal('one'), literal('middle')], [codes]),
    ],
  };
}

function rowProduct(product: ConstantProduct, weight: { codes: string; scales: string }, output: string, shared: Shared): Node[] {
  const { nodes, codes, scale } = roundedRows(product.x, shared);
  const { literal } = shared, raw = shared.fresh(`${output}.raw`), plain = product.bias === '' ? output : shared.fresh(`${output}.plain`);
  return [
    ...nodes,
    contrib('MatMulIntegerToFloat', [codes, weight.codes, literal('one'), weight.scales, literal('middle'), literal('middle')], [raw]),
    standard('Mul', [raw, scale], [plain]),
    ...(product.bias === '' ? [] : [standard('Add', [plain, product.bias], [output])]),
  ];
}
