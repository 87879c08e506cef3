/** A backward graph from a forward graph: reverse mode over ONNX operators, by way of the vocabulary's reverse rules. */
import { at } from '../../kernels/at.ts';
import { prune } from '../graph/compose.ts';
import { bodiesOf } from '../graph/constants.ts';
import { inferShapes } from '../graph/infer.ts';
import { recorder, type Value } from '../graph/record.ts';
import type { Node, Subgraph } from '../graph/subgraph.ts';
import { findLogSumExps } from './log-sum-exp.ts';
import { operators } from './operators.ts';
import { transposition } from './read-products.ts';
import { siteOf, type Edge, type Known, type Surroundings } from './site.ts';
import { splitSegments } from './segments.ts';
import { traced } from './traced.ts';

export interface DifferentiateOptions {
  /** Output to differentiate; of several elements, their sum is. */
  readonly loss: string;
  /** Inputs, constants or inner edges: float32 or float64. */
  readonly wrt: readonly string[];
  /** Further outputs that stay. Default none. */
  readonly keep?: readonly string[];
  /**
   * Edges that cut the way into stretches, e.g. the hidden state in front of every layer. The way back finishes the
   * gradients of one stretch before it goes on to the one before, so that onnxruntime, which orders nodes as it likes,
   * does not keep the cotangents of all layers until the end. Default none.
   */
  readonly checkpoints?: readonly string[];
  /**
   * Rematerialisation: of what lies between two checkpoints nothing is kept, the way back computes it again. Memory
   * then grows with one stretch instead of the whole depth, for about a third more work. What lies in front of the first
   * checkpoint (an embedding) and behind the last (a loss) is kept. Default false.
   */
  readonly recompute?: boolean;
}

/** Name of the output that holds the gradient with respect to `variable`. */
export const gradientOf = (variable: string): string => `gradient.${variable}`;

/**
 * The subgraph with outputs `loss`, those of `keep`, and `gradient.V` = d loss / d V for every V of `wrt`, with V's shape.
 * Inputs stay; an output never shares memory with an input. Operators that lie between `wrt` and the loss need a reverse
 * rule (lib/autodiff/operators.ts); others are carried over as they are.
 * Errors: unknown names, a variable that is not floating point or that the loss does not depend on, an operator without
 * a rule (named, with the node).
 */
export function differentiate(subgraph: Subgraph, options: DifferentiateOptions): Subgraph {
  const { loss, wrt, keep = [], checkpoints = [], recompute = false } = options;
  const fail = (rule: string, got: string): never => { throw new Error(`differentiate: ${subgraph.name}: ${rule}, got ${got}`); };
  const outputs = new Set(subgraph.outputs.map((port) => port.name));
  for (const name of [loss, ...keep]) if (!outputs.has(name)) fail(`an output must be one of ${[...outputs].join(', ')}`, name);
  if (wrt.length === 0) fail('wrt must name at least one edge', 'none');
  const forward = prune(subgraph, [...new Set([loss, ...keep])]);
  const facts = inferShapes(subgraph);
  for (const name of wrt) {
    const dtype = facts.get(name)?.dtype ?? fail('wrt must name edges', name);
    if (dtype !== 'float32' && dtype !== 'float64') fail(`wrt ${name} must be float32 or float64`, dtype);
  }

  const g = recorder(`${subgraph.name}-gradient`);
  const trace = traced<Value>(g);
  const makers = new Map(forward.nodes.flatMap((node) => node.outputs.map((edge) => [edge, node] as const)));
  const known = new Map<string, Edge>();
  const put = (into: Map<string, Edge>, name: string, value: Known): void => { into.set(name, { value: () => value }); };
  for (const port of forward.inputs) put(known, port.name, trace.track(g.input(port)));
  for (const [name, constant] of forward.constants) {
    g.parameter(name, constant);
    put(known, name, trace.track({ name, dtype: constant.dtype, shape: constant.shape }));
  }
  const surroundings = (scope: ReadonlyMap<string, Edge>): Surroundings => ({
    name: subgraph.name, g: trace.g, facts, constants: forward.constants, makers,
    edge: (name) => scope.get(name) ?? known.get(name) ?? fail('edges must be made before they are read', name),
  });
  const { operands, inside } = findLogSumExps(forward, makers, facts);

  /** A node on the way from a variable to the loss, in words. */
  const read = (node: Node, scope: Map<string, Edge>): void => {
    if (inside.has(node)) return;
    const site = siteOf(node, surroundings(scope));
    const operand = operands.get(node);
    if (node.op === 'Transpose' && node.domain === '') {
      const { order, value } = transposition(site);
      scope.set(at(node.outputs, 0), { value: () => value, turned: { source: site.input(0), order } });
    } else if (operand !== undefined) {
      put(scope, at(node.outputs, 0), trace.g.logSumExp(site.edge(operand)));
    } else {
      const reader = node.domain === '' ? operators[node.op] : undefined;
      if (reader === undefined) site.refuse(`an operator must have a reverse rule (${Object.keys(operators).join(', ')})`, node.op);
      else reader(site).forEach((value, i) => put(scope, at(node.outputs, i), value));
    }
  };
  /** A node off that way, as it is; transpositions are read, so that a product can take them in. */
  const carry = (node: Node): void => {
    if (node.op === 'Transpose' && node.domain === '') return read(node, known);
    if (bodiesOf(node).length > 0) fail('operators with bodies cannot be carried over', `${node.op} -> ${node.outputs.join(', ')}`);
    const inputs = node.inputs.map((name) => (name === '' ? ABSENT : surroundings(known).edge(name).value().value));
    const ports = node.outputs.map((name) => facts.get(name) ?? ABSENT);
    g.append(node.op, inputs, ports, node.attributes, node.domain).forEach((value, i) => put(known, at(node.outputs, i), trace.track(value)));
  };

  const stray = checkpoints.find((name) => !makers.has(name));
  if (stray !== undefined) fail('a checkpoint must be an edge that leads to the outputs', stray);
  const { before, stretches, after } = splitSegments(forward, { loss, wrt, checkpoints, isFloat: (name) => facts.get(name)?.dtype.startsWith('float') === true });
  for (const node of before) carry(node);
  for (const { nodes, inputs, results, between } of stretches) {
    if (!between) {
      for (const node of nodes) read(node, known);
      continue;
    }
    const values = trace.stretch(inputs.map((name) => surroundings(known).edge(name).value()), recompute, (given) => {
      const scope = new Map<string, Edge>();
      inputs.forEach((name, i) => put(scope, name, at(given, i)));
      for (const node of nodes) read(node, scope);
      return results.map((name) => surroundings(scope).edge(name).value());
    });
    results.forEach((name, i) => put(known, name, at(values, i)));
  }
  for (const node of after) carry(node);

  const valueOf = (name: string): Known => surroundings(known).edge(name).value();
  const scalar = valueOf(loss);
  const gradients = trace.pullback([[scalar, g.fill(scalar.value, scalar.value.shape, 1)]], wrt.map(valueOf));
  return g.finish({
    ...Object.fromEntries([loss, ...keep].map((name) => [name, valueOf(name).value])),
    ...Object.fromEntries(wrt.map((name, i) => [gradientOf(name), gradients[i] ?? fail(`${loss} must depend on every variable of wrt`, name)])),
  });
}

/** An optional operand that is not given. */
const ABSENT: Value = { name: '', dtype: 'float32', shape: [] };
