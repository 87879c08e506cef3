/**
 * Models from the Hugging Face hub by name, through the cache that Python shares. The only importer of @huggingface/hub, of
 * which the listing calls are used; resuming, filtering, checking and working offline are ours.
 */
import { readFile } from 'node:fs/promises';
import { HUB_URL, HubApiError, listFiles, modelInfo } from '@huggingface/hub';
import type { ListFileEntry } from '@huggingface/hub';
import type { CachedSnapshot, Environment, HubRepository } from './hub-cache.ts';
import {
  blobPath,
  cachedCommit,
  exists,
  hubCacheDirectory,
  hubRepository,
  inspectSnapshot,
  isCommitHash,
  linkBlob,
  recordRevision,
  shardNames,
  snapshotDirectory,
} from './hub-cache.ts';
import { downloadBlob } from './hub-download.ts';
import type { Fetch, HubFile } from './hub-download.ts';

/** What happens during a download; bytes count all wanted files together, those in the cache included. */
export type HubProgress =
  | { readonly kind: 'bytes'; readonly file: string; readonly doneBytes: number; readonly totalBytes: number }
  | { readonly kind: 'notice'; readonly message: string };

export interface DownloadModelOptions {
  /** Branch, tag or commit hash; default main. */
  readonly revision?: string | undefined;
  /** Default: see hubCacheDirectory. */
  readonly cacheDir?: string | undefined;
  /** Use what is cached and make no network call; default HF_HUB_OFFLINE. */
  readonly offline?: boolean | undefined;
  /** Access token; default HF_TOKEN. Sent to the endpoint only. */
  readonly token?: string | undefined;
  /** Base URL of the hub; default HF_ENDPOINT, else the public hub. */
  readonly endpoint?: string | undefined;
  readonly onProgress?: ((progress: HubProgress) => void) | undefined;
  /** Stops the download; what has arrived is kept for the next call. */
  readonly signal?: AbortSignal | undefined;
  /** Default the global fetch. */
  readonly fetch?: Fetch | undefined;
  /** Attempts in a row without a new byte before giving up on a file; default 5. */
  readonly attempts?: number | undefined;
  /** Wait before the next attempt, times the number of failures; default 1000. */
  readonly retryDelayMs?: number | undefined;
  /** Where the defaults above are read; default process.env. */
  readonly environment?: Environment | undefined;
}

const besides = /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json$|^(merges\.txt|tokenizer\.model|chat_template\.jinja)$/;
const INDEX = 'model.safetensors.index.json';
const SINGLE = 'model.safetensors';

/** Whether a text can be the name of a model on the hub: `owner/name`, not ./model or /model. Look for a local path first. */
export function isHubId(text: string): boolean {
  return text.length <= 96 && /^\w[\w.-]*\/\w[\w.-]*$/.test(text) && !/--|\.\.|\.(git|gguf|safetensors|json)$/.test(text);
}

const isOn = (value: string | undefined): boolean => ['1', 'on', 'yes', 'true'].includes((value ?? '').toLowerCase());

/** Adds the token and the signal to requests; fetch drops the token itself when a redirect leaves the endpoint. */
function hubFetch(base: Fetch, token: string | undefined, signal: AbortSignal | undefined): Fetch {
  return (input, init) => {
    const headers = new Headers(init?.headers);
    if (token !== undefined && token !== '') headers.set('Authorization', `Bearer ${token}`);
    return base(input, { ...init, headers, ...(signal === undefined ? {} : { signal }) });
  };
}

function describe(entry: ListFileEntry): HubFile {
  if (entry.lfs !== undefined) return { path: entry.path, bytes: entry.lfs.size, checksum: { algorithm: 'sha256', hex: entry.lfs.oid } };
  const hex = entry.oid ?? '';
  if (!/^[0-9a-f]{40}$/.test(hex)) throw new Error(`downloadModel: listing of ${entry.path} must carry a git SHA-1, got ${JSON.stringify(entry.oid)}`);
  return { path: entry.path, bytes: entry.size, checksum: { algorithm: 'git-sha1', hex } };
}

