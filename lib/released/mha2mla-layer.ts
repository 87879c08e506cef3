/** One attention layer of an MHA2MLA checkpoint, of either format, in our layout. */
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import type { ModelConfig } from '../checkpoint/config.ts';
import { mlaTensorName, type MlaExtra, type MlaLayerConfig, type MlaTensor } from '../models/mla-config.ts';
import { computed, renamed, takenRows, type Relaid } from './relaid-checkpoint.ts';

/** Tensor names of a layer, without .weight or .bias; null where the checkpoint has none. */
export interface Mha2MlaNames {
  readonly query: string;
  readonly keyRope: string;
  /** One latent for keys and values. */
  readonly down: string | null;
  /** Or one for each; without it the up matrix of that side takes the hidden state. */
  readonly keyDown: string | null;
  readonly valueDown: string | null;
  readonly keyUp: string;
  readonly valueUp: string;
  readonly output: string;
}

export interface Mha2MlaLayer {
  readonly names: Mha2MlaNames;
  /** Pairs that rotate, ascending, as many for each KV head. */
  readonly kept: readonly (readonly number[])[];
  /** Whether q_proj holds all heads' rotating rows first, then all others. */
  readonly permutedQuery: boolean;
}

type Dims = Pick<ModelConfig, 'hidden' | 'heads' | 'kvHeads' | 'headDim'>;

/** Row indices in the file's tensors, in the order of ours. */
function rowMaps({ heads, kvHeads, headDim }: Dims, { kept, permutedQuery }: Mha2MlaLayer): { queryRope: number[]; queryNope: number[]; keyRope: number[] } {
  const half = headDim / 2;
  const perHead = kept[0]?.length ?? 0; // pairs
  const nopeWidth = headDim - 2 * perHead;
  const slots = Array.from({ length: kvHeads * perHead }, (_, slot) => ({ kvHead: Math.floor(slot / perHead), i: slot % perHead }));
  const members = [0, 1];
  const keyRope = members.flatMap((member) => slots.map(({ kvHead, i }) => kvHead * 2 * perHead + member * perHead + i));
  const headsOf = Array.from({ length: heads }, (_, head) => ({ head, group: Math.floor((head * kvHeads) / heads) }));
  const ropeRow = (head: number, pair: number, i: number, member: number): number =>
    (permutedQuery ? head * 2 * perHead + member * perHead + i : head * headDim + pair + member * half);
  const queryRope = headsOf.flatMap(({ head, group }) => members.flatMap((member) => (kept[group] ?? []).map((pair, i) => ropeRow(head, pair, i, member))));
  const queryNope = headsOf.flatMap(({ head, group }) => {
    if (permutedQuery) return Array.from({ length: nopeWidth }, (_, j) => heads * 2 * perHead + head * nopeWidth + j);
    const rotating = new Set(kept[group]);
    return Array.from({ length: headDim }, (_, element) => element).filter((element) => !rotating.has(element % half)).map((element) => head * headDim + element);
  });
  return { queryRope, queryNope, keyRope };
}

/** The layer's tensors under our names, and its entry in the `mla` block. */
export function relayLayer(base: Checkpoint, layer: number, dims: Dims, frequencies: Float64Array, from: Mha2MlaLayer): { relaid: Relaid[]; config: MlaLayerConfig } {
  const { headDim } = dims;
  const { names, kept } = from;
  const nopeWidth = headDim - 2 * (kept[0]?.length ?? 0);
  const name = (tensor: MlaTensor | MlaExtra, ending: 'weight' | 'bias'): string => `${mlaTensorName(layer, tensor)}.${ending}`;
  const rows = rowMaps(dims, from);
  checkRows(base, layer, dims, from, nopeWidth);
  const relaid: Relaid[] = [];
  for (const ending of ['weight', 'bias'] as const) {
    const there = (prefix: string): boolean => base.tensors.has(`${prefix}.${ending}`);
    if (there(names.query)) {
      relaid.push(takenRows(base, name('queryRope', ending), `${names.query}.${ending}`, rows.queryRope));
      if (nopeWidth > 0) relaid.push(takenRows(base, name('queryNope', ending), `${names.query}.${ending}`, rows.queryNope));
    }
    if (there(names.keyRope)) relaid.push(takenRows(base, name('keyRope', ending), `${names.keyRope}.${ending}`, rows.keyRope));
  }
  const { rank, tensors } = names.down === null ? separateLatents(base, dims, nopeWidth, names, name) : {
    rank: rowsOf(base, names.down),
    tensors: [
      renamed(base, name('down', 'weight'), `${names.down}.weight`),
      ...(nopeWidth === 0 ? [] : [renamed(base, name('keyUp', 'weight'), `${names.keyUp}.weight`)]),
      renamed(base, name('valueUp', 'weight'), `${names.valueUp}.weight`),
    ],
  };
  relaid.push(...tensors, ...outputTensors(base, dims, names, name));
  return { relaid, config: { rank, nopeWidth, frequencies: kept.flatMap((pairs) => pairs.map((pair) => frequencies[pair] ?? NaN)) } };
}

