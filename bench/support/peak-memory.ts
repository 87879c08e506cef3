/** The most memory this process had at once, in MB. */
import { readFileSync, writeFileSync } from 'node:fs';

/** Starts the count anew where the system can (Linux); elsewhere the peak is that of the whole process. */
export function restartPeak(): void {
  try {
    writeFileSync('/proc/self/clear_refs', '5');
  } catch {
    // Not Linux, or not allowed: the peak since the start is still an upper bound.
  }
}

export function peakMb(): number {
  try {
    const kilobytes = /VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
    if (kilobytes !== undefined) return Number(kilobytes) / 1000;
  } catch {
    // Not Linux: Node's own count.
  }
  return process.resourceUsage().maxRSS / 1000;
}
