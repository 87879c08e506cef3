/** What a shape rule sees of a node, and the arithmetic on shapes that the families share. */
import type { Dim, DType, HostTensor, Node } from '../subgraph.ts';
import { mulDims, sameDim } from '../dims.ts';

/**
 * What is known of an edge before anything runs. `values`: the elements of a small integer vector or scalar when they
 * are known, possibly symbolic: a computed shape, an axis list.
 */
export interface Fact {
  readonly dtype: DType;
  readonly shape: readonly Dim[];
  readonly values?: readonly Dim[] | undefined;
}

/** A node with the facts of its inputs. Readers throw, naming the node, when what they are asked for is absent. */
export interface Op {
  readonly node: Node;
  readonly count: number;
  input(index: number): Fact;
  /** undefined when the optional input is absent. */
  optional(index: number): Fact | undefined;
  /** The known elements of an integer input. */
  values(index: number): readonly Dim[];
  /** The known elements of an integer input that must not be symbolic. */
  numbers(index: number): readonly number[];
  /** An int attribute; without a fallback it is required. */
  int(name: string, fallback?: number): number;
  ints(name: string): readonly number[] | undefined;
  text(name: string, fallback: string): string;
  tensor(name: string): HostTensor | undefined;
  /** An axis counted from the front, -1 meaning the last. */
  axis(value: number, rank: number): number;
  fail(rule: string, got: string): never;
}

/** Facts of the outputs, in order. */
export type Rule = (op: Op) => readonly Fact[];
export type Rules = Readonly<Record<string, Rule>>;

export const shapeText = (shape: readonly Dim[]): string => `[${shape.join(',')}]`;

/** Numpy broadcasting; symbolic lengths broadcast with 1 and with the same expression only. */
export function broadcast(op: Op, shapes: readonly (readonly Dim[])[]): Dim[] {
  const rank = Math.max(0, ...shapes.map((shape) => shape.length));
  return Array.from({ length: rank }, (_, i) => {
    let result: Dim = 1;
    for (const shape of shapes) {
      const dim = shape[i - (rank - shape.length)] ?? 1;
      if (dim === 1) continue;
      if (result !== 1 && !sameDim(result, dim)) op.fail('shapes must broadcast', shapes.map(shapeText).join(' and '));
      result = dim;
    }
    return result;
  });
}

/** Refuses inputs of different dtypes and returns the one they share. */
export function sharedDType(op: Op, indices: readonly number[]): DType {
  const facts = indices.map((i) => op.input(i));
  const dtype = facts[0]!.dtype;
  if (facts.some((fact) => fact.dtype !== dtype)) op.fail('inputs must share a dtype', facts.map((fact) => fact.dtype).join(' and '));
  return dtype;
}

/** All indices of the inputs that are present. */
export const present = (op: Op): number[] => Array.from({ length: op.count }, (_, i) => i).filter((i) => op.optional(i) !== undefined);

/** Refuses two lengths that are not the same expression. */
export function mustEqual(op: Op, what: string, a: Dim, b: Dim): void {
  if (!sameDim(a, b)) op.fail(`${what} must be equal`, `${a} and ${b}`);
}

/** The last of a shape, counted from the end; refuses a rank too small. */
export function dimAt(op: Op, fact: Fact, axis: number): Dim {
  return fact.shape[axis < 0 ? fact.shape.length + axis : axis] ?? op.fail(`an input must have an axis ${axis}`, shapeText(fact.shape));
}

export const withoutValues = ({ dtype, shape }: Fact): Fact => ({ dtype, shape });

/** Several copies of the same rule under several names. */
export const forAll = (names: readonly string[], rule: Rule): Rules => Object.fromEntries(names.map((name) => [name, rule]));

export const scaled = (shape: readonly Dim[], axis: number, factor: number): Dim[] => shape.map((dim, i) => (i === axis ? mulDims(dim, factor) : dim));
