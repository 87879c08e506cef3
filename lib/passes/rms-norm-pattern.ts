/** Finding RMS norms in a graph: spelled out, or as RMSNormalization. */
import type { Constant, Node } from '../graph/subgraph.ts';
import { constantValues, readConstant } from './constant-weight.ts';
import { floatAttribute, intAttribute, operator, type Edges } from './pass.ts';

/** y = x / sqrt(mean(x^2) + epsilon) * gain over the last axis. */
export interface Norm {
  readonly x: string;
  readonly gain: string;
  readonly epsilon: number;
  /** The nodes of the norm that read x. */
  readonly readers: readonly Node[];
}

/** The node as the last step of an RMS norm. */
export function normOf(edges: Edges, node: Node): Norm | null {
  if (operator(node) === 'RMSNormalization') {
    const [x = '', gain = ''] = node.inputs;
    return intAttribute(node, 'axis', -1) === -1 ? { x, gain, epsilon: floatAttribute(node, 'epsilon', 1e-5), readers: [node] } : null;
  }
  if (operator(node) !== 'Mul') return null;
  for (const [unit, gain] of [node.inputs, [...node.inputs].reverse()]) {
    const division = edges.producer(unit ?? '');
    if (division === undefined || operator(division) !== 'Div') continue;
    const [x = '', root = ''] = division.inputs;
    const spread = spreadOf(edges, x, root);
    if (spread !== null) return { x, gain: gain ?? '', epsilon: spread.epsilon, readers: [division, spread.square] };
  }
  return null;
}

/** eps and the node that squares x, when `root` is sqrt(mean(x^2) + eps) over the last axis. */
function spreadOf(edges: Edges, x: string, root: string): { readonly epsilon: number; readonly square: Node } | null {
  const shift = producerOf(edges, root, 'Sqrt', 0);
  if (shift === null || operator(shift) !== 'Add') return null;
  const mean = edges.producer(shift.inputs[0] ?? '');
  const square = mean !== undefined && operator(mean) === 'ReduceMean' && scalarOf(edges, mean.inputs[1] ?? '') === -1 && intAttribute(mean, 'keepdims', 1) === 1
    ? edges.producer(mean.inputs[0] ?? '') : undefined;
  if (square === undefined || square.inputs[0] !== x) return null;
  const isSquare = operator(square) === 'Pow' ? scalarOf(edges, square.inputs[1] ?? '') === 2 : operator(square) === 'Mul' && square.inputs[1] === x;
  const epsilon = isSquare ? scalarOf(edges, shift.inputs[1] ?? '') : null;
  return epsilon === null ? null : { epsilon, square };
}

/** The node behind input `index` of the `op` that writes `edge`. */
function producerOf(edges: Edges, edge: string, op: string, index: number): Node | null {
  const node = edges.producer(edge);
  return node !== undefined && operator(node) === op ? edges.producer(node.inputs[index] ?? '') ?? null : null;
}

/** A constant of one element. */
function scalarOf(edges: Edges, edge: string): number | null {
  const constant = edges.constant(edge);
  if (constant === undefined || constant.shape.some((n) => n !== 1)) return null;
  return Number(readConstant(constant).data[0]);
}

/** Edge of the gain as a float32 constant vector, widened here where the graph widens it; null when it is computed. */
export function gainOf(edges: Edges, gain: string, known: Map<string, string>, constants: Map<string, Constant>, fresh: (base: string) => string): string | null {
  const own = edges.constant(gain);
  if (own !== undefined) return own.dtype === 'float32' && own.shape.length === 1 ? gain : null;
  const cast = edges.producer(gain);
  const name = cast !== undefined && operator(cast) === 'Cast' && intAttribute(cast, 'to', 0) === 1 ? cast.inputs[0] ?? '' : '';
  const narrow = edges.constant(name);
  if (narrow === undefined || narrow.shape.length !== 1) return null;
  const wide = known.get(name) ?? fresh(`${name}.float32`);
  known.set(name, wide);
  if (!constants.has(wide)) constants.set(wide, constantValues(narrow));
  return wide;
}
