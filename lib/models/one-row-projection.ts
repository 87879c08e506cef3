/** The one projection that makes queries and the cached row of a merged layer whose row lies in one array. */
import type { Constant, HostTensor } from '../graph/subgraph.ts';
import { constantValues } from '../passes/constant-weight.ts';
import { mergedTensorName } from './merge-up-projections.ts';
import { mlaTensorName } from './mla-config.ts';
import type { Model } from './model.ts';

/** Name of that projection's tensor without its ending. */
export const oneRowTensorName = (layer: number): string => `model.layers.${layer}.self_attn.query_and_row_proj`;

/**
 * The constants of mergeUpProjections with four projections of the given layers laid into each other: of every head its
 * rope query [m, d] and its latent query [c, d], then rope key and latent: [(h + 1)(m + c), d], as kernels/merged-attention.ts
 * wants them. What it replaces is left out; no number changes.
 */
export function oneRowProjections({ config: { heads } }: Pick<Model, 'config'>, constants: ReadonlyMap<string, Constant>, layers: readonly number[]): ReadonlyMap<string, Constant> {
  const laid = new Map(constants);
  for (const layer of layers) {
    const names = [mergedTensorName(layer, 'queryRope'), mergedTensorName(layer, 'queryLatent'), mlaTensorName(layer, 'keyRope'), mlaTensorName(layer, 'down')];
    const taken = (ending: string): (HostTensor<'float32'> | null)[] => names.map((name) => {
      const constant = constants.get(`${name}.${ending}`);
      laid.delete(`${name}.${ending}`);
      return constant === undefined ? null : constantValues(constant);
    });
    const weights = taken('weight').map((weight, i) => {
      if (weight === null) throw new RangeError(`oneRowProjections: weights of layer ${layer} must have ${names[i]}`);
      return weight;
    });
    const biases = taken('bias'), name = oneRowTensorName(layer);
    laid.set(`${name}.weight`, interleaved(weights, heads));
    if (biases.some((bias) => bias !== null)) {
      laid.set(`${name}.bias`, interleaved(biases.map((bias, i) => bias ?? { dtype: 'float32', shape: [weights[i]!.shape[0]!], data: new Float32Array(weights[i]!.shape[0]!) }), heads));
    }
  }
  return laid;
}

/** [rope queries, latent queries, rope key, latent] by outputs -> the rows of both for each head, then those of the row itself. */
function interleaved([ropeQueries, latentQueries, ropeKey, latent]: readonly HostTensor<'float32'>[], heads: number): HostTensor<'float32'> {
  const pieces = [...Array.from({ length: heads }, (_, head) => [ropeQueries, latentQueries].map((part) => headOf(part!.data, head, heads))).flat(), ropeKey!.data, latent!.data];
  const data = new Float32Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    data.set(piece, at);
    at += piece.length;
  }
  const columns = latent!.shape.slice(1);
  return { dtype: 'float32', shape: [data.length / columns.reduce((a, b) => a * b, 1), ...columns], data };
}

const headOf = (data: Float32Array, head: number, heads: number): Float32Array => data.subarray((head * data.length) / heads, ((head + 1) * data.length) / heads);
