/**
 * Memory in large pages. A decoding step reads all weights once, and with pages of 4 KiB the processor spends a tenth to a
 * fifth of a quantised step looking addresses up. glibc asks Linux for 2 MiB pages when it is told to before it starts,
 * so it takes a new process: the command line starts itself once more, and a program of one's own can do as much.
 * Source: glibc manual, "Memory Allocation Tunables", glibc.malloc.hugetlb (since 2.35) and glibc.malloc.mmap_threshold.
 */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { report } from 'node:process';

/** Set to 0, the command line does not start itself again. */
export const HUGE_PAGES_VARIABLE = 'ATTENTION_SURGERY_HUGE_PAGES';

const TUNABLE = 'glibc.malloc.hugetlb';
/**
 * Blocks of a large page and more go back to the system when they are freed. Left alone, glibc keeps what it thinks is used
 * again, up to 32 MiB a block: matrices that were float32 for as long as their codes were made, scores of a long prompt.
 */
const GIVES_BACK = 'glibc.malloc.mmap_threshold=2097152';
const SETTING = '/sys/kernel/mm/transparent_hugepage/enabled';

/** What decides whether large pages are to be had. */
export interface HugePageHost {
  /** As in process.platform. */
  readonly platform: string;
  /** Version of glibc that Node runs on, null for another C library. */
  readonly glibc: string | null;
  /** Linux gives large pages to those that ask: the word in brackets of its setting, null where it cannot be read. */
  readonly transparent: string | null;
}

/** This process's. */
export function hugePageHost(): HugePageHost {
  if (process.platform !== 'linux') return { platform: process.platform, glibc: null, transparent: null };
  let setting = '';
  try {
    setting = readFileSync(SETTING, 'utf8');
  } catch { /* a kernel without them, or a sandbox that hides it */ }
  return { platform: process.platform, glibc: glibcVersion(), transparent: /\[(\w+)\]/.exec(setting)?.[1] ?? null };
}

function glibcVersion(): string | null {
  const made: unknown = report?.getReport();
  const header: unknown = typeof made === 'object' && made !== null && 'header' in made ? made.header : null;
  return typeof header === 'object' && header !== null && 'glibcVersionRuntime' in header && typeof header.glibcVersionRuntime === 'string' ? header.glibcVersionRuntime : null;
}

/**
 * The environment in which a new process keeps its large blocks in large pages and gives them back when they are free, or null where it would change nothing:
 * no Linux with glibc 2.35 or newer, pages given to all or to nobody, asked for already, or forbidden by
 * ATTENTION_SURGERY_HUGE_PAGES=0. Measured on two cores: a 4-bit step of SmolLM2 in 7 to 13 % less time, a float32 step
 * in the same (docs/log.md).
 *
 *     const env = hugePageEnvironment();
 *     if (env !== null) spawn(process.execPath, ['server.js'], { env, stdio: 'inherit' });
 */
export function hugePageEnvironment(
  environment: Readonly<Record<string, string | undefined>> = process.env, host: HugePageHost = hugePageHost(),
): Record<string, string | undefined> | null {
  const { GLIBC_TUNABLES: given = '', [HUGE_PAGES_VARIABLE]: wanted = '' } = environment;
  const [major = 0, minor = 0] = (host.glibc ?? '').split('.').map(Number);
  const isKnown = host.platform === 'linux' && (major > 2 || (major === 2 && minor >= 35));
  if (!isKnown || host.transparent !== 'madvise' || wanted === '0' || given.includes(TUNABLE)) return null;
  return { ...environment, GLIBC_TUNABLES: [...(given === '' ? [] : [given]), `${TUNABLE}=1`, ...(given.includes('glibc.malloc.mmap_threshold') ? [] : [GIVES_BACK])].join(':') };
}

/** Lets `collectGarbage` work. */
const COLLECTOR = '--expose-gc';

/** Signals that a terminal or a supervisor sends. */
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * Runs this program once more in another environment and gives its exit code. The new process has a group of its own, so
 * that a signal reaches it once, through this one: from a terminal both would get it, and the second ends a command at once.
 */
export async function runAgain(env: Record<string, string | undefined>): Promise<number> {
  const child = spawn(process.execPath, [COLLECTOR, ...process.execArgv, ...process.argv.slice(1)], { env, stdio: 'inherit', detached: true });
  const forward = (signal: NodeJS.Signals): boolean => child.kill(signal);
  for (const signal of SIGNALS) process.on(signal, forward);
  try {
    return await new Promise<number>((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (code, signal) => resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal])));
    });
  } finally {
    for (const signal of SIGNALS) process.off(signal, forward);
  }
}
