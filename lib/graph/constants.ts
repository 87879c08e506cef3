/** The constants of a subgraph, counted and listed. */
import { bytesPerElement, elementCount } from '../tensor.ts';
import type { Constant, Node, Subgraph } from './subgraph.ts';

/** Bytes of a constant, wherever it lies. */
export const constantBytes = ({ dtype, shape }: Pick<Constant, 'dtype' | 'shape'>): number => elementCount(shape) * bytesPerElement(dtype);

/** The subgraphs inside a node's attributes: the bodies of Loop, Scan and If. */
export const bodiesOf = (node: Node): Subgraph[] => Object.values(node.attributes).flatMap((a) => (a.kind === 'graph' ? [a.value] : []));

/** All constants, those of bodies included. */
export const allConstants = (subgraph: Subgraph): Constant[] =>
  [...subgraph.constants.values(), ...subgraph.nodes.flatMap(bodiesOf).flatMap(allConstants)];
