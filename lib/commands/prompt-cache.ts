import { existsSync } from 'node:fs';
import type { Cache } from '../session/cache.ts';
import { loadPrompt } from '../session/prompt-cache.ts';
import type { Session } from '../session/session.ts';

export interface StartedPrompt {
  readonly cache: Cache;
  /** Tokens of the prompt whose rows the cache holds already. */
  readonly cachedTokens: number;
  /** The file holds the start of this prompt. */
  readonly fromFile: boolean;
}

/** A cache for a prompt, with the rows of a file when that holds the prompt's start. The last token always runs: its logits are wanted. */
export async function startPrompt(path: string | undefined, ids: readonly number[], capacityTokens: number, session: Session): Promise<StartedPrompt> {
  if (path !== undefined && existsSync(path)) {
    const saved = await loadPrompt(path, session, capacityTokens);
    if (saved.ids.length <= ids.length && saved.ids.every((id, i) => id === ids[i])) {
      saved.cache.truncate(Math.min(saved.ids.length, ids.length - 1));
      return { cache: saved.cache, cachedTokens: saved.cache.length, fromFile: true };
    }
  }
  return { cache: session.createCache(capacityTokens), cachedTokens: 0, fromFile: false };
}
