/** Open graphs by name. */
import type { Runtime } from '../graph/runtime.ts';

export interface GraphShelf {
  /** The graph of that name, opened at its first use. */
  take(name: string, open: () => Promise<Runtime>): Promise<Runtime>;
  /** Frees all of them. */
  close(): Promise<void>;
}

export function graphShelf(): GraphShelf {
  const graphs = new Map<string, Promise<Runtime>>();
  return {
    take(name, open) {
      const graph = graphs.get(name) ?? open();
      graphs.set(name, graph);
      return graph;
    },
    async close() {
      const open = [...graphs.values()];
      graphs.clear();
      // A graph that failed to open has told its caller so already.
      for (const graph of open) await graph.then((opened) => opened.release(), () => undefined);
    },
  };
}
