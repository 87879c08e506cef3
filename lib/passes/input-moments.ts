/** Second moments of the inputs of products, as outputs of the graph: what calibrated rounding needs to know. */
import { prune } from '../graph/compose.ts';
import { int } from '../graph/record.ts';
import type { Constant, Node, Port, Subgraph } from '../graph/subgraph.ts';
import { constantProduct } from './constant-weight.ts';
import { contrib, edgesOf, freshNames, standard } from './pass.ts';
import { infoOf, type WeightInfo } from './weight-report.ts';

export interface InputMoments {
  /** Computes the moments only: one output float32 [K, K] per distinct input, the sum over tokens of x x^T. */
  readonly subgraph: Subgraph;
  /** Name of a weight -> output that holds the moments of its input; products that share an input share the output. */
  readonly outputs: ReadonlyMap<string, string>;
}

/**
 * A graph that sums x x^T over its tokens for each product with a constant matrix that `select` names. What is not
 * needed for it is gone. Divide by the number of tokens for E[x x^T].
 */
export function inputMoments(subgraph: Subgraph, select: (weight: WeightInfo) => boolean = () => true): InputMoments {
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph);
  const byInput = new Map<string, string>(), outputs = new Map<string, string>();
  const nodes: Node[] = [], ports: Port[] = [], constants = new Map<string, Constant>(subgraph.constants);
  for (const node of subgraph.nodes) {
    const product = constantProduct(edges, node);
    if (product === null || !select(infoOf(product))) continue;
    const { x, inputs, weight } = product;
    let output = byInput.get(x);
    if (output === undefined) {
      output = fresh(`moments.${x}`);
      const shape = fresh(`moments.rows${inputs}`), rows = fresh(`${output}.rows`);
      constants.set(shape, { dtype: 'int64', shape: [2], data: BigInt64Array.of(-1n, BigInt(inputs)) });
      nodes.push(standard('Reshape', [x, shape], [rows]), contrib('FusedMatMul', [rows, rows], [output], { transA: int(1) }));
      ports.push({ name: output, dtype: 'float32', shape: [inputs, inputs] });
      byInput.set(x, output);
    }
    outputs.set(weight.name, output);
  }
  return { subgraph: prune({ ...subgraph, nodes: [...subgraph.nodes, ...nodes], outputs: ports, constants }), outputs };
}
