/** Rows rounded to codes by the same rule as one run of operators: queries and the new row of a decoding step. */
import { int } from '../graph/record.ts';
import type { Constant, HostTensor, Node, Subgraph } from '../graph/subgraph.ts';
import { constantNumbers } from './constant-weight.ts';
import { edgesOf, freshNames, intAttribute, operator, replaceNodes, soleReader, standard, type Edges } from './pass.ts';
import { viewedAs } from './views.ts';

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
  const host: Host = {
    fresh,
    constant(base, tensor) {
      const name = fresh(base);
      constants.set(name, tensor);
      return name;
    },
  };
  for (const split of subgraph.nodes) {
    const run = runOf(edges, split);
    if (run === null) continue;
    for (const { nodes } of run.roundings) for (const node of nodes) replaced.set(node, []);
    replaced.set(split, mergedNodes(split, run, host));
  }
  return replaceNodes(subgraph, replaced, constants);
}

interface Host {
  fresh(base: string): string;
  constant(base: string, tensor: HostTensor): string;
}

/** Neighbouring pieces of a Split that are rounded alike. */
interface Run {
  readonly sizes: readonly number[];
  /** The first of them. */
  readonly from: number;
  readonly roundings: readonly Rounding[];
}

function runOf(edges: Edges, split: Node): Run | null {
  const sizes = splitSizes(edges, split);
  const found = sizes === null ? [] : split.outputs.map((edge, i) => roundingOf(edges, edge, sizes[i] ?? NaN));
  const from = found.findIndex((one, i) => one !== null && one.rule === found[i + 1]?.rule);
  if (sizes === null || from < 0) return null;
  const after = found.slice(from), other = after.findIndex((one) => one?.rule !== found[from]?.rule);
  return { sizes, from, roundings: (other < 0 ? after : after.slice(0, other)).filter((one) => one !== null) };
}

/** The undivided piece, rounded, and what each piece gave before under its own name. */
function mergedNodes(split: Node, { sizes, from, roundings }: Run, { fresh, constant }: Host): Node[] {
  const { width, factor, least, zero } = roundings[0]!, counts = roundings.map(({ rows }) => rows), n = counts.reduce((a, b) => a + b, 0), end = from + roundings.length;
  const whole = split.inputs[0]!, piece = fresh(`${whole}.rounding`), edge = (name: string): string => fresh(`${piece}.${name}`);
  const integers = (name: string, values: readonly number[]): string => constant(`${piece}.${name}`, { dtype: 'int64', shape: [values.length], data: BigInt64Array.from(values, BigInt) });
  const outputs = [...split.outputs.slice(0, from), piece, ...split.outputs.slice(end)], isWhole = outputs.length === 1;
  const rows = edge('rows'), size = edge('size'), top = edge('top'), scaled = edge('scaled'), steps = edge('steps'), flat = edge('flat'), codes = edge('codes');
  const views: Node[] = [];
  /** Names for pieces [1, rows, ...], with a view behind each that had been [rows, ...]. */
  const pieces = (given: readonly { name: string; hasLead: boolean; shape: readonly number[] }[]): string[] => given.map(({ name, hasLead, shape }) => {
    if (hasLead) return name;
    const led = edge(name);
    views.push(standard('Reshape', [led, integers(`${name}.shape`, shape)], [name]));
    return led;
  });
  return [
    ...(isWhole ? [] : [standard('Split', [whole, integers('lengths', [...sizes.slice(0, from), n * width, ...sizes.slice(end)])], outputs, { axis: int(-1) })]),
    standard('Reshape', [isWhole ? whole : piece, integers('shape', [1, n, width])], [rows]),
    standard('Abs', [rows], [size]),
    standard('ReduceMax', [size, integers('axes', [-1])], [top], { keepdims: int(1) }),
    standard('Mul', [top, factor], [scaled]),
    standard('Add', [scaled, least], [steps]),
    standard('Reshape', [steps, integers('count', [n])], [flat]),
    standard('QuantizeLinear', [rows, flat, constant(`${piece}.zeros`, { dtype: 'uint8', shape: [n], data: new Uint8Array(n).fill(zero) })], [codes], { axis: int(1) }),
    standard('Split', [codes, integers('counts', counts)], pieces(roundings.map((one) => ({ name: one.codes, hasLead: one.codesLead, shape: [one.rows, one.width] }))), { axis: int(1) }),
    standard('Split', [steps, integers('counts', counts)], pieces(roundings.map((one) => ({ name: one.steps, hasLead: one.stepsLead, shape: [one.rows, 1] }))), { axis: int(1) }),
    ...views,
  ];
}

