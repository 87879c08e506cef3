/** Which nodes lie between the variables and the loss, and the stretches that checkpoints cut them into. */
import type { Node, Subgraph } from '../graph/subgraph.ts';

export interface Stretch {
  readonly nodes: readonly Node[];
  /** Edges of earlier stretches that this one reads. */
  readonly inputs: readonly string[];
  /** Edges that are read after it. */
  readonly results: readonly string[];
  /** Whether it lies between two checkpoints. */
  readonly between: boolean;
}

export interface Segments {
  /** Nodes off the way that need nothing on it. */
  readonly before: readonly Node[];
  readonly stretches: readonly Stretch[];
  /** Nodes off the way that read what lies on it. */
  readonly after: readonly Node[];
}

export interface SegmentOptions {
  readonly loss: string;
  readonly wrt: readonly string[];
  readonly checkpoints: readonly string[];
  /** Only real numbers pass a change on; a shape or a comparison does not. */
  readonly isFloat: (edge: string) => boolean;
}

/** Nodes whose results a change of `from` reaches, `from` included as edges. */
function reached(nodes: readonly Node[], from: ReadonlySet<string>, passes: (edge: string) => boolean): Set<string> {
  const edges = new Set(from);
  for (const node of nodes) if (node.inputs.some((name) => edges.has(name))) for (const name of node.outputs.filter(passes)) edges.add(name);
  return edges;
}

/** `subgraph` is pruned to the outputs that stay. */
export function splitSegments(subgraph: Subgraph, { loss, wrt, checkpoints, isFloat }: SegmentOptions): Segments {
  const changing = reached(subgraph.nodes, new Set(wrt), isFloat);
  const leading = new Set([loss]);
  for (const node of [...subgraph.nodes].reverse()) if (node.outputs.some((name) => leading.has(name))) for (const name of node.inputs) leading.add(name);
  const onWay = (node: Node): boolean =>
    node.inputs.some((name) => changing.has(name)) && node.outputs.some((name) => changing.has(name) && leading.has(name));
  const way = subgraph.nodes.filter(onWay);
  const made = new Set(way.flatMap((node) => node.outputs));
  const dependent = reached(subgraph.nodes, made, () => true);
  const off = subgraph.nodes.filter((node) => !onWay(node));
  const isAfter = (node: Node): boolean => node.inputs.some((name) => dependent.has(name));

  const ends = way.flatMap((node, i) => (node.outputs.some((name) => checkpoints.includes(name)) ? [i + 1] : []));
  const bounds = [0, ...ends, way.length];
  const groups = bounds.slice(1).map((end, i) => way.slice(bounds[i], end)).filter((group) => group.length > 0);
  const ports = new Set([...subgraph.outputs.map((port) => port.name), ...wrt]);
  const stretches = groups.map((nodes, i): Stretch => {
    const own = new Set(nodes.flatMap((node) => node.outputs));
    const reads = new Set(nodes.flatMap((node) => node.inputs));
    const elsewhere = new Set(subgraph.nodes.filter((node) => !nodes.includes(node)).flatMap((node) => node.inputs));
    return {
      nodes,
      inputs: [...reads].filter((name) => made.has(name) && !own.has(name)),
      results: [...own].filter((name) => elsewhere.has(name) || ports.has(name)),
      between: i > 0 && i < groups.length - 1,
    };
  });
  return { before: off.filter((node) => !isAfter(node)), stretches, after: off.filter(isAfter) };
}
