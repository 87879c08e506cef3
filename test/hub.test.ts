import { createHash, randomBytes } from 'node:crypto';
import { mkdir, readFile, readdir, readlink, rm, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import t from 'tap';
import { hubCacheDirectory } from '../lib/hub-cache.ts';
import { downloadModel, isHubId } from '../lib/hub.ts';
import type { DownloadModelOptions, HubProgress } from '../lib/hub.ts';
import { startProgress } from '../lib/progress.ts';

/** A hub on the loopback with one model: small files from itself, large ones by redirect from a second server. */
interface MockHub {
  readonly endpoint: string;
  readonly requests: { path: string; range: string | undefined; token: string | undefined; status: number }[];
  readonly files: Map<string, Buffer>;
  /** Served instead of what is listed. */
  readonly swapped: Map<string, string>;
  commit: string;
  /** Weight bytes after which the connection is cut, once for each entry. */
  cuts: number[];
  /** Answer to everything, instead of the model. */
  status: number | null;
  /** Whether the store honours Range. */
  ranges: boolean;
  close(): Promise<void>;
}

const hex = (algorithm: string, ...parts: (string | Buffer)[]): string => {
  const hash = createHash(algorithm);
  for (const part of parts) hash.update(part);
  return hash.digest('hex');
};
const large = (name: string): boolean => name.endsWith('.safetensors') || name.endsWith('.bin');

async function listen(handler: (request: IncomingMessage, response: ServerResponse) => void): Promise<{ server: Server; url: string }> {
  const server = createServer(handler);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  return { server, url: `http://127.0.0.1:${address.port}` };
}

async function mockHub(files: Record<string, Buffer | string>): Promise<MockHub> {
  const store = await listen((request, response) => {
    const body = hub.files.get((request.url ?? '').slice(1)) ?? Buffer.alloc(0);
    const range = hub.ranges ? request.headers.range : undefined;
    const start = Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? 0);
    const status = range === undefined ? 200 : 206;
    hub.requests.push({ path: request.url ?? '', range: request.headers.range, token: request.headers.authorization, status });
    response.writeHead(status, {
      'content-length': body.length - start,
      ...(range === undefined ? {} : { 'content-range': `bytes ${start}-${body.length - 1}/${body.length}` }),
    });
    const cut = hub.cuts.shift();
    if (cut === undefined) response.end(body.subarray(start));
    else response.write(body.subarray(start, start + cut), () => setTimeout(() => response.destroy(), 20));
  });
  const api = await listen((request, response) => {
    const path = decodeURIComponent(request.url ?? '');
    const json = (status: number, value: unknown): void => {
      hub.requests.push({ path, range: request.headers.range, token: request.headers.authorization, status });
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value));
    };
    const resolved = /^\/acme\/tiny\/resolve\/[0-9a-f]{40}\/(.+)$/.exec(path)?.[1];
    if (hub.status !== null) json(hub.status, { error: 'made up' });
    else if (path.startsWith('/api/models/acme/tiny/revision/main?')) json(200, { id: 'acme/tiny', sha: hub.commit });
    else if (path.startsWith(`/api/models/acme/tiny/tree/${hub.commit}?`)) {
      json(200, [
        { type: 'directory', path: 'onnx', size: 0, oid: '0'.repeat(40) },
        ...[...hub.files].map(([name, body]) => ({
          type: 'file',
          path: name,
          size: body.length,
          oid: hex('sha1', `blob ${body.length}\0`, body),
          ...(large(name) ? { lfs: { oid: hex('sha256', body), size: body.length, pointerSize: 130 } } : {}),
        })),
      ]);
    } else if (resolved !== undefined && large(resolved)) {
      hub.requests.push({ path, range: request.headers.range, token: request.headers.authorization, status: 302 });
      response.writeHead(302, { location: `${store.url}/${resolved}` }).end();
    } else if (resolved !== undefined && hub.files.has(resolved)) {
      hub.requests.push({ path, range: request.headers.range, token: request.headers.authorization, status: 200 });
      response.writeHead(200).end(hub.swapped.get(resolved) ?? hub.files.get(resolved));
    } else json(404, { error: 'not found' });
  });
  const hub: MockHub = {
    endpoint: api.url,
    requests: [],
    files: new Map(Object.entries(files).map(([name, body]) => [name, Buffer.from(body)])),
    swapped: new Map(),
    commit: 'a'.repeat(40),
    cuts: [],
    status: null,
    ranges: true,
    async close() {
      for (const { server } of [api, store]) {
        server.closeAllConnections();
        await new Promise((resolve) => server.close(resolve));
      }
    },
  };
  return hub;
}

