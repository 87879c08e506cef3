/**
 * The Hugging Face cache on disk, in the layout Python writes and reads:
 *
 *     CACHE/models--ORG--NAME/blobs/CHECKSUM            contents, named by SHA-256 (large files) or git's SHA-1
 *     CACHE/models--ORG--NAME/snapshots/COMMIT/FILE     links into blobs
 *     CACHE/models--ORG--NAME/refs/REVISION             the commit a branch or tag stood at
 */
import { copyFile, mkdir, readFile, rename, stat, symlink, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { errorCode } from './atomic-write.ts';

export type Environment = Readonly<Record<string, string | undefined>>;

export interface HubRepository {
  readonly id: string;
  readonly directory: string;
}

export interface CachedSnapshot {
  readonly directory: string;
  /** Files without which the model cannot be read, that are not there. Empty: config and all weights are. */
  readonly missing: readonly string[];
  readonly hasTokenizer: boolean;
}

/** HF_HUB_CACHE, else HF_HOME/hub, else XDG_CACHE_HOME/huggingface/hub, else the same under ~/.cache. */
export function hubCacheDirectory(environment: Environment): string {
  const cache = environment['HF_HUB_CACHE'] ?? environment['HUGGINGFACE_HUB_CACHE'];
  if (cache !== undefined && cache !== '') return cache;
  const home = environment['HF_HOME'] ?? join(environment['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'huggingface');
  return join(home, 'hub');
}

export const isCommitHash = (revision: string): boolean => /^[0-9a-f]{40}$/.test(revision);

export function hubRepository(cacheDirectory: string, id: string): HubRepository {
  return { id, directory: join(cacheDirectory, ['models', ...id.split('/')].join('--')) };
}

export const blobPath = (repository: HubRepository, checksum: string): string => join(repository.directory, 'blobs', checksum);
export const snapshotDirectory = (repository: HubRepository, commit: string): string => join(repository.directory, 'snapshots', commit);

export async function exists(path: string): Promise<boolean> {
  try {
    await stat(path); // follows the link: a link to nothing is not there
    return true;
  } catch (error) {
    if (errorCode(error) === 'ENOENT' || errorCode(error) === 'ENOTDIR') return false;
    throw error;
  }
}

/** The commit that a revision stands for in the cache, or null. */
export async function cachedCommit(repository: HubRepository, revision: string): Promise<string | null> {
  if (isCommitHash(revision)) return revision;
  try {
    const commit = (await readFile(join(repository.directory, 'refs', revision), 'utf8')).trim();
    return isCommitHash(commit) ? commit : null;
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return null;
    throw error;
  }
}

/** Records where a branch or tag stands, unless that is known; a commit hash needs no record. */
export async function recordRevision(repository: HubRepository, revision: string, commit: string): Promise<void> {
  if ((await cachedCommit(repository, revision)) === commit) return; // a cache mounted read-only stays usable
  const path = join(repository.directory, 'refs', revision);
  await mkdir(dirname(path), { recursive: true });
  await writeFile(`${path}.partial`, commit);
  await rename(`${path}.partial`, path);
}

/**
 * The weight files that an index names, in order of name.
 * Errors: an index without a weight_map, or one naming files outside its own directory.
 */
export function shardNames(indexText: string, file: string): readonly string[] {
  const index: unknown = JSON.parse(indexText);
  const map = typeof index === 'object' && index !== null && 'weight_map' in index ? index.weight_map : null;
  if (typeof map !== 'object' || map === null) throw new Error(`shardNames: ${file} must hold a weight_map, got none`);
  const names = [...new Set(Object.values(map).map(String))].sort();
  const outside = names.find((name) => !/^[\w.-]+\.safetensors$/.test(name));
  if (outside !== undefined) throw new Error(`shardNames: ${file} must name .safetensors files beside it, got ${outside}`);
  return names;
}

/** What of a model lies in the cache at a commit. */
export async function inspectSnapshot(repository: HubRepository, commit: string): Promise<CachedSnapshot> {
  const directory = snapshotDirectory(repository, commit);
  const here = (name: string): Promise<boolean> => exists(join(directory, name));
  const indexPath = join(directory, 'model.safetensors.index.json');
  const single = await here('model.safetensors');
  const weights = single || !(await exists(indexPath)) ? ['model.safetensors'] : shardNames(await readFile(indexPath, 'utf8'), indexPath);
  const needed = ['config.json', ...weights];
  const found = await Promise.all(needed.map(here));
  return { directory, missing: needed.filter((_, index) => found[index] !== true), hasTokenizer: await here('tokenizer.json') };
}

/** Puts a blob into a snapshot under its file name: a relative link, or a copy where links are not allowed. */
export async function linkBlob(repository: HubRepository, commit: string, file: string, checksum: string): Promise<void> {
  const path = join(snapshotDirectory(repository, commit), file);
  if (await exists(path)) return;
  await mkdir(dirname(path), { recursive: true });
  const blob = blobPath(repository, checksum);
  try {
    await symlink(relative(dirname(path), blob), path);
  } catch (error) {
    if (errorCode(error) === 'EEXIST') return; // another process was faster
    if (errorCode(error) !== 'EPERM') throw error;
    await copyFile(blob, path);
  }
}
