/** A value computed when first asked for, then kept: results carry their subgraph without paying for those never run. */
export function lazily<T>(make: () => T): () => T {
  let made: { readonly value: T } | null = null;
  return () => (made ??= { value: make() }).value;
}
