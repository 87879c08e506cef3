/** What passes ask of views: the same memory under another shape. */
import { constantNumbers } from './constant-weight.ts';
import { operator, type Edges } from './pass.ts';

/**
 * The lengths a Reshape gives to the edge it writes, -1 for the one that is left over. Null where another node writes the edge,
 * where lengths are computed, and where one is copied from the input (0).
 */
export function viewedAs(edges: Edges, edge: string): readonly number[] | null {
  const node = edges.producer(edge), lengths = node !== undefined && operator(node) === 'Reshape' ? constantNumbers(edges, node.inputs[1]) : null;
  return lengths?.includes(0) === false ? lengths : null;
}

/** Whether elements that lie side by side on one axis lie so in memory: no axis before it is longer than 1. */
export const isOuterAxis = (lengths: readonly number[], axis: number): boolean => axis >= 0 && lengths.slice(0, axis).every((length) => length === 1);
