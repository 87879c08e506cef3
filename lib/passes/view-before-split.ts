/** Pieces of a tensor that are all looked at another way, from a Split of that other view. */
import { int } from '../graph/record.ts';
import type { Node, Subgraph } from '../graph/subgraph.ts';
import { constantNumbers } from './constant-weight.ts';
import { addedIntegers, edgesOf, freshNames, intAttribute, operator, replaceNodes, soleReader, standard, type Edges } from './pass.ts';
import { isOuterAxis, viewedAs } from './views.ts';

/** A Split into equal pieces that lie behind each other in memory, and how each of them is viewed. */
interface ViewedPieces {
  readonly split: Node;
  readonly views: readonly Node[];
  /** [1, ...]: of a piece. */
  readonly lengths: readonly number[];
}

/**
 * Split of a view, and the same Reshape to [1, ...] of each of its n pieces -> one Reshape to [n, ...] and a Split of that: n nodes
 * less. Numbers stay the same. Only where pieces are equal and lie behind each other, which is known of an input that is a
 * Reshape itself, with nothing longer than 1 before the axis of the Split. Where views meet views, behind mergeReshapes.
 */
export function viewBeforeSplit(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph);
  const replaced = new Map<Node, readonly Node[]>(), { constants, integers } = addedIntegers(fresh);
  for (const { split, views, lengths } of subgraph.nodes.flatMap((node) => viewedPieces(edges, node))) {
    const [input = ''] = split.inputs, [source = ''] = edges.producer(input)?.inputs ?? [], whole = fresh(`${input}.viewed`), ones = integers(`${whole}.lengths`, views.map(() => 1));
    for (const view of views) replaced.set(view, []);
    replaced.set(split, [
      standard('Reshape', [source, integers(`${whole}.shape`, [views.length, ...lengths.slice(1)])], [whole]),
      standard('Split', [whole, ones], views.map((view) => view.outputs[0]!), { axis: int(0) }),
    ]);
  }
  return replaceNodes(subgraph, replaced, constants);
}

function viewedPieces(edges: Edges, node: Node): ViewedPieces[] {
  const sizes = operator(node) === 'Split' ? constantNumbers(edges, node.inputs[1]) : null, input = viewedAs(edges, node.inputs[0] ?? '');
  if (new Set(sizes).size !== 1 || input === null || !isOuterAxis(input, intAttribute(node, 'axis', 0))) return [];
  const views = node.outputs.flatMap((piece) => soleReader(edges, piece) ?? []), viewed = views.map((view) => viewedAs(edges, view.outputs[0]!));
  const [lengths = null] = viewed;
  // One length may be left open, of a whole view as well, but not the one that counts pieces.
  if (views.length !== node.outputs.length || lengths?.[0] !== 1 || viewed.some((own) => own?.join() !== lengths.join())) return [];
  return [{ split: node, views, lengths }];
}
