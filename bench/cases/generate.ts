/** A whole model and its source: prefill and decode through sessions, by context, cache type and weight format. */
import { openModel } from '../../lib/index.ts';
import { defineCase } from '../support/case.ts';
import type { Row } from '../support/rows.ts';
import { sessionRows, type Contestant } from '../support/session-rows.ts';

export const generate = defineCase({
  summary: 'a whole model (--model) and the one it was converted from (--source): prefill and decode by context, cache type and weights',
  defaults: { model: null, source: null, contexts: [128, 1024, 4096], caches: ['f32', 'int8'], weights: ['f32'] },
  smoke: null,
  async run({ model: path, source: sourcePath, contexts, caches, weights: formats }, context) {
    if (path === null) throw new RangeError('bench: generate needs --model, got none');
    const model = await openModel(path);
    const source = sourcePath === null ? null : await openModel(sourcePath);
    const contestants = formats.flatMap((weights): Contestant[] => {
      const name = `source, ${weights} weights`;
      return [
        ...(source === null ? [] : [{ what: name, model: source, cache: 'f32' as const, weights, against: null }]),
        ...caches.map((cache) => ({ what: `model, ${cache} cache, ${weights} weights`, model, cache, weights, against: source === null ? null : name })),
      ];
    });
    const rows: Row[] = [];
    for (const tokens of contexts) rows.push(...await sessionRows(contestants, tokens, context));
    return { rows, notes: ['ms, rates and floor are of one token, weights as their file has them; tokens/s are of the one prompt before it.'] };
  },
});