const weights = randomBytes(300_007);
const single = { 'config.json': '{"model_type":"llama"}', 'tokenizer.json': '{"model":{}}', 'model.safetensors': weights };

/** Options that see nothing of the machine's own settings, and what onProgress was told. */
function setup(hub: MockHub, cacheDir: string, more: DownloadModelOptions = {}): { options: DownloadModelOptions; told: HubProgress[] } {
  const told: HubProgress[] = [];
  const options = { endpoint: hub.endpoint, cacheDir, environment: {}, retryDelayMs: 1, onProgress: (p: HubProgress) => told.push(p), ...more };
  return { options, told };
}

t.test('isHubId takes owner/name and no path', async (t) => {
  for (const id of ['acme/tiny', 'HuggingFaceTB/SmolLM2-135M-Instruct', 'a/b.c_d']) t.ok(isHubId(id), id);
  for (const id of ['gpt2', './a/b', '/a/b', 'a/b/c', 'a/b.gguf', '../b', 'a/..', 'a/b--c', 'a b/c', '', `a/${'b'.repeat(99)}`]) t.notOk(isHubId(id), id);
});

t.test('the cache directory follows the environment as in Python', async (t) => {
  t.equal(hubCacheDirectory({ HF_HUB_CACHE: '/c', HF_HOME: '/h' }), '/c');
  t.equal(hubCacheDirectory({ HF_HOME: '/h', XDG_CACHE_HOME: '/x' }), join('/h', 'hub'));
  t.equal(hubCacheDirectory({ XDG_CACHE_HOME: '/x' }), join('/x', 'huggingface', 'hub'));
});

t.test('a model is downloaded once, filtered, and laid out as Python does', async (t) => {
  const unwanted = { 'pytorch_model.bin': randomBytes(11), 'onnx/model.onnx': 'x', 'README.md': '# hi', 'consolidated.safetensors': randomBytes(13) };
  const hub = await mockHub({ ...single, ...unwanted });
  t.teardown(() => hub.close());
  const cacheDir = t.testdir();
  const { options, told } = setup(hub, cacheDir, { token: 'secret' });
  const directory = await downloadModel('acme/tiny', options);

  const root = join(cacheDir, 'models--acme--tiny');
  t.equal(directory, join(root, 'snapshots', hub.commit));
  t.same((await readdir(directory)).sort(), Object.keys(single).sort());
  t.ok((await readFile(join(directory, 'model.safetensors'))).equals(weights));
  t.equal(await readlink(join(directory, 'model.safetensors')), join('..', '..', 'blobs', hex('sha256', weights)));
  t.equal(await readFile(join(root, 'refs', 'main'), 'utf8'), hub.commit);

  const apiTokens = hub.requests.filter((request) => request.path.startsWith('/a')).map((request) => request.token);
  t.same(new Set(apiTokens), new Set(['Bearer secret']));
  t.equal(hub.requests.find((request) => request.path === '/model.safetensors')?.token, undefined, 'the token stays with the endpoint');
  const total = Object.values(single).reduce((bytes, body) => bytes + Buffer.from(body).length, 0);
  t.same(told.at(-1), { kind: 'bytes', file: 'model.safetensors', doneBytes: total, totalBytes: total });

  hub.requests.length = 0;
  t.equal(await downloadModel('acme/tiny', options), directory);
  t.notOk(hub.requests.some((request) => request.path.includes('resolve')), 'nothing is fetched twice');

  hub.requests.length = 0;
  await downloadModel('acme/tiny', { ...options, revision: hub.commit });
  await downloadModel('acme/tiny', { ...options, offline: true });
  await downloadModel('acme/tiny', { ...options, environment: { HF_HUB_OFFLINE: '1' } });
  t.same(hub.requests, [], 'a cached commit and offline use make no call');

  hub.status = 503;
  told.length = 0;
  t.equal(await downloadModel('acme/tiny', options), directory, 'a hub out of order leaves the cache');
  t.match(told, [{ kind: 'notice', message: /no answer from the hub .*503.*using the cached acme\/tiny/s }]);
  const closed = await mockHub({});
  await closed.close();
  t.equal(await downloadModel('acme/tiny', { ...options, endpoint: closed.endpoint }), directory, 'no connection at all');

  hub.status = 401;
  await t.rejects(downloadModel('acme/tiny', options), /acme\/tiny must be readable, got status 401.*HF_TOKEN/);
  hub.status = 404;
  await t.rejects(downloadModel('acme/tiny', options), /must exist at revision main, got status 404/);
});

