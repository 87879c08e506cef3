/** ONNX operators as words of the vocabulary, whose reverse rules are known: what `differentiate` can go back through. */
import { at } from '../../kernels/at.ts';
import type { Dim } from '../../kernels/emit.ts';
import { rmsNorm } from '../../kernels/rms-norm.ts';
import { productOfDims } from '../graph/dims.ts';
import { gemm, product } from './read-products.ts';
import type { Known, Site } from './site.ts';

/** The operator's results in words. */
export type Reader = (site: Site) => readonly Known[];

type Unary = 'sqrt' | 'exp' | 'log' | 'sigmoid';
const unary = (word: Unary): Reader => ({ g, input }) => [g[word](input(0))];
type Binary = 'add' | 'sub' | 'mul' | 'div';
const binary = (word: Binary): Reader => ({ g, input }) => [g[word](input(0), input(1))];
const reshape: Reader = ({ g, input, result }) => [g.reshape(input(0), result())];
const LETTERS = 'abcdefghijklmnop';

const lastOnly = (site: Site, axis: number): void => {
  const rank = site.shape(0).length;
  if (site.axis(axis, rank) !== rank - 1) site.refuse(`the axis must be the last of ${rank}`, `${axis}`);
};

/** Sums, or means, over any axes. */
const reduction = (mean: boolean): Reader => (site) => {
  const { g } = site;
  const shape = site.shape(0);
  const axes = (site.integers(1, 'axes') ?? shape.map((_, i) => i)).map((axis) => site.axis(axis, shape.length));
  const a = site.input(0);
  if (axes.length === 1 && axes[0] === shape.length - 1) return [g.reshape(mean ? g.mean(a) : g.sum(a), site.result())];
  const letters = [...LETTERS.slice(0, shape.length)];
  const sum = g.reshape(g.einsum(`${letters.join('')}->${letters.filter((_, i) => !axes.includes(i)).join('')}`, a), site.result());
  if (!mean) return [sum];
  const count = productOfDims(axes.map((axis) => at(shape, axis)));
  return [typeof count === 'number' ? g.scale(sum, 1 / count) : g.div(sum, g.sum(g.fill(a, [count], 1)))];
};

const power: Reader = (site) => {
  const { g } = site;
  const exponent = site.number(1);
  if (exponent === 2) return [g.square(site.input(0))];
  if (exponent === 0.5) return [g.sqrt(site.input(0))];
  if (exponent === 1) return [site.input(0)];
  return site.refuse('the exponent must be the constant 2, 1 or 0.5', `${exponent ?? site.node.inputs[1]}`);
};

/** x: [b, s, heads * width] with a count of heads, or [b, heads, s, width]; angles [1, s, n], or rows repeated over the batch. */
const rotary: Reader = (site) => {
  const { g } = site;
  if (site.has(3) || site.int('interleaved', 0) !== 0) site.refuse('only the half-split layout without position ids can be read', 'another layout');
  const [b, s, flat] = site.shape(0);
  if (b === undefined || s === undefined || site.shape(0).length !== 3 || typeof flat !== 'number') return site.refuse('the input must be [b,s,heads*width]', `[${site.shape(0)}]`);
  const heads = site.int('num_heads', 0);
  const angles = (index: number): Known => {
    const maker = site.maker(index);
    const source = maker?.op === 'Expand' ? site.edge(at(maker.inputs, 0)) : site.input(index);
    const shape = g.shape(source);
    if (shape.length !== 3 || shape[0] !== 1) return site.refuse('angles must be the same for every sequence', `[${shape}]`);
    return g.reshape(source, shape.slice(1));
  };
  const cos = angles(1), rotated = site.int('rotary_embedding_dim', 0) || flat / heads, columns = at(g.shape(cos), 1);
  if (typeof columns !== 'number' || rotated !== 2 * columns) return site.refuse(`angles must be [1,s,${rotated / 2}]`, `[${g.shape(cos)}]`);
  return [g.reshape(g.rotate(g.reshape(site.input(0), [b, s, heads, flat / heads]), cos, angles(2)), site.result())];
};

const norm: Reader = (site) => {
  lastOnly(site, site.int('axis', -1));
  return [rmsNorm(site.g, site.input(0), site.input(1), site.float('epsilon', 1e-5))];
};

const selection: Reader = (site) => {
  const { g } = site;
  const indices = site.shape(1);
  lastOnly(site, site.int('axis', 0));
  if (indices.at(-1) !== 1) site.refuse('one index per row must be given', `[${indices}]`);
  return [g.pick(site.input(0), g.reshape(site.input(1), indices.slice(0, -1)))];
};

export const operators: Readonly<Record<string, Reader>> = {
  Add: binary('add'), Sub: binary('sub'), Mul: binary('mul'), Div: binary('div'),
  Sum: ({ g, node, input }) => [node.inputs.map((_, i) => input(i)).reduce((a, b) => g.add(a, b))],
  Sqrt: unary('sqrt'), Exp: unary('exp'), Log: unary('log'), Sigmoid: unary('sigmoid'),
  Neg: ({ g, input }) => [g.scale(input(0), -1)],
  Reciprocal: ({ g, input, result }) => [g.div(g.fill(input(0), result(), 1), input(0))],
  // tanh x = 2 sigmoid(2 x) - 1
  Tanh: ({ g, input }) => [g.shift(g.scale(g.sigmoid(g.scale(input(0), 2)), 2), -1)],
  Pow: power,
  Identity: ({ input }) => [input(0)],
  Cast: (site) => [site.sameType(0) ? site.input(0) : site.refuse('a cast must keep the float type', 'another type')],
  ReduceSum: reduction(false), ReduceMean: reduction(true),
  Softmax: (site) => { lastOnly(site, site.int('axis', -1)); return [site.g.softmax(site.input(0))]; },
  LogSoftmax: (site) => { lastOnly(site, site.int('axis', -1)); const a = site.input(0); return [site.g.sub(a, site.g.logSumExp(a))]; },
  MatMul: product, Gemm: gemm,
  Reshape: reshape, Flatten: reshape, Squeeze: reshape, Unsqueeze: reshape,
  Expand: ({ g, input, result }) => [g.expand(input(0), result())],
  Concat: (site) => [site.g.concat(site.axis(site.int('axis', 0), site.result().length), site.node.inputs.map((_, i) => site.input(i)))],
  Split: (site) => {
    const axis = site.axis(site.int('axis', 0), site.shape(0).length);
    return site.g.split(site.input(0), axis, site.node.outputs.map((_, i): Dim => at(site.result(i), axis)));
  },
  Gather: (site) => [site.axis(site.int('axis', 0), site.shape(0).length) === 0 ? site.g.gather(site.input(0), site.input(1)) : site.refuse('the axis must be 0', `${site.int('axis', 0)}`)],
  GatherElements: selection,
  RotaryEmbedding: rotary,
  RMSNormalization: norm, SimplifiedLayerNormalization: norm,
};
