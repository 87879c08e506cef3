/** The same keys with new values. The cast states what the loop does: every key of `record` is set, and no other. */
export function mapValues<K extends string, A, B>(record: Readonly<Record<K, A>>, f: (value: A, key: K) => B): Record<K, B> {
  const result: Partial<Record<K, B>> = {};
  for (const key in record) result[key] = f(record[key], key);
  return result as Record<K, B>;
}
