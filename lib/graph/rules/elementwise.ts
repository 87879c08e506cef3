/** Shape rules of operators that work element by element, with broadcasting, and of conversions. */
import { dtypeOfOnnx } from '../onnx.ts';
import { addDims, divideExactly, mulDims, subDims } from '../dims.ts';
import type { Dim, DType } from '../subgraph.ts';
import { broadcast, forAll, present, sharedDType } from './rule.ts';
import type { Op, Rule, Rules } from './rule.ts';

const FLOATS: readonly DType[] = ['float32', 'float64', 'float16', 'bfloat16'];

/** Same shape and dtype as the first input. */
const same: Rule = (op) => [{ dtype: op.input(0).dtype, shape: op.input(0).shape }];

const sameFloat: Rule = (op) => {
  if (!FLOATS.includes(op.input(0).dtype)) op.fail('the input must be floating point', op.input(0).dtype);
  return same(op);
};

type Arithmetic = (a: Dim, b: Dim) => Dim | null;

/** Broadcasting over all inputs; known integers are computed along when `compute` can. */
const arithmetic = (compute: Arithmetic = () => null): Rule => (op) => {
  const inputs = present(op).map((i) => op.input(i));
  const dtype = sharedDType(op, present(op));
  const shape = broadcast(op, inputs.map((fact) => fact.shape));
  const lists = inputs.flatMap((fact) => (fact.values === undefined ? [] : [fact.values]));
  if (lists.length < inputs.length || shape.length > 1) return [{ dtype, shape }];
  const length = Math.max(...lists.map((list) => list.length));
  const values: Dim[] = [];
  for (let i = 0; i < length; i++) {
    const [first, ...rest] = lists.map((list) => (list.length === 1 ? list[0]! : list[i]!));
    const value = rest.reduce<Dim | null>((a, b) => (a === null ? null : compute(a, b)), first!);
    if (value === null) return [{ dtype, shape }];
    values.push(value);
  }
  return [{ dtype, shape, values }];
};

const onNumbers = (f: (a: number, b: number) => number): Arithmetic => (a, b) => (typeof a === 'number' && typeof b === 'number' ? f(a, b) : null);
/** Integer division rounds towards zero; of symbolic lengths only exact division is known. */
const quotient: Arithmetic = (a, b) => (typeof a === 'number' && typeof b === 'number' ? (b === 0 ? null : Math.trunc(a / b)) : divideExactly(a, b));

const compare: Rule = (op) => {
  sharedDType(op, [0, 1]);
  return [{ dtype: 'bool', shape: broadcast(op, [op.input(0).shape, op.input(1).shape]) }];
};

const logical: Rule = (op) => {
  const inputs = present(op).map((i) => op.input(i));
  const wrong = inputs.find((fact) => fact.dtype !== 'bool');
  if (wrong !== undefined) op.fail('inputs must be bool', wrong.dtype);
  return [{ dtype: 'bool', shape: broadcast(op, inputs.map((fact) => fact.shape)) }];
};

/** The dtype an int attribute such as `to` names. */
export function dtypeAttribute(op: Op, name: string, fallback?: number): DType {
  const number = op.int(name, fallback);
  return dtypeOfOnnx(number) ?? op.fail(`${name} must be a dtype the library holds`, `${number}`);
}

export const elementwise: Rules = {
  Add: arithmetic(addDims),
  Sub: arithmetic(subDims),
  Mul: arithmetic(mulDims),
  Div: arithmetic(quotient),
  Mod: arithmetic(),
  Max: arithmetic(onNumbers(Math.max)),
  Min: arithmetic(onNumbers(Math.min)),
  Sum: arithmetic(),
  Mean: arithmetic(),
  ...forAll(['BitShift', 'BitwiseAnd', 'BitwiseOr', 'BitwiseXor'], arithmetic()),
  // The exponent may have a dtype of its own.
  Pow: (op) => [{ dtype: op.input(0).dtype, shape: broadcast(op, [op.input(0).shape, op.input(1).shape]) }],
  ...forAll(['Equal', 'Greater', 'GreaterOrEqual', 'Less', 'LessOrEqual'], compare),
  ...forAll(['And', 'Or', 'Xor', 'Not'], logical),
  ...forAll(['IsNaN', 'IsInf'], (op) => [{ dtype: 'bool', shape: op.input(0).shape }]),
  Where: (op) => {
    if (op.input(0).dtype !== 'bool') op.fail('the condition must be bool', op.input(0).dtype);
    return [{ dtype: sharedDType(op, [1, 2]), shape: broadcast(op, [0, 1, 2].map((i) => op.input(i).shape)) }];
  },
  ...forAll(['Abs', 'Neg', 'Sign', 'Clip', 'Relu', 'CumSum', 'Trilu'], same),
  ...forAll([
    'Ceil', 'Cos', 'Elu', 'Erf', 'Exp', 'Floor', 'Gelu', 'HardSigmoid', 'HardSwish', 'LeakyRelu', 'Log', 'LogSoftmax', 'Mish', 'Reciprocal', 'Round',
    'Sigmoid', 'Sin', 'Softmax', 'Softplus', 'Softsign', 'Sqrt', 'Swish', 'Tanh', 'com.microsoft:QuickGelu', 'com.microsoft:Gelu',
  ], sameFloat),
  'com.microsoft:FastGelu': sameFloat,
  'com.microsoft:BiasGelu': sameFloat,
  Dropout: (op) => [{ dtype: op.input(0).dtype, shape: op.input(0).shape }, { dtype: 'bool', shape: op.input(0).shape }],
  Identity: (op) => [op.input(0)],
  Cast: (op) => {
    const dtype = dtypeAttribute(op, 'to');
    return [{ dtype, shape: op.input(0).shape, values: FLOATS.includes(dtype) || dtype === 'bool' ? undefined : op.input(0).values }];
  },
  CastLike: (op) => [{ dtype: op.input(1).dtype, shape: op.input(0).shape }],
  DequantizeLinear: (op) => [{ dtype: op.int('output_dtype', 0) === 0 ? op.input(1).dtype : dtypeAttribute(op, 'output_dtype'), shape: op.input(0).shape }],
  QuantizeLinear: (op) => {
    const zero = op.optional(2);
    const named = op.int('output_dtype', 0);
    return [{ dtype: zero?.dtype ?? (named === 0 ? 'uint8' : dtypeAttribute(op, 'output_dtype')), shape: op.input(0).shape }];
  },
  DynamicQuantizeLinear: (op) => [{ dtype: 'uint8', shape: op.input(0).shape }, { dtype: 'float32', shape: [] }, { dtype: 'uint8', shape: [] }],
};
