/** The most memory a process has that reads a prompt and decodes behind it, by context; each measured in a process of its own. */
import { fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { defineCase } from '../support/case.ts';
import { weightBytes } from '../support/layer-model.ts';
import { withLayerModels } from '../support/layer-models.ts';
import type { MemoryTask, MemoryUse } from '../support/memory-child.ts';
import { presets } from '../support/presets.ts';
import type { Row } from '../support/rows.ts';

const childFile = fileURLToPath(new URL('../support/memory-child.ts', import.meta.url));

function memoryUse(task: MemoryTask): Promise<MemoryUse> {
  return new Promise((resolve, reject) => {
    const child = fork(childFile, [JSON.stringify(task)]);
    child.once('message', (use) => { resolve(use as MemoryUse); }); // memory-child.ts sends nothing else
    child.once('error', reject);
    child.once('exit', (code) => { reject(new Error(`memory: the measuring process must end with a message, got exit code ${code}`)); });
  });
}

export const memory = defineCase({
  summary: 'peak memory of a process that prefills and decodes with a one-layer model, by context and cache type',
  defaults: { preset: 'smollm2-135m', contexts: [128, 4096], shares: [0.3125], caches: ['f32', 'int8'] },
  smoke: { contexts: [16], shares: [] },
  run: ({ preset, contexts, shares, caches }, { threads }) => withLayerModels(presets[preset], shares, caches, async (models) => {
    const rows: Row[] = [];
    for (const tokens of contexts) {
      for (const { what, model, cache } of models) {
        const { peakMb, cacheBytesPerToken } = await memoryUse({ model: model.path, tokens, threads, cache });
        rows.push({ what: `${what}, ${tokens} tokens`, exact: { weightBytes: weightBytes(model), cacheBytesPerToken }, measured: { peakMb } });
      }
    }
    return { rows, notes: ['Node, the engine and the loaded code are part of every figure: the difference between two rows says more than either.'] };
  }),
});
