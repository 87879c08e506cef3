import { openModel, type Model } from '../models/model.ts';
import { openSession } from '../session/session.ts';

export interface HeldOutPerplexity {
  readonly before: number;
  readonly after: number;
  /** Tokens it is over. */
  readonly tokens: number;
}

export interface HeldOutOptions {
  readonly threads?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Perplexity of the source and of its conversion on windows that nothing was fitted to; null where there are none. */
export async function heldOutPerplexity(source: Model, converted: string, windows: readonly (readonly number[])[], options: HeldOutOptions = {}): Promise<HeldOutPerplexity | null> {
  if (windows.length === 0) return null;
  return { before: await perplexityOf(source, windows, options), after: await perplexityOf(await openModel(converted), windows, options), tokens: windows.flat().length };
}

async function perplexityOf(model: Model, windows: readonly (readonly number[])[], { threads, signal }: HeldOutOptions): Promise<number> {
  const session = openSession(model, { contextLength: Math.max(...windows.map((ids) => ids.length)), ...(threads === undefined ? {} : { threads }), ...(signal === undefined ? {} : { signal }) });
  try {
    let nats = 0;
    for (const ids of windows) nats += (await session.nll(ids)).reduce((sum, x) => sum + x, 0) / (ids.length - 1);
    return Math.exp(nats / windows.length);
  } finally {
    await session.close();
  }
}

/** What to say where a model cannot be run as a whole on a machine with so much memory; null where it can. */
export function tooLargeToRun({ checkpoint }: Model, memoryBytes: number): string | null {
  const bytes = [...checkpoint.tensors.values()].reduce((sum, { shape }) => sum + 4 * shape.reduce((a, b) => a * b, 1), 0);
  return bytes <= memoryBytes / 2 ? null : `perplexity of held-out text was not measured: the weights take ${(bytes / 1e9).toFixed(1)} GB in float32, more than half of the machine's ${(memoryBytes / 1e9).toFixed(1)} GB`;
}
