/** RMS norms as one node, together with the residual sum in front of them. */
import { hasShapeRule, inferShapes } from '../graph/infer.ts';
import type { Constant, Dim, Node, Subgraph } from '../graph/subgraph.ts';
import { sameDim } from '../graph/dims.ts';
import { contrib, edgesOf, float, freshNames, operator, replaceNodes, standard } from './pass.ts';
import { gainOf, normOf } from './rms-norm-pattern.ts';

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