t.test('a moved branch fetches only what changed; the index names the shards', async (t) => {
  const shards = { 'model-00001-of-00002.safetensors': randomBytes(1009), 'model-00002-of-00002.safetensors': randomBytes(2003) };
  const weightMap = { a: 'model-00001-of-00002.safetensors', b: 'model-00002-of-00002.safetensors', c: 'model-00001-of-00002.safetensors' };
  const index = JSON.stringify({ metadata: {}, weight_map: weightMap });
  const hub = await mockHub({ 'config.json': '{}', 'tokenizer.json': '{}', 'model.safetensors.index.json': index, ...shards });
  t.teardown(() => hub.close());
  const { options } = setup(hub, t.testdir());
  const first = await downloadModel('acme/tiny', options);
  t.same((await readdir(first)).sort(), ['config.json', 'model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors', 'model.safetensors.index.json', 'tokenizer.json']);

  hub.commit = 'b'.repeat(40);
  hub.files.set('config.json', Buffer.from('{"changed":1}'));
  hub.requests.length = 0;
  const second = await downloadModel('acme/tiny', options);
  t.not(second, first);
  t.same(hub.requests.filter((request) => request.path.includes('resolve')).map((request) => request.path.split('/').at(-1)), ['config.json']);

  await rm(join(second, 'model-00002-of-00002.safetensors'));
  await t.rejects(downloadModel('acme/tiny', { ...options, offline: true }), /would download model-00002-of-00002\.safetensors into .*models--acme--tiny/);
  hub.files.delete('model-00002-of-00002.safetensors');
  await t.rejects(downloadModel('acme/tiny', options), /hold every file that model\.safetensors\.index\.json names, got no model-00002/);
  hub.files.set('model.safetensors.index.json', Buffer.from('{"weight_map":{"a":"../../evil.safetensors"}}'));
  await t.rejects(downloadModel('acme/tiny', options), /must name \.safetensors files beside it, got \.\.\/\.\.\/evil/);
});

t.test('a cut connection is resumed, within a call and by the next one', async (t) => {
  const hub = await mockHub(single);
  t.teardown(() => hub.close());
  const cacheDir = t.testdir();
  const { options, told } = setup(hub, cacheDir);
  const blob = join(cacheDir, 'models--acme--tiny', 'blobs', hex('sha256', weights));

  hub.cuts = [100_003, 0, 0];
  await t.rejects(downloadModel('acme/tiny', { ...options, attempts: 2 }), /model\.safetensors must arrive within 2 attempts.*100003 of 300007 bytes are kept/);
  t.equal((await stat(`${blob}.incomplete`)).size, 100_003);
  await t.rejects(stat(join(cacheDir, 'models--acme--tiny', 'refs', 'main')), { code: 'ENOENT' }, 'an incomplete model has no ref');
  await t.rejects(downloadModel('acme/tiny', { ...options, offline: true }), /must be cached or reachable/);

  hub.requests.length = 0;
  hub.cuts = [50_021];
  const directory = await downloadModel('acme/tiny', options);
  t.same(hub.requests.filter((request) => request.path === '/model.safetensors').map((request) => [request.range, request.status]), [
    ['bytes=100003-', 206],
    ['bytes=150024-', 206],
  ]);
  t.ok((await readFile(join(directory, 'model.safetensors'))).equals(weights));
  t.ok(told.some((p) => p.kind === 'notice' && /trying again/.test(p.message)));
  await t.rejects(stat(`${blob}.incomplete`), { code: 'ENOENT' });

  await rm(blob);
  await writeFile(`${blob}.incomplete`, weights.subarray(0, 70_001));
  hub.ranges = false;
  await downloadModel('acme/tiny', options);
  t.ok((await readFile(blob)).equals(weights), 'a server without Range sends all of it');
});

