/** Dtype and symbolic shape of every edge of a subgraph, from one table of rules per operator. */
import { sameDim, substituteDim, symbolsOfDim } from './dims.ts';
import { attentionRules } from './rules/attention.ts';
import { contraction } from './rules/contraction.ts';
import { elementwise } from './rules/elementwise.ts';
import { factOfConstant, movement } from './rules/movement.ts';
import type { Fact, Op, Rules } from './rules/rule.ts';
import type { Dim, Node, Port, Subgraph } from './subgraph.ts';

/** Rules by operator; those of another domain than the standard one as `domain:operator`. */
const RULES: Rules = { ...elementwise, ...movement, ...contraction, ...attentionRules };

const ruleName = (node: Node): string => (node.domain === '' ? node.op : `${node.domain}:${node.op}`);

/** Whether `inferShapes` knows the operator. */
export const hasShapeRule = (node: Node): boolean => Object.hasOwn(RULES, ruleName(node));

/**
 * Dtype and shape of every edge by name: inputs, constants and results. Throws, naming the node, on an operator without
 * a rule, shapes or dtypes that do not fit, an edge nobody produces, and a declared output that differs from the
 * inferred one. A symbol that only outputs declare stands for whatever is inferred there.
 */
export function inferShapes(subgraph: Subgraph): ReadonlyMap<string, Omit<Fact, 'values'>> {
  const facts = new Map<string, Fact>();
  const add = (name: string, fact: Fact): void => {
    if (facts.has(name)) throw new Error(`inferShapes: every edge of ${subgraph.name} must be produced once, got ${name} twice`);
    facts.set(name, fact);
  };
  for (const { name, dtype, shape } of subgraph.inputs) add(name, { dtype, shape });
  for (const [name, constant] of subgraph.constants) add(name, factOfConstant(constant));
  for (const node of subgraph.nodes) {
    const op = opOf(node, subgraph.name, facts);
    const rule = RULES[ruleName(node)] ?? op.fail('an operator must have a shape rule', ruleName(node));
    const results = rule(op);
    node.outputs.forEach((name, i) => {
      if (name !== '') add(name, results[i] ?? op.fail(`it has ${results.length} outputs`, `${node.outputs.length}`));
    });
  }
  checkOutputs(subgraph, facts);
  return facts;
}

function opOf(node: Node, subgraph: string, facts: ReadonlyMap<string, Fact>): Op {
  const where = `${ruleName(node)} -> ${node.outputs.filter((name) => name !== '').join(', ')} of ${subgraph}`;
  const fail = (rule: string, got: string): never => { throw new Error(`inferShapes: ${where}: ${rule}, got ${got}`); };
  const optional = (index: number): Fact | undefined => {
    const name = node.inputs[index] ?? '';
    return name === '' ? undefined : facts.get(name) ?? fail('inputs must be produced before they are read', name);
  };
  const input = (index: number): Fact => optional(index) ?? fail(`input ${index} must be given`, 'none');
  const values = (index: number): readonly Dim[] => input(index).values ?? fail(`input ${index} must be known before the run`, node.inputs[index] ?? '');
  const wrongKind = (name: string, want: string): never => fail(`attribute ${name} must be ${want}`, node.attributes[name]?.kind ?? 'none');
  return {
    node, count: node.inputs.length, input, optional, values, fail,
    numbers: (index) => values(index).map((v) => (typeof v === 'number' ? v : fail(`input ${index} must be plain numbers`, v))),
    int(name, fallback) {
      const attribute = node.attributes[name];
      if (attribute === undefined) return fallback ?? wrongKind(name, 'an int');
      return attribute.kind === 'int' ? attribute.value : wrongKind(name, 'an int');
    },
    ints(name) {
      const attribute = node.attributes[name];
      return attribute === undefined || attribute.kind === 'ints' ? attribute?.value : wrongKind(name, 'ints');
    },
    text(name, fallback) {
      const attribute = node.attributes[name];
      if (attribute === undefined) return fallback;
      return attribute.kind === 'string' ? attribute.value : wrongKind(name, 'a string');
    },
    tensor(name) {
      const attribute = node.attributes[name];
      return attribute === undefined || attribute.kind === 'tensor' ? attribute?.value : wrongKind(name, 'a tensor');
    },
    axis(value, rank) {
      const front = value < 0 ? value + rank : value;
      return front >= 0 && front < rank ? front : fail(`an axis must be -${rank}..${rank - 1}`, `${value}`);
    },
  };
}

function checkOutputs(subgraph: Subgraph, facts: ReadonlyMap<string, Fact>): void {
  const known = new Set(subgraph.inputs.flatMap((port) => port.shape.flatMap(symbolsOfDim)));
  const free: Record<string, Dim> = {};
  for (const port of subgraph.outputs) {
    const fact = facts.get(port.name);
    if (fact === undefined) throw new Error(`inferShapes: output ${port.name} of ${subgraph.name} must be produced, got none`);
    for (const [axis, dim] of port.shape.entries()) {
      const inferred = fact.shape[axis];
      if (typeof dim === 'string' && inferred !== undefined && /^\w+$/.test(dim) && !known.has(dim)) free[dim] ??= inferred;
    }
    const fits = fact.dtype === port.dtype && fact.shape.length === port.shape.length
      && port.shape.every((dim, axis) => sameDim(substituteDim(dim, free), fact.shape[axis]!));
    if (!fits) throw new Error(`inferShapes: output ${port.name} of ${subgraph.name} must be ${text(fact)}, got ${text(port)}`);
  }
}

const text = ({ dtype, shape }: Pick<Port, 'dtype' | 'shape'>): string => `${dtype} [${shape.join(',')}]`;