interface Remote {
  readonly repository: HubRepository;
  readonly endpoint: string;
  readonly fetch: Fetch;
  readonly options: DownloadModelOptions;
}

/** The commit and the root files of a model, as the hub lists them. */
async function listModel({ repository, endpoint, fetch }: Remote, revision: string): Promise<{ commit: string; files: Map<string, HubFile> }> {
  const { sha: commit } = await modelInfo({ name: repository.id, revision, additionalFields: ['sha'], hubUrl: endpoint, fetch });
  if (!isCommitHash(commit)) throw new Error(`downloadModel: the hub must give a commit hash for ${repository.id}, got ${commit}`);
  const files = new Map<string, HubFile>();
  for await (const entry of listFiles({ repo: { type: 'model', name: repository.id }, revision: commit, hubUrl: endpoint, fetch })) {
    const wanted = besides.test(entry.path) || (/\.safetensors$/.test(entry.path) && !entry.path.includes('/')) || entry.path === INDEX;
    if (entry.type === 'file' && wanted) files.set(entry.path, describe(entry));
  }
  return { commit, files };
}

/** Downloads the files that are not cached, one after another, and links all of them into the snapshot. */
async function fetchFiles(remote: Remote, commit: string, files: readonly HubFile[], before: number, totalBytes: number): Promise<void> {
  const { repository, endpoint, options } = remote;
  let finished = before;
  for (const file of files) {
    const report = (bytes: number): void =>
      options.onProgress?.({ kind: 'bytes', file: file.path, doneBytes: finished + bytes, totalBytes });
    const blob = blobPath(repository, file.checksum.hex);
    if (!(await exists(blob))) {
      await downloadBlob(`${endpoint}/${repository.id}/resolve/${commit}/${file.path}`, blob, file, {
        fetch: remote.fetch,
        signal: options.signal,
        attempts: options.attempts ?? 5,
        retryDelayMs: options.retryDelayMs ?? 1000,
        onBytes: report,
        onRetry: (message) => options.onProgress?.({ kind: 'notice', message }),
      });
    }
    await linkBlob(repository, commit, file.path, file.checksum.hex);
    report(file.bytes);
    finished += file.bytes;
  }
}

const sum = (files: readonly HubFile[]): number => files.reduce((total, file) => total + file.bytes, 0);

/** Brings a listed model into the cache: the small files, then the weights, which the index names when there are several. */
async function fetchModel(remote: Remote, revision: string, commit: string, files: ReadonlyMap<string, HubFile>): Promise<string> {
  const { repository } = remote;
  const small = [...files.values()].filter((file) => besides.test(file.path));
  const [single, index] = [files.get(SINGLE), files.get(INDEX)];
  if (!files.has('config.json') || (single === undefined && index === undefined)) {
    const listed = [...files.keys()].join(', ') || 'none of them';
    throw new Error(`downloadModel: ${repository.id} at ${revision} must hold config.json and ${SINGLE} or ${INDEX}, got ${listed}`);
  }
  const shards: HubFile[] = single === undefined ? [] : [single];
  if (single === undefined && index !== undefined) {
    await fetchFiles(remote, commit, [index], 0, index.bytes);
    for (const name of shardNames(await readFile(blobPath(repository, index.checksum.hex), 'utf8'), INDEX)) {
      const shard = files.get(name);
      if (shard === undefined) throw new Error(`downloadModel: ${repository.id} must hold every file that ${INDEX} names, got no ${name}`);
      shards.push(shard);
    }
  }
  await fetchFiles(remote, commit, [...small, ...shards], 0, sum([...small, ...shards]));
  await recordRevision(repository, revision, commit);
  return snapshotDirectory(repository, commit);
}

