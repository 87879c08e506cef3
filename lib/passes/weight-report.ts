/** What a quantising pass says of the matrices it met. */
import type { Subgraph } from '../graph/subgraph.ts';
import { constantBytes } from '../graph/constants.ts';
import type { ConstantProduct } from './constant-weight.ts';

/** A constant matrix that a product reads. */
export interface WeightInfo {
  readonly name: string;
  /** As it is stored. */
  readonly shape: readonly number[];
  /** K, the contracted length. */
  readonly inputs: number;
  /** N. */
  readonly outputs: number;
}

export interface QuantisedWeight extends WeightInfo {
  readonly bits: number;
  /** Weights that share a scale. */
  readonly blockSize: number;
  /** ||W - W'|| / ||W||, Frobenius. */
  readonly relativeError: number;
  /** As it was stored. */
  readonly bytesBefore: number;
  /** Codes, scales and zero points. */
  readonly bytesAfter: number;
}

/** A subgraph with an account of what was quantised. */
export interface QuantisedSubgraph extends Subgraph {
  readonly quantised: readonly QuantisedWeight[];
}

export const infoOf = ({ weight, inputs, outputs }: ConstantProduct): WeightInfo => ({ name: weight.name, shape: weight.constant.shape, inputs, outputs });

export const storedBytes = ({ weight }: ConstantProduct): number => constantBytes(weight.constant);

/** Runs `body`; what it throws names the pass and the matrix. */
export function naming<T>(pass: string, weight: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    throw new Error(`${pass}: ${weight}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
}
