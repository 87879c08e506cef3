/** The process that the memory case measures: one prompt, a few tokens, one message back. */
import { openModel, openSession, type CacheFormat } from '../../lib/index.ts';
import { someIds } from './layer-model.ts';
import { peakMb } from './peak-memory.ts';

export interface MemoryTask {
  readonly model: string;
  readonly tokens: number;
  readonly threads: number;
  readonly cache: CacheFormat;
}

export interface MemoryUse {
  readonly peakMb: number;
  readonly cacheBytesPerToken: number;
}

const STEPS = 4;

const { model: path, tokens, threads, cache: format } = JSON.parse(process.argv[2] ?? '') as MemoryTask; // written by the memory case
const model = await openModel(path);
const session = openSession(model, { threads, cache: format, contextLength: tokens + STEPS, oneGraph: true });
const cache = session.createCache();
await session.prefill(cache, someIds(tokens, model));
for (let i = 0; i < STEPS; i++) await session.step(cache, 1);
process.send?.({ peakMb: peakMb(), cacheBytesPerToken: cache.bytesPerToken } satisfies MemoryUse);
await session.close();
