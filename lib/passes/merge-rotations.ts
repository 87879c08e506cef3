/** Rotations by the same angles as one node: queries and the new key of a decoding step. */
import { int } from '../graph/record.ts';
import type { Node, Subgraph } from '../graph/subgraph.ts';
import { constantNumbers } from './constant-weight.ts';
import { addedIntegers, edgesOf, freshNames, intAttribute, operator, replaceNodes, soleReader, standard, type Edges } from './pass.ts';

/** A Split along the last axis, with the pieces that go into rotations of the same angles. */
interface Pieces {
  readonly split: Node;
  readonly sizes: readonly number[];
  /** Consecutive pieces, by index. */
  readonly from: number;
  readonly rotations: readonly Node[];
}

/**
 * RotaryEmbedding nodes with the same angles and width of a head, on neighbouring pieces of one Split -> one node on the
 * undivided piece, and a Split behind it. Numbers stay the same. In a graph that appends to its cache this also makes
 * queries and new key two outputs of one node, which appendsAreOrdered needs.
 */
export function mergeRotations(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph);
  const replaced = new Map<Node, readonly Node[]>(), { constants, integers: lengths } = addedIntegers(fresh);
  for (const { split, sizes, from, rotations } of subgraph.nodes.flatMap((node) => piecesOf(edges, node) ?? [])) {
    const first = rotations[0]!, count = rotations.length, own = sizes.slice(from, from + count);
    const piece = fresh(`${split.inputs[0]!}.rotating`), rotated = fresh(`${piece}.rotated`);
    const whole = [...sizes.slice(0, from), own.reduce((a, b) => a + b, 0), ...sizes.slice(from + count)];
    const heads = rotations.reduce((sum, node) => sum + intAttribute(node, 'num_heads', 0), 0);
    const outputs = [...split.outputs.slice(0, from), piece, ...split.outputs.slice(from + count)];
    const isWhole = outputs.length === 1;
    replaced.set(split, isWhole ? [] : [standard('Split', [split.inputs[0]!, lengths(`${piece}.lengths`, whole)], outputs, { axis: int(-1) })]);
    for (const node of rotations) replaced.set(node, []);
    replaced.set(first, [
      standard('RotaryEmbedding', [isWhole ? split.inputs[0]! : piece, ...first.inputs.slice(1)], [rotated], { ...first.attributes, num_heads: int(heads) }),
      standard('Split', [rotated, lengths(`${rotated}.lengths`, own)], rotations.map((node) => node.outputs[0]!), { axis: int(-1) }),
    ]);
  }
  return replaceNodes(subgraph, replaced, constants);
}

/** The first run of two or more neighbouring pieces that are rotated alike and read by nothing else. */
function piecesOf(edges: Edges, split: Node): Pieces | null {
  const sizes = operator(split) === 'Split' && intAttribute(split, 'axis', 0) === -1 ? constantNumbers(edges, split.inputs[1]) : null;
  if (sizes === null) return null;
  const rotations = split.outputs.map((edge): Node | null => {
    const reader = soleReader(edges, edge);
    return reader !== undefined && operator(reader) === 'RotaryEmbedding' && reader.inputs[0] === edge ? reader : null;
  });
  const key = (index: number): string | null => {
    const node = rotations[index] ?? null;
    if (node === null) return null;
    const { num_heads: _heads, ...others } = node.attributes;
    return JSON.stringify([node.inputs.slice(1), others, sizes[index]! / intAttribute(node, 'num_heads', 0)]);
  };
  const from = rotations.findIndex((node, i) => node !== null && key(i) === key(i + 1));
  if (from < 0) return null;
  let end = from + 1;
  while (end < rotations.length && key(end) === key(from)) end++;
  return { split, sizes, from, rotations: rotations.slice(from, end).filter((node) => node !== null) };
}
