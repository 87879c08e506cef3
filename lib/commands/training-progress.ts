/** How far a training is, on standard error. */
import type { TrainProgress } from '../train/settings.ts';
import type { CommandIo } from './command.ts';
import { grouped } from './table.ts';

const clockText = (seconds: number): string => {
  const whole = Math.round(seconds);
  const two = (n: number): string => String(n).padStart(2, '0');
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
};

/** A line that is redrawn on a terminal; elsewhere one at most every five seconds, and one for the last update. */
export function trainingProgress({ stderr, clock }: Pick<CommandIo, 'stderr' | 'clock'>): (progress: TrainProgress) => void {
  let last = -Infinity;
  return ({ step, steps, loss, learningRate, tokensPerSecond, secondsLeft }) => {
    const line = `step ${step}/${steps}  loss ${loss.toFixed(4)}  rate ${learningRate.toExponential(2)}  ${grouped(Math.round(tokensPerSecond))} tokens/s  ${clockText(secondsLeft)} left`;
    if (stderr.isTTY === true) {
      stderr.write(`\r\x1b[K${line}${step === steps ? '\n' : ''}`);
      return;
    }
    if (clock() - last < 5000 && step < steps) return;
    last = clock();
    stderr.write(`${line}\n`);
  };
}
