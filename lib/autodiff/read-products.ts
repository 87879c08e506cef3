/** Matrix products as einsum, with transpositions of their operands taken into the equation. */
import { at } from '../../kernels/at.ts';
import type { Known, Site } from './site.ts';

const BATCH = 'abcdefghijklm';

/** An operand with letters for its axes as the product sees them, traced back through a transposition. */
function lettered(site: Site, index: number, letters: string): { value: Known; axes: string } {
  const { source, order } = site.turned(index);
  const axes = order.map(() => '');
  order.forEach((from, to) => { axes[from] = letters[to] ?? ''; });
  return { value: source, axes: axes.join('') };
}

/** As `lettered`, but axes of length 1 that meet longer ones are left out: they are broadcast. */
function broadcastable(site: Site, index: number, letters: string, lead: string): { value: Known; axes: string } {
  const shape = site.shape(index);
  const result = site.result();
  const gone = [...letters].map((letter, i) => lead.includes(letter) && shape[i] === 1 && result[lead.indexOf(letter)] !== 1);
  if (!gone.includes(true)) return lettered(site, index, letters);
  const kept = <T>(list: readonly T[]): T[] => list.filter((_, i) => gone[i] !== true);
  return { value: site.g.reshape(site.input(index), kept(shape)), axes: kept([...letters]).join('') };
}

/** MatMul of numpy: rows y, columns z, contracted x, batch axes aligned at the end. */
export function product(site: Site): Known[] {
  const [left, right] = [site.shape(0).length, site.shape(1).length];
  const batch = Math.max(left, right, 2) - 2;
  const lead = BATCH.slice(0, batch);
  const lettersOf = (rank: number, matrix: string): string => (rank === 1 ? 'x' : lead.slice(batch - (rank - 2)) + matrix);
  const a = broadcastable(site, 0, lettersOf(left, 'yx'), lead);
  const b = broadcastable(site, 1, lettersOf(right, 'xz'), lead);
  const output = lead + (left === 1 ? '' : 'y') + (right === 1 ? '' : 'z');
  return [site.g.einsum(`${a.axes},${b.axes}->${output}`, a.value, b.value)];
}

/** alpha A B + beta C. */
export function gemm(site: Site): Known[] {
  const { g } = site;
  const a = lettered(site, 0, site.int('transA', 0) === 1 ? 'xy' : 'yx');
  const b = lettered(site, 1, site.int('transB', 0) === 1 ? 'zx' : 'xz');
  const result = g.scale(g.einsum(`${a.axes},${b.axes}->yz`, a.value, b.value), site.float('alpha', 1));
  return [site.has(2) ? g.add(result, g.scale(site.input(2), site.float('beta', 1))) : result];
}

/** Transpose, remembered so that a product can take it in. */
export function transposition(site: Site): { order: readonly number[]; value: Known } {
  const rank = site.shape(0).length;
  const order = site.integers(1, 'perm') ?? Array.from({ length: rank }, (_, i) => rank - 1 - i);
  const letters = 'abcdefghijklmnop'.slice(0, rank);
  return { order, value: site.g.einsum(`${letters}->${order.map((axis) => at([...letters], axis)).join('')}`, site.input(0)) };
}