/** The rows a choice of pairs implies; a choice in the wrong unit (dims for pairs) or of another model shows here. */
function checkRows(base: Checkpoint, layer: number, { heads, kvHeads, headDim }: Dims, { names, kept }: Mha2MlaLayer, nopeWidth: number): void {
  const perHead = kept[0]?.length ?? 0;
  const wanted: [string, number][] = [[names.query, heads * headDim], [names.keyRope, kvHeads * 2 * perHead], [names.keyUp, kvHeads * nopeWidth], [names.valueUp, kvHeads * headDim]];
  for (const [prefix, rows] of wanted) {
    const got = rowsOf(base, prefix);
    if (got !== rows) throw new RangeError(`openReleased: tensor ${prefix}.weight of ${base.path} must have ${rows} rows for ${perHead} rotating pairs per head in layer ${layer}, got ${got}`);
  }
}

type NameOf = (tensor: MlaTensor | MlaExtra, ending: 'weight' | 'bias') => string;

function rowsOf(base: Checkpoint, prefix: string): number {
  const rows = base.tensors.get(`${prefix}.weight`)?.shape[0];
  if (rows === undefined) throw new Error(`openReleased: ${base.path} must have tensor ${prefix}.weight`);
  return rows;
}

/** Keys and values with a latent each: ours is the one behind the other, read by block-diagonal up matrices. */
function separateLatents(base: Checkpoint, { hidden, kvHeads, headDim }: Dims, nopeWidth: number, names: Mha2MlaNames, name: NameOf): { rank: number; tensors: Relaid[] } {
  const keys = { down: names.keyDown, up: names.keyUp, rows: kvHeads * nopeWidth };
  const values = { down: names.valueDown, up: names.valueUp, rows: kvHeads * headDim };
  const ranks = [keys, values].map(({ down, up }) => rowsOf(base, down ?? up));
  const rank = ranks.reduce((sum, part) => sum + part, 0);
  const down = computed(name('down', 'weight'), [rank, hidden], async () => {
    const parts = [await base.read(`${names.keyDown ?? names.keyUp}.weight`), await base.read(`${names.valueDown ?? names.valueUp}.weight`)];
    return Float32Array.from(parts.flatMap(({ data }) => Array.from(data)));
  });
  const up = (tensor: 'keyUp' | 'valueUp', side: typeof keys, start: number, width: number): Relaid =>
    computed(name(tensor, 'weight'), [side.rows, rank], async () => {
      const block = side.down === null ? null : (await base.read(`${side.up}.weight`)).data; // none: the latent is the keys or values themselves
      const data = new Float32Array(side.rows * rank);
      for (let row = 0; row < side.rows; row++) {
        if (block === null) data[row * rank + start + row] = 1;
        else data.set(block.subarray(row * width, (row + 1) * width), row * rank + start);
      }
      return data;
    });
  const [keyRank = 0, valueRank = 0] = ranks;
  return { rank, tensors: [down, ...(nopeWidth === 0 ? [] : [up('keyUp', keys, 0, keyRank)]), up('valueUp', values, keyRank, valueRank)] };
}

/**
 * o_proj, with the value bias in its own: softmax weights sum to 1, so b_v passes unchanged. A key bias of the remainder adds
 * the same to all scores of a query, and cancels.
 */
function outputTensors(base: Checkpoint, { hidden, heads, kvHeads, headDim }: Dims, names: Mha2MlaNames, name: NameOf): Relaid[] {
  const weight = renamed(base, name('output', 'weight'), `${names.output}.weight`);
  const ownBias = `${names.output}.bias`;
  const valueBias = `${names.valueUp}.bias`;
  if (!base.tensors.has(valueBias)) return base.tensors.has(ownBias) ? [weight, renamed(base, name('output', 'bias'), ownBias)] : [weight];
  return [weight, computed(name('output', 'bias'), [hidden], async () => {
    const [{ data: output }, { data: added }] = [await weight.read(), await base.read(valueBias)];
    const own = base.tensors.has(ownBias) ? (await base.read(ownBias)).data : null;
    const width = heads * headDim;
    return Float32Array.from({ length: hidden }, (_, row) => {
      let sum = own?.[row] ?? 0;
      for (let column = 0; column < width; column++) {
        const group = Math.floor((Math.floor(column / headDim) * kvHeads) / heads);
        sum += (output[row * width + column] ?? NaN) * (added[group * headDim + (column % headDim)] ?? NaN);
      }
      return sum;
    });
  })];
}
