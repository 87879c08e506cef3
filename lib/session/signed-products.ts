/** What this processor does with products of unsigned and signed bytes. */
import { openRuntime } from '../graph/runtime.ts';
import type { HostTensor, Subgraph } from '../graph/subgraph.ts';
import { standard } from '../passes/pass.ts';

/** One row, as a step has it, and more than any kernel takes at once. */
const ROWS = [1, 67] as const;
/** Enough for every kernel's unrolled part and a rest. */
const INNER = 131;
const COLUMNS = 37;

/**
 * Whether the engine multiplies uint8 by int8 exactly here, asked once per process with codes of the largest magnitude.
 * Without VNNI (or dot products on ARM) it adds pairs of products in 16 bits, which saturate: 2 x 255 x 127 > 2^15.
 * lib/passes/sign-codes.ts says what it is good for. Costs a few milliseconds.
 */
export const signedProductsAreExact = (): Promise<boolean> => (answer ??= ask());

let answer: Promise<boolean> | null = null;

async function ask(): Promise<boolean> {
  for (const rows of ROWS) if (!(await isExact(rows, true)) || !(await isExact(rows, false))) return false;
  return true;
}

/** One product with the signed side as a constant, which the engine packs beforehand, or as an input. */
async function isExact(rows: number, isConstant: boolean): Promise<boolean> {
  const left: HostTensor<'uint8'> = { dtype: 'uint8', shape: [rows, INNER], data: new Uint8Array(rows * INNER).fill(255) };
  // Columns of largest positive and of largest negative codes in turn.
  const right: HostTensor<'int8'> = { dtype: 'int8', shape: [INNER, COLUMNS], data: Int8Array.from({ length: INNER * COLUMNS }, (_, at) => (at % COLUMNS % 2 === 0 ? 127 : -127)) };
  const subgraph: Subgraph = {
    name: 'signed-product', nodes: [standard('MatMulInteger', ['left', 'right'], ['sums'])], constants: new Map(isConstant ? [['right', right]] : []),
    inputs: [{ name: 'left', dtype: 'uint8', shape: [rows, INNER] }, ...(isConstant ? [] : [{ name: 'right', dtype: 'int8', shape: [INNER, COLUMNS] } as const])],
    outputs: [{ name: 'sums', dtype: 'int32', shape: [rows, COLUMNS] }],
  };
  const runtime = await openRuntime(subgraph, { threads: 1 });
  try {
    const { sums } = await runtime.run(isConstant ? { left } : { left, right });
    return sums?.dtype === 'int32' && sums.data.every((sum, at) => sum === (at % COLUMNS % 2 === 0 ? 255 : -255) * 127 * INNER);
  } finally {
    await runtime.release();
  }
}
