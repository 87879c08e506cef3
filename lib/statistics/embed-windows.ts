import { embedding } from '../../kernels/index.ts';
import { record } from '../graph/record.ts';
import { openRuntime } from '../graph/runtime.ts';
import { constantOf, type Model } from '../models/model.ts';
import type { WindowStore } from './window-store.ts';

/** The input of layer 0: the embedding of every window's tokens, [1, T, d] each. */
export async function embedWindows(model: Model, windows: readonly (readonly number[])[], into: WindowStore): Promise<void> {
  const { config, family } = model;
  const name = `${family.embedding}.weight`;
  const table = await constantOf(model.checkpoint, name, [config.vocab, config.hidden]);
  const subgraph = record('calibration-embedding', { ids: { dtype: 'int64', shape: [1, 's'] } }, (g, { ids }) => ({ hidden: embedding(g, ids, g.parameter(name, table)) }));
  const runtime = await openRuntime(subgraph, { prepack: false });
  try {
    for (const [at, ids] of windows.entries()) {
      const bad = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= config.vocab);
      if (bad !== undefined) throw new RangeError(`embedWindows: token ids must be 0..${config.vocab - 1}, got ${bad}`);
      const { hidden } = await runtime.run({ ids: { dtype: 'int64', shape: [1, ids.length], data: BigInt64Array.from(ids, BigInt) } });
      if (hidden?.dtype !== 'float32') throw new TypeError(`embedWindows: embeddings must be float32, got ${hidden?.dtype}`);
      await into.write(at, hidden.data);
    }
    await into.finish();
  } finally {
    await runtime.release();
  }
}
