import { startProgress, type Progress } from '../progress.ts';
import type { CommandIo } from './command.ts';

/** A display that shows only while work goes on: none for work that is done with its first report, gone with its last. */
export function longWork(label: string, total: number, unit: string, { stderr, clock }: Pick<CommandIo, 'stderr' | 'clock'>): Progress {
  let bar: Progress | null = null;
  const stop = (): void => {
    bar?.stop();
    bar = null;
  };
  return {
    update(done) {
      if (done < total) bar ??= startProgress(label, total, unit, { stream: stderr, clock });
      bar?.update(done);
      if (done >= total) stop();
    },
    stop,
  };
}

/** Runs `work` under a progress display on stderr, which starts with its first report and stops with it. */
export async function withProgress<T>(
  label: string, unit: string, { stderr, clock }: Pick<CommandIo, 'stderr' | 'clock'>, work: (report: (done: number, total: number) => void) => Promise<T>,
): Promise<T> {
  const started: Progress[] = [];
  try {
    return await work((done, total) => {
      if (started.length === 0) started.push(startProgress(label, total, unit, { stream: stderr, clock }));
      started[0]?.update(done);
    });
  } finally {
    started[0]?.stop();
  }
}
