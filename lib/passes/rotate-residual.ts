/** Rotation of the residual stream: the same function of the tokens, without the outliers that make 8 bits coarse. */
import type { Constant, HostTensor, Node, Subgraph } from '../graph/subgraph.ts';
import { int } from '../graph/record.ts';
import { constantValues, type ConstantProduct } from './constant-weight.ts';
import { contrib, edgesOf, freshNames, replaceNodes, standard } from './pass.ts';
import { residualStream } from './residual-stream.ts';
import { gainOf } from './rms-norm-pattern.ts';
import { mixingRotation, rotateColumns, rotateRows, type Rotation } from './rotation.ts';

const GAIN_SUFFIX = '.rotated_gain';

/** Whether a constant is the small matrix in front of a tied head that rotateResidual adds; it is best left in float32. */
export const isRotatedGain = (name: string): boolean => name.endsWith(GAIN_SUFFIX);

/**
 * With h the residual stream and R an orthogonal matrix, the graph computes h R instead: R goes into the embedding, into
 * the matrices behind the norms (with the norms' gains, which become 1), and R^T into those that write to the stream. An
 * RMS norm without a gain does not see it. A head that shares the embedding's matrix E keeps sharing it: E R, behind one
 * product with R^T diag(gain) R, [width, width].
 *
 * Numbers stay the same up to rounding; inputs of the products lose their few huge channels, so rounding them to 8 bits
 * costs much less. All matrices of the stream become float32 constants in memory, so quantise right behind it. A graph
 * whose stream is not understood (see residualStream) comes back unchanged.
 * Source: Ashkboos et al. 2024 (QuaRot), section 4, stage 1.
 */
export function rotateResidual(subgraph: Subgraph, { seed = 0 }: { readonly seed?: number } = {}): Subgraph {
  const stream = residualStream(subgraph);
  if (stream === null) return subgraph;
  const { width, table, lookup } = stream;
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph), rotation = mixingRotation(width, seed);
  const replaced = new Map<Node, readonly Node[]>(), constants = new Map<string, Constant>();
  const constant = (name: string, shape: readonly number[], data: Float32Array): string => {
    const tensor: HostTensor = { dtype: 'float32', shape, data };
    const edge = fresh(name);
    constants.set(edge, tensor);
    return edge;
  };
  const gains = new Map<string, string>(), widened = new Map<string, Constant>();
  const gainValues = stream.norms.map(({ norm }) => {
    const edge = gainOf(edges, norm.gain, gains, widened, fresh);
    const values = edge === null ? undefined : widened.get(edge) ?? edges.constant(edge);
    return values === undefined ? null : constantValues(values).data;
  });
  if (gainValues.some((gain) => gain?.length !== width)) return subgraph;

  const embedding = constant(`${table.name}.rotated`, table.constant.shape, rotateRows(rotation, constantValues(table.constant).data, null));
  replaced.set(lookup, [{ ...lookup, inputs: [embedding, ...lookup.inputs.slice(1)] }]);
  const ones = constant('residual.ones', [width], new Float32Array(width).fill(1));
  stream.norms.forEach(({ node, norm, readers }, i) => {
    const gain = gainValues[i] ?? null;
    replaced.set(node, [{ ...node, inputs: node.inputs.map((edge) => (edge === norm.gain ? ones : edge)) }]);
    for (const { node: reader, weight, outputs, x } of readers) {
      if (weight.name === table.name) {
        const gained = fresh(`${x}.gained`), square = constant(`${table.name}${GAIN_SUFFIX}`, [width, width], rotatedDiagonal(rotation, gain ?? new Float32Array(width).fill(1)));
        replaced.set(reader, [standard('MatMul', [x, square], [gained]), product(gained, embedding, reader)]);
      } else {
        const rotated = constant(`${weight.name}.rotated`, [outputs, width], rotateRows(rotation, outputMajor({ weight, outputs, inputs: width }), gain));
        replaced.set(reader, [product(x, rotated, reader)]);
      }
    }
  });
  for (const { product: writer, bias, biasNode } of stream.writers) {
    const rotated = constant(`${writer.weight.name}.rotated`, [width, writer.inputs], rotateColumns(rotation, outputMajor(writer)));
    replaced.set(writer.node, [product(writer.x, rotated, writer.node)]);
    if (biasNode === null) continue;
    const turned = constant(`${bias}.rotated`, [width], rotateRows(rotation, constantValues(edges.constant(bias)!).data, null));
    replaced.set(biasNode, [{ ...biasNode, inputs: biasNode.inputs.map((edge) => (edge === bias ? turned : edge)) }]);
  }
  return replaceNodes(subgraph, replaced, constants);
}

/** y = x W^T in place of a product, W as checkpoints store it. */
const product = (x: string, weight: string, old: Node): Node => contrib('FusedMatMul', [x, weight], old.outputs, { transB: int(1) });

/** The matrix of a product as [outputs, inputs]. */
function outputMajor({ weight, outputs, inputs }: Pick<ConstantProduct, 'weight' | 'outputs' | 'inputs'>): Float32Array {
  const { data } = constantValues(weight.constant);
  if (weight.transposed) return data;
  const turned = new Float32Array(data.length);
  for (let i = 0; i < inputs; i++) for (let output = 0; output < outputs; output++) turned[output * inputs + i] = data[i * outputs + output]!;
  return turned;
}

/** R^T diag(gain) R. */
function rotatedDiagonal(rotation: Rotation, gain: Float32Array): Float32Array {
  const diagonal = new Float32Array(gain.length ** 2);
  gain.forEach((value, i) => { diagonal[i * gain.length + i] = value; });
  return rotateColumns(rotation, rotateRows(rotation, diagonal, null));
}
