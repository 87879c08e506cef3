/** Merge order of SentencePiece BPE: the vocabulary with scores holds it implicitly. */

interface Merge {
  readonly left: string;
  readonly right: string;
  readonly score: number;
  readonly leftLength: number;
  readonly rightLength: number;
}

/**
 * Every way to make a token of two others, best score first; equal scores by longer left part, then longer right part,
 * else in the order of the vocabulary. Lengths are in code points.
 * `tokens[id]` scores `scores[id]`. Source: generate_merges in transformers' convert_slow_tokenizer.py.
 */
export function sentencePieceMerges(tokens: readonly string[], scores: readonly number[]): [string, string][] {
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const merges: Merge[] = [];
  for (const [token, id] of ids) {
    const points = Array.from(token);
    const ways: { left: number; right: number; merge: Merge }[] = [];
    let cut = 0;
    for (let index = 1; index < points.length; index++) {
      cut += points[index - 1]?.length ?? 0;
      const [left, right] = [token.slice(0, cut), token.slice(cut)];
      const [leftId, rightId] = [ids.get(left), ids.get(right)];
      if (leftId === undefined || rightId === undefined) continue;
      const merge = { left, right, score: scores[id] ?? 0, leftLength: index, rightLength: points.length - index };
      ways.push({ left: leftId, right: rightId, merge });
    }
    ways.sort((a, b) => a.left - b.left || a.right - b.right);
    merges.push(...ways.map((way) => way.merge));
  }
  merges.sort((a, b) => b.score - a.score || b.leftLength - a.leftLength || b.rightLength - a.rightLength);
  return merges.map(({ left, right }) => [left, right]);
}
