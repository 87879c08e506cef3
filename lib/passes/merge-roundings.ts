/** Rows rounded to codes by the same rule as one run of operators: queries and the new row of a decoding step. */
import { int } from '../graph/record.ts';
import type { Constant, HostTensor, Node, Subgraph } from '../graph/subgraph.ts';
import { readConstant } from './constant-weight.ts';
import { edgesOf, freshNames, intAttribute, operator, replaceNodes, soleReader, standard, type Edges } from './pass.ts';

/** A piece of a Split whose rows get codes with a step each: step = max |row| * factor + least, codes = round(row / step) + zero. */
interface Rounding {
  /** Rows of the piece, and their width. */
  readonly rows: number;
  readonly width: number;
  /** Equal for roundings of the same rule. */
  readonly rule: string;
  readonly factor: string;
  readonly least: string;
  readonly zero: number;
  /** The steps, and whether they are [1, rows, 1]; otherwise they are [rows, 1]. */
  readonly steps: string;
  readonly stepsLead: boolean;
  /** The codes [rows, width]; or behind a view of them, [1, rows, width]. */
  readonly codes: string;
  readonly codesLead: boolean;
  readonly nodes: readonly Node[];
}

/**
 * Neighbouring pieces of one Split, each rounded to 8-bit codes with a step per row by the same rule and in rows of one
 * width -> one rounding of the undivided piece, and a Split of its codes and one of its steps. Numbers stay the same. In
 * a graph that appends to its cache this makes the codes of queries and of the new row two outputs of one node, which
 * appendsAreOrdered needs. Runs behind mergeProjections and mergeRotations, which put the pieces side by side.
 */
export function mergeRoundings(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph);
  const replaced = new Map<Node, readonly Node[]>(), constants = new Map<string, Constant>();
  const constant = (base: string, tensor: HostTensor): string => {
    const name = fresh(base);
    constants.set(name, tensor);
    return name;
  };
  const integers = (base: string, values: readonly number[]): string => constant(base, { dtype: 'int64', shape: [values.length], data: BigInt64Array.from(values, BigInt) });
  for (const split of subgraph.nodes) {
    const sizes = splitSizes(edges, split);
    if (sizes === null) continue;
    const roundings = split.outputs.map((edge, i) => roundingOf(edges, edge, sizes[i]!));
    const from = roundings.findIndex((one, i) => one !== null && one.rule === roundings[i + 1]?.rule);
    if (from < 0) continue;
    let end = from + 1;
    while (roundings[end]?.rule === roundings[from]!.rule) end++;
    const merged = roundings.slice(from, end).filter((one) => one !== null), [first] = merged as [Rounding, ...Rounding[]];
    const counts = merged.map(({ rows }) => rows), n = counts.reduce((a, b) => a + b, 0);
    const piece = fresh(`${split.inputs[0]!}.rounding`), edge = (name: string): string => fresh(`${piece}.${name}`);
    const outputs = [...split.outputs.slice(0, from), piece, ...split.outputs.slice(end)], isWhole = outputs.length === 1;
    const [rows, size, top, scaled, steps, flat, codes] = ['rows', 'size', 'top', 'scaled', 'steps', 'flat', 'codes'].map(edge) as [string, string, string, string, string, string, string];
    const zeros = constant(`${piece}.zeros`, { dtype: 'uint8', shape: [n], data: new Uint8Array(n).fill(first.zero) });
    const lengths = integers(`${piece}.counts`, counts);
    for (const { nodes } of merged) for (const node of nodes) replaced.set(node, []);
    const views: Node[] = [];
    const shaped = (name: string, hasLead: boolean, shape: readonly number[]): string => {
      if (hasLead) return name;
      const led = edge(name);
      views.push(standard('Reshape', [led, integers(`${led}.shape`, shape)], [name]));
      return led;
    };
    const codePieces = merged.map((one) => shaped(one.codes, one.codesLead, [one.rows, one.width]));
    const stepPieces = merged.map((one) => shaped(one.steps, one.stepsLead, [one.rows, 1]));
    replaced.set(split, [
      ...(isWhole ? [] : [standard('Split', [split.inputs[0]!, integers(`${piece}.lengths`, [...sizes.slice(0, from), n * first.width, ...sizes.slice(end)])], outputs, { axis: int(-1) })]),
      standard('Reshape', [isWhole ? split.inputs[0]! : piece, integers(`${piece}.shape`, [1, n, first.width])], [rows]),
      standard('Abs', [rows], [size]),
      standard('ReduceMax', [size, integers(`${piece}.axes`, [-1])], [top], { keepdims: int(1) }),
      standard('Mul', [top, first.factor], [scaled]),
      standard('Add', [scaled, first.least], [steps]),
      standard('Reshape', [steps, integers(`${piece}.count`, [n])], [flat]),
      standard('QuantizeLinear', [rows, flat, zeros], [codes], { axis: int(1) }),
      standard('Split', [codes, lengths], codePieces, { axis: int(1) }),
      standard('Split', [steps, lengths], stepPieces, { axis: int(1) }),
      ...views,
    ]);
  }
  return replaceNodes(subgraph, replaced, constants);
}

