/** Products with a constant matrix: the shapes in which a linear layer appears in a graph, and the matrix's numbers. */
import { closeSync, openSync, readSync } from 'node:fs';
import type { Constant, HostTensor, Node } from '../graph/subgraph.ts';
import { isStored } from '../graph/subgraph.ts';
import { tensorFromBytes, toFloat32 } from '../tensor.ts';
import { floatAttribute, intAttribute, operator, soleReader, type Edges } from './pass.ts';

/** A constant matrix as some node sees it: through Transposes and widening Casts. */
export interface ConstantMatrix {
  readonly name: string;
  readonly constant: Constant;
  /** Whether the node sees the transposed constant. */
  readonly transposed: boolean;
}

/** y = x W (+ bias) with a constant W: K rows, N columns. */
export interface ConstantProduct {
  readonly x: string;
  readonly weight: ConstantMatrix;
  readonly inputs: number;
  readonly outputs: number;
  /** Edge of a bias that the node itself adds, '' for none. */
  readonly bias: string;
}

const FLOAT32 = 1;

/** The constant behind an edge, looking through Transposes of a matrix and Casts to float32; null for anything else. */
export function constantMatrix(edges: Edges, edge: string): ConstantMatrix | null {
  const constant = edges.constant(edge);
  if (constant !== undefined) return isFloat(constant) ? { name: edge, constant, transposed: false } : null;
  const node = edges.producer(edge);
  const from = node?.inputs[0];
  if (node === undefined || from === undefined) return null;
  if (operator(node) === 'Cast' && intAttribute(node, 'to', 0) === FLOAT32) return constantMatrix(edges, from);
  if (operator(node) !== 'Transpose') return null;
  const behind = constantMatrix(edges, from);
  const perm = node.attributes.perm?.kind === 'ints' ? node.attributes.perm.value.join() : '1,0';
  return behind?.constant.shape.length === 2 && perm === '1,0' ? { ...behind, transposed: !behind.transposed } : null;
}

const isFloat = ({ dtype }: Constant): boolean => dtype === 'float32' || dtype === 'float16' || dtype === 'bfloat16';

/** The node as a product with one constant matrix; null when it is none, e.g. with a batch of matrices or a factor. */
export function constantProduct(edges: Edges, node: Node): ConstantProduct | null {
  const [x = '', w = '', bias = ''] = node.inputs;
  const op = operator(node);
  if (op !== 'MatMul' && op !== 'com.microsoft:FusedMatMul' && op !== 'Gemm') return null;
  const plain = ['transA', 'transBatchA', 'transBatchB'].every((name) => intAttribute(node, name, 0) === 0)
    && floatAttribute(node, 'alpha', 1) === 1 && floatAttribute(node, 'beta', 1) === 1;
  const behind = plain ? constantMatrix(edges, w) : null;
  const [rows, columns] = behind?.constant.shape ?? [];
  if (behind === null || behind.constant.shape.length !== 2 || rows === undefined || columns === undefined) return null;
  const transposed = behind.transposed !== (intAttribute(node, 'transB', 0) === 1);
  return { x, weight: { ...behind, transposed }, inputs: transposed ? columns : rows, outputs: transposed ? rows : columns, bias: op === 'Gemm' ? bias : '' };
}

/** The numbers of a constant edge, few ones: lengths, axes, a factor; null for any other edge. */
export function constantNumbers(edges: Edges, edge: string | undefined): readonly number[] | null {
  const constant = edges.constant(edge ?? '');
  return constant === undefined ? null : Array.from<number | bigint, number>(readConstant(constant).data, Number);
}

/** A constant in memory: read from its file where it is stored. Errors: the file ends too early. */
export function readConstant(constant: Constant): HostTensor {
  if (!isStored(constant)) return constant;
  const { path, offset, bytes } = constant.file;
  const into = new Uint8Array(bytes);
  const file = openSync(path, 'r');
  try {
    for (let done = 0; done < bytes;) {
      const read = readSync(file, into, done, Math.min(bytes - done, 2 ** 30), offset + done);
      if (read === 0) throw new Error(`readConstant: ${path} ends at byte ${offset + done}, but ${bytes} bytes at ${offset} were declared`);
      done += read;
    }
  } finally {
    closeSync(file);
  }
  return tensorFromBytes(constant.dtype, constant.shape, into);
}

/** The elements of a constant as float32. */
export const constantValues = (constant: Constant): HostTensor<'float32'> => toFloat32(readConstant(constant));

/** The Add of a constant bias right behind a product, when nothing else reads the product. */
export function addedBias(edges: Edges, product: Node, outputs: number): { node: Node; bias: string } | null {
  const y = product.outputs[0]!, node = soleReader(edges, y);
  if (node === undefined || operator(node) !== 'Add') return null;
  const bias = node.inputs.find((edge) => edge !== y) ?? '';
  const constant = edges.constant(bias);
  return constant?.dtype === 'float32' && constant.shape.length === 1 && constant.shape[0] === outputs ? { node, bias } : null;
}

/** Tells constants of the same name apart: where a stored one lies, else some 256 of its elements. */
export function constantMark(constant: Constant): string {
  if (isStored(constant)) return `${constant.file.path} ${constant.file.offset}`;
  const { data } = constant, step = Math.max(1, Math.floor(data.length / 256));
  const sample: string[] = [];
  for (let i = 0; i < data.length; i += step) sample.push(String(data[i]));
  return sample.join();
}
