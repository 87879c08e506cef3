/** Learning-rate schedules by name: rows of a table. */

export interface Schedule {
  readonly name: string;
  readonly shape: string;
  /** Factor on the peak rate behind the warm-up; `done` is the share of steps behind it, from 0 to below 1. */
  readonly factor: (done: number) => number;
}

/** Share of the steps behind the warm-up that `warmup-stable-decay` spends decaying. */
const DECAY_SHARE = 0.2;

const rows = {
  constant: { name: 'constant', shape: 'linear warm-up, then constant', factor: () => 1 },
  /** Hägele et al. 2024; the schedule of MHA2MLA. */
  'warmup-stable-decay': {
    name: 'warmup-stable-decay', shape: `linear warm-up, constant, then 1 - sqrt over the last ${100 * DECAY_SHARE} %`,
    factor: (done: number) => 1 - Math.sqrt(Math.max(0, (done - (1 - DECAY_SHARE)) / DECAY_SHARE)),
  },
  cosine: { name: 'cosine', shape: 'linear warm-up, then half a cosine to 0', factor: (done: number) => (1 + Math.cos(Math.PI * done)) / 2 },
  linear: { name: 'linear', shape: 'linear warm-up, then linear to 0', factor: (done: number) => 1 - done },
} as const;

export type ScheduleName = keyof typeof rows;
/** Learning-rate schedules by name. */
export const schedules: Readonly<Record<ScheduleName, Schedule>> = rows;

export interface ScheduleOptions {
  readonly schedule: ScheduleName;
  /** Updates in all. */
  readonly steps: number;
  /** Updates that lead up to the peak rate: update i of them has (i + 1) / warmupSteps of it. */
  readonly warmupSteps: number;
}

/** The factor on the peak learning rate at update `step`, counted from 0. */
export function learningRateFactor(step: number, { schedule, steps, warmupSteps }: ScheduleOptions): number {
  if (step < warmupSteps) return (step + 1) / warmupSteps;
  return schedules[schedule].factor((step - warmupSteps) / Math.max(1, steps - warmupSteps));
}
