/** RMS norms as one node, together with the residual sum in front of them. */
import { hasShapeRule, inferShapes } from '../graph/infer.ts';
import type { Constant, Dim, Node, Subgraph } from '../graph/subgraph.ts';
import { sameDim } from '../graph/dims.ts';
import { constantValues, readConstant } from './constant-weight.ts';
import { contrib, edgesOf, float, floatAttribute, freshNames, intAttribute, operator, replaceNodes, standard, type Edges } from './pass.ts';

/** y = x / sqrt(mean(x^2) + epsilon) * gain over the last axis. */
interface Norm {
  readonly x: string;
  readonly gain: string;
  readonly epsilon: number;
}

/**
 * x / sqrt(mean(x^2) + eps) * gain, spelled out or as RMSNormalization -> SimplifiedLayerNormalization; where x is a sum
 * a + b of equal shapes, both -> com.microsoft SkipSimplifiedLayerNormalization, whose fourth output is that sum.
 * Sums are only taken in where the shapes of the graph are known. Numbers stay the same up to rounding.
 */
export function fuseSkipNorms(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph);
  const replaced = new Map<Node, readonly Node[]>(), constants = new Map<string, Constant>(), gains = new Map<string, string>();
  const shapes = subgraph.nodes.every(hasShapeRule) ? inferShapes(subgraph) : null;
  for (const node of subgraph.nodes) {
    const norm = normOf(edges, node);
    const gain = norm === null ? null : gainOf(edges, norm.gain, gains, constants, fresh);
    if (norm === null || gain === null) continue;
    const sum = edges.producer(norm.x), y = node.outputs[0]!;
    const [a = '', b = ''] = sum?.inputs ?? [];
    const shape = shapes?.get(norm.x)?.shape;
    const isSum = sum !== undefined && operator(sum) === 'Add' && !replaced.has(sum) && shape !== undefined && (shape.length === 2 || shape.length === 3)
      && [a, b].every((edge) => sameShape(shapes?.get(edge)?.shape, shape));
    if (isSum) {
      // Asking for the second or third output crashes the engine.
      replaced.set(sum, [contrib('SkipSimplifiedLayerNormalization', [a, b, gain], [y, '', '', norm.x], { epsilon: float(norm.epsilon) })]);
      replaced.set(node, []);
    } else {
      replaced.set(node, [standard('SimplifiedLayerNormalization', [norm.x, gain], [y], { axis: { kind: 'int', value: -1 }, epsilon: float(norm.epsilon) })]);
    }
  }
  return replaceNodes(subgraph, replaced, constants);
}

const sameShape = (a: readonly Dim[] | undefined, b: readonly Dim[]): boolean => a?.length === b.length && a.every((dim, i) => sameDim(dim, b[i]!));

/** The node as the last step of an RMS norm. */
function normOf(edges: Edges, node: Node): Norm | null {
  if (operator(node) === 'RMSNormalization') {
    const [x = '', gain = ''] = node.inputs;
    return intAttribute(node, 'axis', -1) === -1 ? { x, gain, epsilon: floatAttribute(node, 'epsilon', 1e-5) } : null;
  }
  if (operator(node) !== 'Mul') return null;
  for (const [unit, gain] of [node.inputs, [...node.inputs].reverse()]) {
    const division = edges.producer(unit ?? '');
    if (division === undefined || operator(division) !== 'Div') continue;
    const [x = '', root = ''] = division.inputs;
    const epsilon = epsilonOf(edges, x, root);
    if (epsilon !== null) return { x, gain: gain ?? '', epsilon };
  }
  return null;
}

/** eps, when `root` is sqrt(mean(x^2) + eps) over the last axis. */
function epsilonOf(edges: Edges, x: string, root: string): number | null {
  const shift = producerOf(edges, root, 'Sqrt', 0);
  if (shift === null || operator(shift) !== 'Add') return null;
  const mean = edges.producer(shift.inputs[0] ?? '');
  const square = mean !== undefined && operator(mean) === 'ReduceMean' && scalarOf(edges, mean.inputs[1] ?? '') === -1 && intAttribute(mean, 'keepdims', 1) === 1
    ? edges.producer(mean.inputs[0] ?? '') : undefined;
  if (square === undefined || square.inputs[0] !== x) return null;
  const isSquare = operator(square) === 'Pow' ? scalarOf(edges, square.inputs[1] ?? '') === 2 : operator(square) === 'Mul' && square.inputs[1] === x;
  return isSquare ? scalarOf(edges, shift.inputs[1] ?? '') : null;
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
function gainOf(edges: Edges, gain: string, known: Map<string, string>, constants: Map<string, Constant>, fresh: (base: string) => string): string | null {
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