/** What a failed listing says about the model, or null when the hub was not reached and the cache may stand in. */
function refusal(error: unknown, id: string, revision: string): string | null {
  if (!(error instanceof HubApiError) || error.statusCode >= 500 || error.statusCode === 429) return null;
  const { statusCode } = error;
  if (statusCode === 401 || statusCode === 403) {
    return `downloadModel: ${id} must be readable, got status ${statusCode}: it does not exist, is private or gated; accept its terms on its page and pass a token (HF_TOKEN)`;
  }
  return `downloadModel: ${id} must exist at revision ${revision}, got status ${statusCode} from the hub`;
}

function reasonOf(error: unknown): string {
  if (error instanceof HubApiError) return `status ${error.statusCode}`;
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error ? `${error.message}: ${error.cause.message}` : error.message;
}

function unavailable(repository: HubRepository, revision: string, cached: CachedSnapshot | null, reason: string): Error {
  const needed = cached === null ? `config.json, tokenizer.json, ${SINGLE} (or its shards and ${INDEX})` : cached.missing.join(', ');
  return new Error(
    `downloadModel: ${repository.id} at revision ${revision} must be cached or reachable, got ${reason}; would download ${needed} into ${repository.directory}. ` +
      'To go on offline, copy that directory from a machine that has it, or give the path of a local model directory instead of a name.',
  );
}

/**
 * Makes sure a model lies in the cache and returns the directory of its snapshot: config.json, tokenizer files and
 * safetensors weights (never .bin, .h5 or .onnx). Interrupted downloads go on where they stopped; every file is checked
 * against its SHA-256 (or git SHA-1, for small ones).
 * No network call is made when offline, or when the revision is a commit hash that is cached whole. When the hub cannot be
 * reached, a complete cached snapshot is used and onProgress told.
 * Errors: not a hub name; neither cached nor reachable; missing, private or gated; no safetensors; a wrong checksum.
 */
export async function downloadModel(id: string, options: DownloadModelOptions = {}): Promise<string> {
  if (!isHubId(id)) throw new Error(`downloadModel: id must look like owner/name, got ${JSON.stringify(id)}`);
  const environment = options.environment ?? process.env;
  const revision = options.revision ?? 'main';
  if (!/^\w[\w./-]*$/.test(revision) || revision.includes('..')) {
    throw new Error(`downloadModel: revision must be a branch, tag or commit hash, got ${JSON.stringify(revision)}`);
  }
  const repository = hubRepository(options.cacheDir ?? hubCacheDirectory(environment), id);
  const held = await cachedCommit(repository, revision);
  const cached = held === null ? null : await inspectSnapshot(repository, held);
  const usable = cached !== null && cached.missing.length === 0 ? cached.directory : null;

  if (options.offline ?? isOn(environment['HF_HUB_OFFLINE'])) {
    if (usable !== null) return usable;
    throw unavailable(repository, revision, cached, 'offline use of a cache that does not hold it');
  }
  if (usable !== null && cached?.hasTokenizer === true && isCommitHash(revision)) return usable;

  const endpoint = (options.endpoint ?? environment['HF_ENDPOINT'] ?? HUB_URL).replace(/\/+$/, '');
  const fetch = hubFetch(options.fetch ?? globalThis.fetch, options.token ?? environment['HF_TOKEN'], options.signal);
  const remote: Remote = { repository, endpoint, fetch, options };
  let listing;
  try {
    listing = await listModel(remote, revision);
  } catch (error) {
    options.signal?.throwIfAborted();
    const refused = refusal(error, id, revision);
    if (refused !== null) throw new Error(refused, { cause: error });
    const reason = reasonOf(error);
    if (usable === null) throw unavailable(repository, revision, cached, `no answer from the hub (${reason})`);
    options.onProgress?.({ kind: 'notice', message: `no answer from the hub (${reason}); using the cached ${id}` });
    return usable;
  }
  return fetchModel(remote, revision, listing.commit, listing.files);
}
