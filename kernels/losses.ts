/**
 * What training makes small. Dimension key: b batch, s tokens, d hidden, w vocabulary entries. The logits of all tokens
 * at once would be the largest tensor of a training step, so the losses over the vocabulary go through the tokens in
 * chunks: the logits of one chunk are made, used and gone.
 */
import { at } from './at.ts';
import type { Emit } from './emit.ts';
import { logits, negativeLogLikelihood } from './logits.ts';

/** Consecutive pieces of at most `chunk` tokens of a [1, n, ...]. */
function chunksOf<V>(g: Emit<V>, a: V, chunk: number): V[] {
  const tokens = at(g.shape(a), 1);
  if (typeof tokens !== 'number') throw new RangeError(`losses: the number of tokens must be known when recorded, got ${tokens}`);
  const lengths = Array.from({ length: Math.ceil(tokens / chunk) }, (_, i) => Math.min(chunk, tokens - i * chunk));
  return g.split(a, 1, lengths);
}

/** [b, s, ...] as one row of tokens: [1, b * s, ...]. */
function oneRow<V>(g: Emit<V>, a: V): V {
  const [b = 1, s = 1, ...rest] = g.shape(a);
  if (typeof b !== 'number' || typeof s !== 'number') throw new RangeError(`losses: batch and tokens must be known when recorded, got [${b}, ${s}]`);
  return g.reshape(a, [1, b * s, ...rest]);
}

/** The mean of values [1, n_i, 1] over all tokens: [1, 1, 1]. */
function meanOverTokens<V>(g: Emit<V>, parts: readonly V[]): V {
  const tokens = parts.reduce((sum, part) => sum + Number(at(g.shape(part), 1)), 0);
  return g.scale(g.reshape(g.sum(g.reshape(g.concat(1, parts), [1, tokens])), [1, 1, 1]), 1 / tokens);
}

/**
 * Mean over all tokens of -log p(target), in nats. hidden: [b, s, d], normed; head: [w, d]; targets: int64 [b, s] -> [1, 1, 1].
 */
export function nextTokenLoss<V>(g: Emit<V>, hidden: V, head: V, targets: V, chunk: number): V {
  const wanted = chunksOf(g, oneRow(g, targets), chunk);
  return meanOverTokens(g, chunksOf(g, oneRow(g, hidden), chunk).map((rows, i) => negativeLogLikelihood(g, logits(g, rows, head), at(wanted, i))));
}

/** A model's last normed hidden states [b, s, d] with its output head [w, d]: its logits, before they are computed. */
export interface Predictor<V> {
  readonly hidden: V;
  readonly head: V;
}

/**
 * Mean over all tokens of KL(teacher || student) = sum_w p_t (log p_t - log p_s), in nats -> [1, 1, 1].
 * Source: Hinton et al. 2015, at temperature 1.
 */
export function teacherLoss<V>(g: Emit<V>, student: Predictor<V>, teacher: Predictor<V>, chunk: number): V {
  return divergence(g, student, teacher, chunk, ({ hidden, head }) => logits(g, hidden, head));
}

/**
 * `teacherLoss` as a sample of w entries of the vocabulary sees it, each standing for n_w of them: both distributions are
 * p(w) = n_w exp(z_w) / sum_v n_v exp(z_v) over the sample. heads: [w, d], the rows of the sample; logCopies: log n_w, [w].
 * Source: sampled softmax, Jean et al. 2015, section 3, where a score loses the log of how often it is expected in a sample.
 */
export function sampledTeacherLoss<V>(g: Emit<V>, student: Predictor<V>, teacher: Predictor<V>, logCopies: V, chunk: number): V {
  return divergence(g, student, teacher, chunk, ({ hidden, head }) => g.add(logits(g, hidden, head), logCopies));
}

function divergence<V>(g: Emit<V>, student: Predictor<V>, teacher: Predictor<V>, chunk: number, scores: (of: Predictor<V>) => V): V {
  const taught = chunksOf(g, oneRow(g, teacher.hidden), chunk);
  return meanOverTokens(g, chunksOf(g, oneRow(g, student.hidden), chunk).map((hidden, i) => {
    const own = scores({ hidden, head: student.head });
    const other = scores({ hidden: at(taught, i), head: teacher.head });
    const p = g.softmax(other);
    const entropy = g.sub(g.logSumExp(other), g.sum(g.mul(p, other)));
    return g.sub(g.sub(g.logSumExp(own), g.sum(g.mul(p, own))), entropy);
  }));
}

/**
 * Squared distance of an attention's output to the teacher's, relative to the teacher's size, rows weighted:
 * sum_s w_s |y - t|^2 / sum_s w_s |t|^2 -> [1, 1, 1]. output, target: [b, s, d]; rowWeights: [s, 1].
 *
 * The first rows of a sequence should weigh more: they are the attention sink, whose outputs steer massive activations
 * in later layers and are few, so that a plain mean lets them drift.
 */
export function regressionLoss<V>(g: Emit<V>, output: V, target: V, rowWeights: V): V {
  const weighed = (a: V): V => g.reshape(g.einsum('bso->', g.mul(g.sum(g.square(a)), rowWeights)), [1, 1, 1]);
  return g.div(weighed(g.sub(output, target)), weighed(target));
}
