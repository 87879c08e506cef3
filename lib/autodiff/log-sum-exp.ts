/** log(sum(exp(a - max a))) + max a, the way the recorder spells `logSumExp`, recognised: the maximum itself has no rule. */
import { sameDim } from '../graph/dims.ts';
import type { Node, Subgraph } from '../graph/subgraph.ts';
import type { Facts } from './site.ts';

export interface LogSumExps {
  /** Operand edge by the last node of a pattern. */
  readonly operands: ReadonlyMap<Node, string>;
  /** Nodes that nothing outside their pattern reads. */
  readonly inside: ReadonlySet<Node>;
}

export function findLogSumExps(subgraph: Subgraph, makers: ReadonlyMap<string, Node>, facts: Facts): LogSumExps {
  const readers = new Map<string, Node[]>();
  for (const node of subgraph.nodes) for (const edge of node.inputs) readers.set(edge, [...(readers.get(edge) ?? []), node]);
  const outputs = new Set(subgraph.outputs.map((port) => port.name));
  const operands = new Map<Node, string>(), inside = new Set<Node>();
  for (const node of subgraph.nodes) {
    const nodes = patternAt(node, makers);
    const operand = nodes?.[0]?.inputs[0];
    if (nodes === null || operand === undefined || !overLast(facts, operand, nodes[0]?.outputs[0] ?? '')) continue;
    operands.set(node, operand);
    for (const part of nodes) {
      if (part.outputs.every((edge) => !outputs.has(edge) && (readers.get(edge) ?? []).every((reader) => reader === node || nodes.includes(reader)))) inside.add(part);
    }
  }
  return { operands, inside };
}

/** [ReduceMax, Sub, Exp, ReduceSum, Log] in front of an Add that ends the pattern, or null. */
function patternAt(node: Node, makers: ReadonlyMap<string, Node>): Node[] | null {
  if (node.op !== 'Add') return null;
  const made = (edge: string | undefined, op: string): Node | null => {
    const maker = makers.get(edge ?? '');
    return maker !== undefined && maker.op === op && maker.domain === '' ? maker : null;
  };
  for (const [x, y] of [[0, 1], [1, 0]] as const) {
    const log = made(node.inputs[x], 'Log'), top = made(node.inputs[y], 'ReduceMax');
    const sum = made(log?.inputs[0], 'ReduceSum');
    const exp = made(sum?.inputs[0], 'Exp');
    const sub = made(exp?.inputs[0], 'Sub');
    if (log === null || top === null || sum === null || exp === null || sub === null) continue;
    if (sub.inputs[0] === top.inputs[0] && sub.inputs[1] === top.outputs[0] && sum.inputs[1] === top.inputs[1]) return [top, sub, exp, sum, log];
  }
  return null;
}

/** Whether a reduction went over the last axis only, which stayed. */
function overLast(facts: Facts, operand: string, result: string): boolean {
  const shape = facts.get(operand)?.shape ?? [], reduced = facts.get(result)?.shape ?? [];
  return shape.length === reduced.length && shape.every((dim, i) => sameDim(reduced[i] ?? 0, i === shape.length - 1 ? 1 : dim));
}