t.test('wrong bytes are thrown away', async (t) => {
  const hub = await mockHub(single);
  t.teardown(() => hub.close());
  const cacheDir = t.testdir();
  const { options } = setup(hub, cacheDir);
  const blobs = join(cacheDir, 'models--acme--tiny', 'blobs');
  await mkdir(blobs, { recursive: true });
  const partial = join(blobs, `${hex('sha256', weights)}.incomplete`);
  await writeFile(partial, Buffer.alloc(1001, 1));
  await t.rejects(downloadModel('acme/tiny', options), /sha256 of model\.safetensors must be [0-9a-f]{64}, got [0-9a-f]{64}; the bytes were thrown away/);
  t.notOk((await readdir(blobs)).some((name) => name.startsWith(hex('sha256', weights))));
  await downloadModel('acme/tiny', options);

  hub.commit = 'c'.repeat(40);
  hub.files.set('config.json', Buffer.from('{"right":1}'));
  hub.swapped.set('config.json', '{"wrong":1}');
  await t.rejects(downloadModel('acme/tiny', options), /git-sha1 of config\.json must be/);
});

t.test('what cannot be downloaded says so', async (t) => {
  const hub = await mockHub({ 'config.json': '{}', 'pytorch_model.bin': randomBytes(11) });
  t.teardown(() => hub.close());
  const cacheDir = t.testdir();
  const { options } = setup(hub, cacheDir);
  await t.rejects(downloadModel('acme/tiny', options), /acme\/tiny at main must hold config\.json and model\.safetensors or .*got config\.json/);
  await t.rejects(downloadModel('acme/tiny', { ...options, offline: true }), /offline use.*would download config\.json, tokenizer\.json, model\.safetensors.*local model directory/);
  await t.rejects(downloadModel('./tiny', options), /id must look like owner\/name, got "\.\/tiny"/);
  await t.rejects(downloadModel('acme/tiny', { ...options, revision: '../x' }), /revision must be/);
  t.same(await readdir(cacheDir), []);

  const stopped = new AbortController();
  stopped.abort(new Error('enough'));
  await t.rejects(downloadModel('acme/tiny', { ...options, signal: stopped.signal }), /enough/);
});

t.test('a stopped download keeps what has arrived', async (t) => {
  const hub = await mockHub(single);
  t.teardown(() => hub.close());
  const cacheDir = t.testdir();
  const stop = new AbortController();
  hub.cuts = [40_009];
  const onProgress = (p: HubProgress): void => (p.kind === 'notice' ? stop.abort(new Error('enough')) : undefined);
  const { options } = setup(hub, cacheDir, { signal: stop.signal, retryDelayMs: 600_000, onProgress });
  await t.rejects(downloadModel('acme/tiny', options), /enough/);
  t.equal((await stat(join(cacheDir, 'models--acme--tiny', 'blobs', `${hex('sha256', weights)}.incomplete`))).size, 40_009);
});

t.test('progress: a line every five seconds where nobody watches, a bar on a terminal', async (t) => {
  let written = '';
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      written += chunk.toString();
      done();
    },
  });
  let now = 0;
  const plain = startProgress('download', 300e6, 'bytes', { stream, clock: () => now });
  plain.update(1);
  now = 4999;
  plain.update(2);
  t.equal(written, '');
  now = 5000;
  plain.update(75e6);
  now = 5001;
  plain.update(100e6);
  plain.stop();
  t.equal(written, 'download: 25%, 75.0 of 300.0 MB\n');

  written = '';
  const bar = startProgress('layers', 30, 'layers', { stream: Object.assign(stream, { isTTY: true, cursorTo() {}, clearLine() {}, moveCursor() {} }) });
  bar.update(15);
  bar.stop();
  t.match(written, /layers .*0%.*0\/30 layers/);
});