/** The last axis of [1, 1, size], said either way. */
const LAST_AXIS: readonly number[] = [-1, 2];

/** Sizes of the pieces of a Split along the last axis; null for any other node. A piece is only taken where a view of as many numbers is, so axis 2 of more than three does not pass. */
const splitSizes = (edges: Edges, node: Node): readonly number[] | null => (operator(node) === 'Split' && LAST_AXIS.includes(intAttribute(node, 'axis', 0)) ? constantNumbers(edges, node.inputs[1]) : null);

/** The rounding that is all that happens to a piece [1, 1, size]: codes from a view [rows, width] of it, sizes from that view or the piece itself. */
function roundingOf(edges: Edges, piece: string, size: number): Rounding | null {
  for (const view of edges.readers(piece)) {
    const [rows = 0, width = 0, ...more] = viewedAs(edges, view.outputs[0]!) ?? [], chain = chainOf(edges, view.outputs[0]!);
    if (chain === null || more.length > 0 || rows * width !== size) continue;
    const { quantise, flat, least, scaled, top, magnitude } = chain;
    const source = magnitude.inputs[0]!, stepsLead = source === piece && rows === 1;
    const [zeros, axes, factor, smallest] = [quantise.inputs[2], top.inputs[1], scaled.inputs[1], least.inputs[1]].map((edge) => constantNumbers(edges, edge));
    if (!(stepsLead || source === view.outputs[0]) || axes?.join() !== '-1' || zeros?.[0] === undefined || factor === null || smallest === null) continue;
    const behind = soleReader(edges, quantise.outputs[0]!), isRow = behind !== undefined && viewedAs(edges, behind.outputs[0]!)?.join() === [1, rows, width].join();
    const last = isRow ? behind : quantise, nodes = [view, magnitude, top, scaled, least, flat, quantise, last];
    // Codes and steps stay; nothing else may be read by others, for it is gone afterwards.
    const gone = [piece, ...nodes.filter((node) => node !== least && node !== last).map((node) => node.outputs[0]!)];
    if (gone.some((name) => edges.isOutput(name) || edges.readers(name).some((reader) => !nodes.includes(reader)))) continue;
    return {
      rows, width, nodes, zero: zeros[0], factor: scaled.inputs[1]!, least: least.inputs[1]!, steps: least.outputs[0]!, stepsLead, codes: last.outputs[0]!, codesLead: isRow,
      rule: JSON.stringify([width, zeros[0], factor, smallest]),
    };
  }
  return null;
}

/** QuantizeLinear(rows, Reshape(Add(Mul(ReduceMax(Abs(...)), factor), least))), one step per row. */
function chainOf(edges: Edges, rows: string): { quantise: Node; flat: Node; least: Node; scaled: Node; top: Node; magnitude: Node } | null {
  const quantise = edges.readers(rows).find((node) => operator(node) === 'QuantizeLinear' && intAttribute(node, 'axis', 1) === 0 && node.inputs[0] === rows);
  const flat = writerOf(edges, quantise?.inputs[1], 'Reshape'), least = writerOf(edges, flat?.inputs[0], 'Add'), scaled = writerOf(edges, least?.inputs[0], 'Mul');
  const top = writerOf(edges, scaled?.inputs[0], 'ReduceMax'), magnitude = writerOf(edges, top?.inputs[0], 'Abs');
  if (quantise === undefined || flat === undefined || least === undefined || scaled === undefined || top === undefined || magnitude === undefined) return null;
  return { quantise, flat, least, scaled, top, magnitude };
}

/** The node that writes an edge, if it is an `op`. */
function writerOf(edges: Edges, edge: string | undefined, op: string): Node | undefined {
  const node = edge === undefined ? undefined : edges.producer(edge);
  return node !== undefined && operator(node) === op ? node : undefined;
}
