/** metrics.jsonl: one JSON object per line, {step, loss, gradientNorm, learningRate} per update, {step, evaluation} per evaluation. */
import { isJsonObject } from '../text/json.ts';
import type { CurvePoint } from './curve.ts';

export interface Metrics {
  readonly updates: readonly CurvePoint[];
  readonly evaluations: readonly CurvePoint[];
}

export function parseMetrics(text: string): Metrics {
  const lines = text.split('\n').filter((line) => line !== '').map((line): unknown => JSON.parse(line)).filter(isJsonObject);
  const points = (key: string): CurvePoint[] => lines.flatMap(({ step, [key]: loss }) => (typeof step === 'number' && typeof loss === 'number' ? [{ step, loss }] : []));
  return { updates: points('loss'), evaluations: points('evaluation') };
}
