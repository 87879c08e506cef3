/** Choosing what keeps rotating: every strategy that goes by the weights alone. */
import { planStrategies, rankRopeDims, type PlanStrategyName } from '../../lib/index.ts';
import { defineCase } from '../support/case.ts';
import { presets } from '../support/presets.ts';
import { keptPairs, randomAttention } from '../support/random-attention.ts';
import { timedRow } from '../support/timed-row.ts';
import { inTurn } from '../support/turns.ts';

export const rank = defineCase({
  summary: 'rankRopeDims: the strategies that need no statistics',
  defaults: { preset: 'smollm2-135m' },
  smoke: {},
  async run({ preset }, context) {
    const attention = randomAttention(presets[preset]);
    const names = Object.entries(planStrategies).flatMap(([name, { needsStatistics, counts }]) => (needsStatistics || counts !== 'pairs' ? [] : [name as PlanStrategyName])); // the table's own keys
    const times = await inTurn(names.map((strategy) => ({ run: async () => rankRopeDims(attention, { strategy, pairs: keptPairs(attention) }) })), context);
    const bytes = [attention.query, attention.key, attention.value, attention.output].reduce((sum, { weight }) => sum + weight.data.byteLength, 0);
    return {
      rows: names.map((what, i) => timedRow({ what, flops: 0, bytes, times: times[i] }, context.ceiling)),
      notes: ['The time is that of checking every weight of the layer, which every call does; a strategy by position looks at none of them.'],
    };
  },
});
