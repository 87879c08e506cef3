/** Open graphs by name. */
import type { OpenGraph } from './decoder-graphs.ts';

export interface GraphShelf {
  /** The graph of that name, opened at its first use. */
  take(name: string, open: () => Promise<OpenGraph>): Promise<OpenGraph>;
  /** Frees all of them; one that is taken again is opened again. */
  close(): Promise<void>;
}

/** `alone`: every other graph is freed before one is opened. */
export function graphShelf(alone: boolean): GraphShelf {
  const graphs = new Map<string, Promise<OpenGraph>>();
  const close = async (): Promise<void> => {
    const open = [...graphs.values()];
    graphs.clear();
    // A graph that failed to open has told its caller so already.
    for (const one of open) await one.then(({ graph }) => graph.release(), () => undefined);
  };
  return {
    take(name, open) {
      const opened = graphs.get(name) ?? (alone ? close().then(open) : open());
      graphs.set(name, opened);
      return opened;
    },
    close,
  };
}
