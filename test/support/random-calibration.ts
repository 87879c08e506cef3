/** Calibration windows of random tokens: for what needs statistics and not their meaning. */
import { fingerprintOf } from '../../lib/models/fingerprint.ts';
import type { Model } from '../../lib/models/model.ts';
import type { Calibration } from '../../lib/statistics/calibration.ts';
import { generator } from './readings.ts';

/** `count` windows of `window` tokens, the first two for the statistics of attention too. */
export async function randomCalibration(model: Model, count: number, window: number): Promise<Calibration> {
  const random = generator(3);
  const windows = Array.from({ length: count }, () => Array.from({ length: window }, () => Math.floor(random() * model.config.vocab)));
  return { window, windows, attentionWindows: 2, identity: { model: await fingerprintOf(model), tokenizer: 't', texts: [], tokens: count * window, attentionTokens: 2 * window, window } };
}
