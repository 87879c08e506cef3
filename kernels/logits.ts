import type { Emit } from './emit.ts';

/** Scores of every vocabulary entry: hidden [b, s, d], head [vocab, d] (often the embedding table) -> [b, s, vocab]. */
export function logits<V>(g: Emit<V>, hidden: V, head: V): V {
  return g.einsum('bsd,wd->bsw', hidden, head);
}

/** -log p(target) per position, in nats: logits [b, s, vocab], targets int64 [b, s] -> [b, s, 1]. */
export function negativeLogLikelihood<V>(g: Emit<V>, scores: V, targets: V): V {
  return g.sub(g.logSumExp(scores), g.pick(scores, targets));
}
