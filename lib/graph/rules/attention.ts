/** Shape rules of normalisations, rotary embedding, attention and the cross entropy. */
import { addDims, divideExactly, mulDims } from '../dims.ts';
import type { Dim, DType } from '../subgraph.ts';
import { dimAt, forAll, mustEqual, shapeText, sharedDType } from './rule.ts';
import type { Fact, Op, Rule, Rules } from './rule.ts';

/** The statistics of a normalisation over the axes from `axis` on: those axes become 1. */
const statistics = (shape: readonly Dim[], axis: number, dtype: DType): Fact => ({ dtype, shape: shape.map((dim, i) => (i < axis ? dim : 1)) });

const normalised = (outputs: 1 | 2 | 3): Rule => (op) => {
  const { dtype, shape } = op.input(0), axis = op.axis(op.int('axis', -1), shape.length);
  const scale = op.input(1).shape;
  scale.forEach((dim, i) => { if (dim !== 1) mustEqual(op, 'the scale and the normalised axes', dim, dimAt(op, op.input(0), i - scale.length)); });
  const more = statistics(shape, axis, 'float32');
  return [{ dtype, shape }, more, more].slice(0, outputs);
};

/** input, skip, gamma, ... -> output, mean, inverse deviation, input + skip. */
const skipNormalised: Rule = (op) => {
  const { dtype, shape } = op.input(0);
  mustEqual(op, 'gamma and the last axis', dimAt(op, op.input(2), -1), dimAt(op, op.input(0), -1));
  const more = statistics(shape, shape.length - 1, 'float32');
  return [{ dtype, shape }, more, more, { dtype, shape }];
};

interface Heads { readonly b: Dim; readonly heads: Dim; readonly s: Dim; readonly width: Dim }

/** [b, heads, s, width] as it stands, or [b, s, heads * width] with the number of heads from an attribute. */
function heads(op: Op, index: number, attribute: string): Heads {
  const { shape } = op.input(index);
  const [b, second, third, fourth] = shape;
  if (b === undefined || second === undefined || third === undefined) return op.fail(`input ${index} must have 3 or 4 axes`, shapeText(shape));
  if (fourth !== undefined) return { b, heads: second, s: third, width: fourth };
  const count = op.int(attribute);
  return { b, heads: count, s: second, width: divideExactly(third, count) ?? op.fail(`the last axis of input ${index} must be a multiple of ${attribute} ${count}`, `${third}`) };
}

/** ai.onnx Attention: Q, K, V, mask?, past key?, past value? -> Y, present key?, present value?, scores?. */
function attention(op: Op): Fact[] {
  const dtype = op.input(0).dtype;
  const [q, k, v] = [heads(op, 0, 'q_num_heads'), heads(op, 1, 'kv_num_heads'), heads(op, 2, 'kv_num_heads')];
  mustEqual(op, 'the widths of Q and K', q.width, k.width);
  mustEqual(op, 'the heads of K and V', k.heads, v.heads);
  mustEqual(op, 'the lengths of K and V', k.s, v.s);
  const past = op.optional(4);
  const total = past === undefined ? k.s : addDims(dimAt(op, past, 2), k.s);
  const flat = op.input(0).shape.length === 3;
  return [
    { dtype, shape: flat ? [q.b, q.s, mulDims(q.heads, v.width)] : [q.b, q.heads, q.s, v.width] },
    { dtype: op.input(1).dtype, shape: [k.b, k.heads, total, k.width] },
    { dtype: op.input(2).dtype, shape: [v.b, v.heads, total, v.width] },
    { dtype, shape: [q.b, q.heads, q.s, total] },
  ];
}

/** com.microsoft MultiHeadAttention without packing: [b, s, hidden] each. */
function multiHeadAttention(op: Op): Fact[] {
  const [q, k, v] = [op.input(0), op.input(1), op.input(2)];
  if ([q, k, v].some((fact) => fact.shape.length !== 3)) op.fail('query, key and value must be [b,s,hidden]', [q, k, v].map((f) => shapeText(f.shape)).join(' '));
  const count = op.int('num_heads');
  const width = (fact: Fact): Dim => divideExactly(fact.shape[2]!, count) ?? op.fail(`hidden must be a multiple of num_heads ${count}`, `${fact.shape[2]}`);
  const past = op.optional(6);
  const total = past === undefined ? k.shape[1]! : addDims(dimAt(op, past, 2), k.shape[1]!);
  const cache = (fact: Fact): Fact => ({ dtype: q.dtype, shape: [q.shape[0]!, count, total, width(fact)] });
  return [{ dtype: q.dtype, shape: [q.shape[0]!, q.shape[1]!, v.shape[2]!] }, cache(k), cache(v)];
}

/** scores [n, classes, ...], labels [n, ...] -> loss (a scalar unless reduction is none), log probabilities. */
function crossEntropy(op: Op): Fact[] {
  const { dtype, shape } = op.input(0), labels = op.input(1).shape;
  const loss = op.text('reduction', 'mean') === 'none' ? labels : [];
  return [{ dtype, shape: loss }, { dtype, shape }];
}

const first: Rule = (op) => [{ dtype: op.input(0).dtype, shape: op.input(0).shape }];

export const attentionRules: Rules = {
  RMSNormalization: normalised(1),
  SimplifiedLayerNormalization: normalised(2),
  LayerNormalization: normalised(3),
  ...forAll(['com.microsoft:SkipSimplifiedLayerNormalization', 'com.microsoft:SkipLayerNormalization'], skipNormalised),
  RotaryEmbedding: (op) => {
    sharedDType(op, [0, 1, 2]);
    return first(op);
  },
  'com.microsoft:RotaryEmbedding': first,
  Attention: attention,
  'com.microsoft:MultiHeadAttention': multiHeadAttention,
  SoftmaxCrossEntropyLoss: crossEntropy,
};
