import type { Dim } from '../kernels/emit.ts';

/** One einsum call, checked: axes of each operand, axes of the output, and the length of every axis. */
export interface EinsumCall {
  readonly operands: readonly string[];
  readonly output: string;
  readonly length: ReadonlyMap<string, Dim>;
  readonly shape: readonly Dim[];
}

/**
 * Parses `bshd,bthd->bhst` against the operands' shapes.
 * Errors: malformed equation, repeated axis in an operand, wrong rank, two lengths for one axis, unknown output axis.
 */
export function parseEinsum(equation: string, shapes: readonly (readonly Dim[])[]): EinsumCall {
  const fail = (rule: string): never => { throw new RangeError(`einsum '${equation}': ${rule}`); };
  const [left, output, ...more] = equation.split('->');
  if (left === undefined || output === undefined || more.length > 0) return fail(`equation must be 'ab,bc->ac', got '${equation}'`);
  const operands = left.split(',');
  if (operands.length !== shapes.length) return fail(`needs ${operands.length} operands, got ${shapes.length}`);
  const length = new Map<string, Dim>();
  operands.forEach((axes, i) => {
    const shape = shapes[i] ?? [];
    if (new Set(axes).size !== axes.length) fail(`operand ${i} must not repeat an axis, got '${axes}'`);
    if (axes.length !== shape.length) fail(`operand ${i} must have axes '${axes}', got shape [${shape}]`);
    [...axes].forEach((axis, j) => {
      const now = shape[j] ?? 0;
      const had = length.get(axis);
      if (had !== undefined && had !== now) fail(`axis '${axis}' is ${had} in an earlier operand but ${now} in operand ${i} [${shape}]`);
      length.set(axis, now);
    });
  });
  const shape = [...output].map((axis) => length.get(axis) ?? fail(`output axis '${axis}' is in no operand`));
  return { operands, output, length, shape };
}