/** Sizes of the pieces of a Split along the last axis; null for any other node. */
function splitSizes(edges: Edges, node: Node): number[] | null {
  const sizes = edges.constant(node.inputs[1] ?? '');
  return operator(node) === 'Split' && intAttribute(node, 'axis', 0) === -1 && sizes !== undefined ? numbersOf(sizes) : null;
}

const numbersOf = (constant: Constant): number[] => Array.from<number | bigint, number>(readConstant(constant).data, Number);

/** The rounding that is all that happens to a piece [1, 1, size]. */
function roundingOf(edges: Edges, piece: string, size: number): Rounding | null {
  const reshapes = edges.readers(piece).filter((node) => operator(node) === 'Reshape');
  // Codes come from a view [rows, width] of the piece; its sizes from the same view or from the piece itself.
  for (const view of reshapes) {
    const [rows, width, ...more] = shapeOf(edges, view) ?? [];
    if (rows === undefined || width === undefined || more.length > 0) continue;
    const quantise = edges.readers(view.outputs[0]!).find((node) => operator(node) === 'QuantizeLinear' && intAttribute(node, 'axis', 1) === 0);
    const flat = quantise === undefined ? undefined : edges.producer(quantise.inputs[1] ?? '');
    const least = flat === undefined || operator(flat) !== 'Reshape' ? undefined : edges.producer(flat.inputs[0]!);
    const scaled = producerOf(edges, least, 'Add'), top = producerOf(edges, scaled, 'Mul'), magnitude = producerOf(edges, top, 'ReduceMax');
    const zeros = edges.constant(quantise?.inputs[2] ?? '');
    if (quantise === undefined || flat === undefined || least === undefined || scaled === undefined || top === undefined || magnitude === undefined || zeros === undefined) continue;
    const source = magnitude.inputs[0]!, stepsLead = source === piece, zero = numbersOf(zeros)[0] ?? NaN;
    const axes = edges.constant(top.inputs[1] ?? ''), [factor, smallest] = [scaled.inputs[1]!, least.inputs[1]!];
    if (operator(magnitude) !== 'Abs' || (stepsLead ? rows !== 1 : source !== view.outputs[0]) || rows * width !== size || axes === undefined || numbersOf(axes).join() !== '-1') continue;
    if (edges.constant(factor) === undefined || edges.constant(smallest) === undefined) continue;
    const behind = soleReader(edges, quantise.outputs[0]!), isRow = behind !== undefined && operator(behind) === 'Reshape' && shapeOf(edges, behind)?.join() === [1, rows, width].join();
    const nodes = [view, magnitude, top, scaled, least, flat, quantise, ...(isRow ? [behind] : [])];
    // Nothing else may read what is gone afterwards; codes and steps stay.
    const inner = [piece, ...nodes.filter((node) => node !== least && node !== nodes.at(-1)).map((node) => node.outputs[0]!)];
    if (inner.some((name) => edges.isOutput(name) || edges.readers(name).some((reader) => !nodes.includes(reader)))) continue;
    return {
      rows, width, zero, factor, least: smallest, steps: least.outputs[0]!, stepsLead, codes: nodes.at(-1)!.outputs[0]!, codesLead: isRow, nodes,
      rule: JSON.stringify([width, zero, numbersOf(edges.constant(factor)!), numbersOf(edges.constant(smallest)!)]),
    };
  }
  return null;
}

/** Who writes the first input of a node that is an `op`. */
const producerOf = (edges: Edges, node: Node | undefined, op: string): Node | undefined => (node !== undefined && operator(node) === op ? edges.producer(node.inputs[0]!) : undefined);

/** The constant shape that a Reshape asks for. */
function shapeOf(edges: Edges, reshape: Node): number[] | null {
  const shape = edges.constant(reshape.inputs[1] ?? '');
  return shape === undefined ? null : numbersOf(shape);
}
