/** Every kernel: the ONNX reading equals the float64 reading, and two spellings of one function agree. All axes are different primes. */
import t from 'tap';
import {
  absorbedAttention, decoderLayer, embedding, expandedAttention, expandedChains, groupedQueryAttention, groupedQueryChains, groupedRows, headChains, latentForms, linear, logits, mergedAttentionLayer, mlaAttentionLayer, negativeLogLikelihood, oneRowAttentionLayer, piecedStore, plainRows, rmsNorm, rope, ropeAngles, ropeTables, storedRows, storeRows, swiglu,
  type Emit, type HostTensor, type LatentForm, type RowFormat, type RowReader, type RowStore, type StorageEmit,
} from '../kernels/index.ts';
import { eager, toEager } from '../lib/eager.ts';
import { record } from '../lib/graph/record.ts';
import { runSubgraph } from '../lib/graph/run.ts';
import type { Port } from '../lib/graph/subgraph.ts';
import { mapValues } from '../lib/map-values.ts';
import { bothReadings, difference, float32Tolerance, generator, integers, normal, numbers, recordProgram, type Program } from './support/readings.ts';

const P = { b: 2, s: 3, p: 5, g: 7, r: 2, k: 22, n: 11, c: 17, v: 19, d: 23, f: 29, w: 31, m: 26 };
const random = generator(1);
const shapeOf = (axes: string): number[] => [...axes].map((axis) => P[axis as keyof typeof P]);
const tensor = (axes: string, spread = 1): HostTensor<'float32'> => normal(shapeOf(axes), random, spread);
const need = <V>(x: Readonly<Record<string, V>>, name: string): V => {
  const value = x[name];
  if (value === undefined) throw new RangeError(`test: ${name} must be fed`);
  return value;
};

interface Case {
  readonly feeds: Readonly<Record<string, HostTensor>>;
  readonly symbols?: Readonly<Record<string, readonly (string | number)[]>>;
  readonly terms: number;
  readonly program: Program;
}

const attentionFeeds = {
  q: tensor('bsgrk'), k0: tensor('bpgk'), v0: tensor('bpgv'), k1: tensor('bsgk'), v1: tensor('bsgv'),
  positions: integers([5, 6, 7]), past: integers([0, 1, 2, 3, 4]),
};
const attentionSymbols = { q: ['b', 's', 7, 2, 22], k0: ['b', 'p', 7, 22], v0: ['b', 'p', 7, 19], k1: ['b', 's', 7, 22], v1: ['b', 's', 7, 19], positions: ['s'], past: ['p'] };
const latentFeeds = {
  nope: tensor('bsgrn'), rope: tensor('bsgrm'), keyUp: tensor('gnc', 0.3), valueUp: tensor('gvc', 0.3),
  rope0: tensor('bpm'), latent0: tensor('bpc'), rope1: tensor('bsm'), latent1: tensor('bsc'), positions: integers([5, 6, 7]),
};
const latent = <V>(g: Emit<V>, x: Readonly<Record<string, V>>, form: typeof expandedAttention): V => form(
  g, { nope: need(x, 'nope'), rope: need(x, 'rope') },
  [
    { ropeKey: plainRows(g, need(x, 'rope0')), latent: plainRows(g, need(x, 'latent0')), mask: null },
    { ropeKey: plainRows(g, need(x, 'rope1')), latent: plainRows(g, need(x, 'latent1')), mask: g.causalMask(need(x, 'positions'), need(x, 'positions'), null) },
  ],
  { key: need(x, 'keyUp'), value: need(x, 'valueUp') }, 0.2,
);
const splitAttention = (window: number | null): Program => (g, x) => ({
  y: groupedQueryAttention(g, need(x, 'q'), [
    { key: need(x, 'k0'), value: need(x, 'v0'), mask: g.causalMask(need(x, 'positions'), need(x, 'past'), window) },
    { key: need(x, 'k1'), value: need(x, 'v1'), mask: g.causalMask(need(x, 'positions'), need(x, 'positions'), window) },
  ], 0.3),
});
const joinedAttention = (window: number | null, attend: typeof groupedQueryAttention = groupedQueryAttention): Program => (g, x) => ({
  y: attend(g, need(x, 'q'), [{
    key: g.concat(1, [need(x, 'k0'), need(x, 'k1')]), value: g.concat(1, [need(x, 'v0'), need(x, 'v1')]),
    mask: g.causalMask(need(x, 'positions'), g.concat(0, [need(x, 'past'), need(x, 'positions')]), window),
  }], 0.3),
});
const tables = { ...ropeTables(Float64Array.from({ length: 11 }, (_, i) => 1e4 ** (-i / 11)), 8), first: ropeTables(Float64Array.of(1, 0.3, 0.01), 8) };

function merged<V>(g: Emit<V>, x: Readonly<Record<string, V>>): Readonly<Record<string, V>> {
  const plain = (name: string) => ({ weight: need(x, name), bias: null }), rows: Record<string, V> = {};
  const store = (name: string, past: string): RowStore<V> => ({ past: [plainRows(g, need(x, past))], keep: (values) => [plainRows(g, (rows[name] = values))] });
  const angles = ropeTables(Float64Array.from({ length: P.m / 2 }, (_, i) => 1e4 ** (-i / P.m)), 8);
  const y = mergedAttentionLayer(
    g, need(x, 'x'), { queryRope: plain('queryRope'), queryLatent: plain('queryLatent'), keyRope: plain('keyRope'), down: plain('down'), output: plain('output') },
    ropeAngles(g, { cos: g.constant(angles.cos), sin: g.constant(angles.sin) }, need(x, 'positions')), { join: false, masks: [null, null] },
    { heads: P.g, ropeWidth: P.m, rank: P.c }, { rope: store('rope', 'ropePast'), latent: store('latent', 'latentPast') },
  );
  return { y, rope: need(rows, 'rope'), latent: need(rows, 'latent') };
}

const mergedFeeds = {
  x: tensor('bsd'), queryRope: normal([P.g * P.m, P.d], random, 0.1), queryLatent: normal([P.g * P.c, P.d], random, 0.1), keyRope: tensor('md', 0.2), down: tensor('cd', 0.2),
  output: normal([P.d, P.g * P.c], random, 0.1), ropePast: tensor('bpm'), latentPast: tensor('bpc'), positions: integers([5, 6, 7]),
};

/** The same with everything side by side: of each head its rope and its latent query, then the row. */
const besideFeeds = (feeds: typeof mergedFeeds): Readonly<Record<string, HostTensor>> => {
  const head = ({ data }: HostTensor<'float32'>, i: number): number[] => [...data.subarray((i * data.length) / P.g, ((i + 1) * data.length) / P.g)];
  const rows = [...Array.from({ length: P.g }, (_, i) => [...head(feeds.queryRope, i), ...head(feeds.queryLatent, i)]).flat(), ...feeds.keyRope.data, ...feeds.down.data];
  const width = P.m + P.c, past = Array.from({ length: P.b * P.p }, (_, i) => [...feeds.ropePast.data.subarray(i * P.m, (i + 1) * P.m), ...feeds.latentPast.data.subarray(i * P.c, (i + 1) * P.c)]).flat();
  return {
    x: feeds.x, output: feeds.output, positions: feeds.positions,
    rows: { dtype: 'float32', shape: [(P.g + 1) * width, P.d], data: Float32Array.from(rows) }, past: { dtype: 'float32', shape: [P.b, P.p, width], data: Float32Array.from(past) },
  };
};

function oneRow<V>(g: Emit<V>, x: Readonly<Record<string, V>>): Readonly<Record<string, V>> {
  const made: Record<string, V> = {}, angles = ropeTables(Float64Array.from({ length: P.m / 2 }, (_, i) => 1e4 ** (-i / P.m)), 8);
  const row: RowStore<V> = { past: [plainRows(g, need(x, 'past'))], keep: (values) => [plainRows(g, (made.row = values))] };
  const y = oneRowAttentionLayer(
    g, need(x, 'x'), { rows: { weight: need(x, 'rows'), bias: null }, output: { weight: need(x, 'output'), bias: null } },
    ropeAngles(g, { cos: g.constant(angles.cos), sin: g.constant(angles.sin) }, need(x, 'positions')), { join: false, masks: [null, null] }, { heads: P.g, ropeWidth: P.m, rank: P.c }, { row },
  );
  return { y, row: need(made, 'row') };
}

/** A whole layer in either form, its rows in one array or in two. */
const layerFeeds = {
  x: tensor('bsd'), queryRope: normal([P.g * P.r * P.m, P.d], random, 0.1), queryNope: normal([P.g * P.r * P.n, P.d], random, 0.1), keyRope: tensor('md', 0.2), down: tensor('cd', 0.2), keyUp: tensor('gnc', 0.3),
  valueUp: tensor('gvc', 0.3), output: normal([P.d, P.g * P.r * P.v], random, 0.1), ropePast: tensor('bpm'), latentPast: tensor('bpc'), positions: integers([5, 6, 7]), past: integers([0, 1, 2, 3, 4]),
};
const layer = (form: LatentForm, arrays: 'one' | 'two', join: boolean): Program => (g, x) => {
  const plain = (name: string) => ({ weight: need(x, name), bias: null }), angles = ropeTables(Float64Array.from({ length: P.m / 2 }, (_, i) => 1e4 ** (-i / P.m)), 8);
  const store = (past: typeof x[string] | undefined) => ({ past: past === undefined ? [] : [plainRows(g, past)], keep: (rows: typeof x[string]) => [plainRows(g, rows)] });
  const stores = arrays === 'two' ? { rope: store(need(x, 'ropePast')), latent: store(need(x, 'latentPast')) } : { row: store(g.concat(2, [need(x, 'ropePast'), need(x, 'latentPast')])) };
  const own = g.causalMask(need(x, 'positions'), need(x, 'positions'), null);
  const masks = join ? [g.causalMask(need(x, 'positions'), g.concat(0, [need(x, 'past'), need(x, 'positions')]), null)] : [null, own];
  const { output } = mlaAttentionLayer(
    g, need(x, 'x'), { queryRope: plain('queryRope'), queryNope: plain('queryNope'), keyRope: plain('keyRope'), down: plain('down'), up: { key: need(x, 'keyUp'), value: need(x, 'valueUp') }, output: plain('output') },
    ropeAngles(g, { cos: g.constant(angles.cos), sin: g.constant(angles.sin) }, need(x, 'positions')), [], { join, masks },
    { heads: P.g * P.r, kvHeads: P.g, ropeWidth: P.m, nopeWidth: P.n, valueWidth: P.v, scale: 0.2 }, form, stores,
  );
  return { y: output };
};

const cases: Readonly<Record<string, Case>> = {
  'rms-norm': { feeds: { x: tensor('bsd'), w: tensor('d') }, symbols: { x: ['b', 's', 23] }, terms: P.d, program: (g, x) => ({ y: rmsNorm(g, need(x, 'x'), need(x, 'w'), 1e-5) }) },
  'linear with bias': { feeds: { x: tensor('bsd'), w: tensor('fd'), bias: tensor('f') }, symbols: { x: ['b', 's', 23] }, terms: P.d, program: (g, x) => ({ y: linear(g, need(x, 'x'), { weight: need(x, 'w'), bias: need(x, 'bias') }) }) },
  swiglu: {
    feeds: { x: tensor('bsd'), gate: tensor('fd', 0.2), up: tensor('fd', 0.2), down: tensor('df', 0.2) }, terms: P.d + P.f,
    program: (g, x) => ({ y: swiglu(g, need(x, 'x'), { gate: { weight: need(x, 'gate'), bias: null }, up: { weight: need(x, 'up'), bias: null }, down: { weight: need(x, 'down'), bias: null } }) }),
  },
  rope: {
    feeds: { x: tensor('bsgk'), positions: integers([5, 6, 7]) }, symbols: { x: ['b', 's', 7, 22], positions: ['s'] }, terms: 2,
    program: (g, x) => ({ y: rope(g, need(x, 'x'), ropeAngles(g, { cos: g.constant(tables.cos), sin: g.constant(tables.sin) }, need(x, 'positions'))) }),
  },
  'embedding, logits and loss': {
    feeds: { ids: integers([1, 30, 4, 0, 17, 2], [2, 3]), table: tensor('wd'), head: tensor('wd'), targets: integers([3, 2, 30, 1, 0, 8], [2, 3]) },
    symbols: { ids: ['b', 's'], targets: ['b', 's'] }, terms: P.d + P.w,
    program: (g, x) => {
      const scores = logits(g, embedding(g, need(x, 'ids'), need(x, 'table')), need(x, 'head'));
      return { scores, loss: negativeLogLikelihood(g, scores, need(x, 'targets')) };
    },
  },
  'grouped-query attention, split rows': { feeds: attentionFeeds, symbols: attentionSymbols, terms: P.k + P.p + P.s, program: splitAttention(null) },
  'grouped-query attention, joined rows': { feeds: attentionFeeds, symbols: attentionSymbols, terms: P.k + P.p + P.s, program: joinedAttention(null) },
  'grouped-query attention in a window of 2': { feeds: attentionFeeds, symbols: attentionSymbols, terms: P.k + P.p + P.s, program: splitAttention(2) },
  'grouped-query attention in chains': { feeds: attentionFeeds, symbols: attentionSymbols, terms: P.k + P.p + P.s, program: joinedAttention(null, groupedQueryChains) },
  'expanded latent attention': { feeds: latentFeeds, terms: P.c + P.m + P.n + P.p, program: (g, x) => ({ y: latent(g, x, expandedAttention) }) },
  'expanded latent attention in chains': { feeds: latentFeeds, terms: P.c + P.m + P.n + P.p, program: (g, x) => ({ y: latent(g, x, expandedChains) }) },
  'absorbed latent attention': { feeds: latentFeeds, terms: P.c + P.m + P.n + P.p, program: (g, x) => ({ y: latent(g, x, absorbedAttention) }) },
  'merged latent attention': {
    feeds: mergedFeeds,
    terms: P.c + P.m + P.d + P.p,
    program: merged,
  },
  'merged latent attention over rows in one array': { feeds: besideFeeds(mergedFeeds), terms: P.c + P.m + P.d + P.p, program: oneRow },
  'rope of the first elements': {
    feeds: { x: tensor('bsgk'), positions: integers([5, 6, 7]) }, symbols: { x: ['b', 's', 7, 22], positions: ['s'] }, terms: 2,
    program: (g, x) => ({ y: rope(g, need(x, 'x'), ropeAngles(g, { cos: g.constant(tables.first.cos), sin: g.constant(tables.first.sin) }, need(x, 'positions'))) }),
  },
  'decoder layer': {
    feeds: { x: tensor('bsd'), a: tensor('d'), m: tensor('d'), gate: tensor('fd', 0.2), up: tensor('fd', 0.2), down: tensor('df', 0.2) }, terms: 2 * (P.d + P.f),
    program: (g, x) => ({
      y: decoderLayer(g, need(x, 'x'), {
        attentionNorm: need(x, 'a'), mlpNorm: need(x, 'm'),
        mlp: { gate: { weight: need(x, 'gate'), bias: null }, up: { weight: need(x, 'up'), bias: null }, down: { weight: need(x, 'down'), bias: null } },
      }, 1e-5, (normed) => ({ output: g.sigmoid(normed), rows: {} })).hidden,
    }),
  },
};

for (const [name, { feeds, symbols = {}, terms, program }] of Object.entries(cases)) {
  t.test(`${name}: ONNX equals float64`, async (t) => {
    const { reference, onnx } = await bothReadings(program, feeds, symbols);
    for (const [output, value] of Object.entries(reference)) {
      t.same(onnx[output]?.shape, value.shape, `${output} has the reference's shape`);
      const gap = difference(value.data, numbers(onnx[output]));
      t.ok(gap < float32Tolerance(terms), `${output} differs by ${gap}`);
    }
  });
}

const inFloat64 = (program: Program, feeds: Readonly<Record<string, HostTensor>>): Float64Array => {
  const y = program(eager, Object.fromEntries(Object.entries(feeds).map(([name, value]) => [name, toEager(value)]))).y;
  if (y === undefined) throw new RangeError('test: the program must return y');
  return y.data;
};

t.test('chains of heads give what all heads at once give', (t) => {
  t.same([headChains(3, 3), headChains(7, 2), headChains(1, 9), headChains(32, 1).length, headChains(10, 1, 2)], [[1, 1, 1], [2, 2, 2, 1], [1], 8, [4, 1, 4, 1]]);
  const window = inFloat64(joinedAttention(2), attentionFeeds);
  t.ok(difference(window, inFloat64(joinedAttention(2, groupedQueryChains), attentionFeeds)) < 1e-13, 'grouped-query attention');
  // Two latents of five heads each, and rebuilt keys that are scaled.
  const [b, s, n, m, v, each] = [2, 3, 7, 4, 11, 13];
  const feeds = {
    nope: normal([b, s, 10, 1, n], random), rope: normal([b, s, 10, 1, m], random), keyUp: normal([10, n, each], random, 0.3), valueUp: normal([10, v, each], random, 0.3),
    keys: normal([b, s, m], random), latents: normal([b, s, 2 * each], random), scales: normal([b, s, 10], random), positions: integers([0, 1, 2]),
  };
  const [atOnce, inChains] = [expandedAttention, expandedChains].map((form) => inFloat64((g, x) => ({
    y: form(g, { nope: need(x, 'nope'), rope: need(x, 'rope') }, [{
      ropeKey: plainRows(g, need(x, 'keys')), latent: plainRows(g, need(x, 'latents')), keyScale: need(x, 'scales'), mask: g.causalMask(need(x, 'positions'), need(x, 'positions'), null),
    }], { key: need(x, 'keyUp'), value: need(x, 'valueUp'), groups: 2 }, 0.4),
  }), feeds));
  t.ok(difference(atOnce ?? [], inChains ?? []) < 1e-13, 'expanded latent attention, two latents');
  t.end();
});

t.test('latents in an array for each group give what one array gives', (t) => {
  // Two latents of five heads each, past rows and one of a token that is still to be cached.
  const [b, s, p, n, m, v, each] = [2, 1, 3, 7, 4, 11, 13], ups = [{ rope: m, nope: n }, { rope: 0, nope: n }, { rope: m, nope: 0 }];
  const feeds = {
    nope: normal([b, s, 10, 1, n], random), rope: normal([b, s, 10, 1, m], random), keyUp: normal([10, n, each], random, 0.3), valueUp: normal([10, v, each], random, 0.3),
    ropePast: normal([b, p, m], random), ropeOwn: normal([b, s, m], random), past: normal([b, p, 2 * each], random), own: normal([b, s, 2 * each], random),
  };
  const stored = <V>(g: Emit<V>, past: V): RowStore<V> => ({ past: [plainRows(g, past)], keep: (rows) => [plainRows(g, rows)] });
  const stores = { whole: stored, pieced: <V>(g: Emit<V>, past: V): RowStore<V> => piecedStore(g, g.split(past, 2, [each, each]).map((piece) => stored(g, piece))) };
  const attend = (form: 'absorbed' | 'expanded', kind: keyof typeof stores, parts: { readonly rope: number; readonly nope: number }): Float64Array => inFloat64((g, x) => {
    const nope = parts.nope === 0 ? null : need(x, 'nope'), rope = parts.rope === 0 ? null : need(x, 'rope'), latents = stores[kind](g, need(x, 'past'));
    const segments = [{ key: 'ropePast', rows: latents.past }, { key: 'ropeOwn', rows: latents.keep(need(x, 'own')) }]
      .flatMap(({ key, rows }) => rows.map((latent) => ({ ropeKey: rope === null ? null : plainRows(g, need(x, key)), latent, mask: null })));
    return { y: latentForms[form](g, { nope, rope }, segments, { key: nope === null ? null : need(x, 'keyUp'), value: need(x, 'valueUp'), groups: 2 }, 0.4) };
  }, feeds);
  for (const parts of ups) {
    const one = attend('absorbed', 'whole', parts);
    for (const form of ['absorbed', 'expanded'] as const) t.ok(difference(one, attend(form, 'pieced', parts)) < 1e-13, `${form}, ${JSON.stringify(parts)}`);
  }
  const asked = (kind: keyof typeof stores, ask: <V>(rows: RowReader<V>, own: V) => V): Float64Array => inFloat64((g, x) => {
    const own = need(x, 'past'), [rows] = stores[kind](g, own).past;
    if (rows === undefined) throw new RangeError('test: a store must have past rows');
    return { y: ask(rows, g.reshape(own, [b, p, 1, 1, 2 * each])) };
  }, feeds);
  t.same(asked('pieced', (rows) => rows.widen()), asked('whole', (rows) => rows.widen()), 'side by side they are the rows');
  t.ok(difference(asked('pieced', (rows, own) => rows.score(own)), asked('whole', (rows, own) => rows.score(own))) < 1e-13, 'and give the scores of all of a row');
  t.end();
});

t.test('two spellings agree in float64', (t) => {
  const expanded = inFloat64((g, x) => ({ y: latent(g, x, expandedAttention) }), latentFeeds);
  const absorbed = inFloat64((g, x) => ({ y: latent(g, x, absorbedAttention) }), latentFeeds);
  t.ok(difference(expanded, absorbed) < 1e-13, `absorbed = expanded to ${difference(expanded, absorbed)}`);
  const twoArrays = inFloat64((g, x) => ({ y: need(merged(g, x), 'y') }), mergedFeeds);
  t.ok(difference(twoArrays, inFloat64((g, x) => ({ y: need(oneRow(g, x), 'y') }), besideFeeds(mergedFeeds))) < 1e-13, 'rows in one array = rows in two, merged');
  const expected = inFloat64(layer('expanded', 'two', false), layerFeeds);
  for (const form of ['expanded', 'absorbed'] as const) {
    for (const join of [false, true]) {
      const gap = difference(expected, inFloat64(layer(form, 'one', join), layerFeeds));
      t.ok(gap < 1e-13, `${form}, rows in one array${join ? ', joined' : ''} = rows in two to ${gap}`);
    }
  }
  for (const window of [null, 2, 6]) {
    const gap = difference(inFloat64(joinedAttention(window), attentionFeeds), inFloat64(splitAttention(window), attentionFeeds));
    t.ok(gap < 1e-13, `joined = split rows with window ${window} to ${gap}`);
  }
  t.ok(difference(inFloat64(splitAttention(null), attentionFeeds), inFloat64(splitAttention(2), attentionFeeds)) > 1e-3, 'a window changes the result');
  t.end();
});

t.test('elementwise words move past a view, also beside a row that is repeated', async (t) => {
  const feeds = { a: tensor('gr'), row: tensor('r'), tall: tensor('g') };
  const program: Program = (g, x) => {
    const a = g.reshape(need(x, 'a'), [1, 7, 1, 2]), row = g.reshape(need(x, 'row'), [1, 1, 1, 2]), long = g.reshape(need(x, 'row'), [1, 1, 1, 1, 2]), tall = g.reshape(need(x, 'tall'), [1, 7, 1, 1]);
    return {
      behind: g.reshape(g.mul(a, row), [7, 2]), before: g.mul(row, a), less: g.sub(a, row), from: g.sub(row, a), wider: g.mul(a, long), columns: g.mul(a, tall),
      soft: g.softmax(g.mul(g.softmax(g.mul(a, row)), row)),
    };
  };
  const { reference, onnx } = await bothReadings(program, feeds);
  for (const [name, want] of Object.entries(reference)) {
    t.same(onnx[name]?.shape, want.shape, `${name}: shape`);
    t.ok(difference(want.data, numbers(onnx[name])) < float32Tolerance(P.r), name);
  }
  const views = recordProgram((g, x) => ({ y: g.reshape(g.mul(g.reshape(need(x, 'a'), [1, 7, 1, 2]), g.reshape(need(x, 'row'), [1, 1, 1, 2])), [7, 2]) }), { a: feeds.a, row: feeds.row });
  t.same(views.nodes.map(({ op }) => op), ['Reshape', 'Mul'], 'only the row is still looked at');
});

t.test('nothing cached is a segment of no rows', async (t) => {
  const feeds = { ...attentionFeeds, k0: normal([2, 0, 7, 22], random), v0: normal([2, 0, 7, 19], random), past: integers([]) };
  for (const program of [splitAttention(null), joinedAttention(null)]) {
    const { reference, onnx } = await bothReadings(program, feeds, attentionSymbols);
    const gap = difference(reference.y?.data ?? [], numbers(onnx.y));
    t.ok(gap < float32Tolerance(P.k + P.s), `differs by ${gap}`);
  }
});

t.test('a swapped axis is refused with its name and both lengths', (t) => {
  const swapped = { ...latentFeeds, keyUp: tensor('ngc') };
  t.throws(() => inFloat64((g, x) => ({ y: latent(g, x, expandedAttention) }), swapped), /axis 'g' is 7|axis 'n' is 11/);
  t.throws(() => inFloat64(cases.rope?.program ?? (() => ({})), { x: tensor('bsgn'), positions: integers([5, 6, 7]) }), /rotate: a must be \[b, s, heads, 2n or more\]/);
  t.end();
});

/** Programs on stored rows need the wider vocabulary, which both readings here have. */
const stored = <V>(g: StorageEmit<V>, x: Readonly<Record<string, V>>, format: RowFormat): Record<string, V> => {
  const rows = storeRows(g, need(x, 'rows'), format);
  const reader = storedRows(g, rows);
  const halves = groupedRows(g, reader, 2);
  return {
    wide: reader.widen(), score: reader.score(need(x, 'q')), weigh: reader.weigh(need(x, 'w')),
    scoreHalves: halves.score(need(x, 'qHalf')), weighHalves: halves.weigh(need(x, 'wHalf')),
  };
};

for (const tokens of [1, 3]) {
  const weights = (shape: readonly number[]): HostTensor<'float32'> => {
    const drawn = normal(shape, random);
    return { ...drawn, data: drawn.data.map(Math.abs) };
  };
  const feeds = { q: normal([1, tokens, 3, 2, 14], random), rows: normal([1, 11, 14], random), w: weights([1, 3, 2, tokens, 11]), qHalf: normal([1, tokens, 6, 2, 7], random), wHalf: weights([1, 6, 2, tokens, 11]) };
  // Half a step of the largest magnitude, for the rows and, in whole-number products, for the other side too.
  for (const [format, exact, rounded] of [['float32', 1e-6, 1e-6], ['float16', 1e-3, 1e-6], ['int8', 1 / 250, 0.02], ['int4', 1 / 13, 0.02]] as const) {
    t.test(`${format} rows, ${tokens} queries`, async (t) => {
      const ports: Readonly<Record<string, Port['shape']>> = { rows: [1, 't', 14], w: [1, 3, 2, tokens, 't'], wHalf: [1, 6, 2, tokens, 't'] };
      const reference = stored(eager, mapValues(feeds, toEager), format);
      const graph = record('stored', mapValues(feeds, (tensor, name): Omit<Port, 'name'> => ({ dtype: 'float32', shape: ports[name] ?? tensor.shape })), (g, x) => stored(g, x, format));
      const onnx = await runSubgraph(graph, feeds, { threads: 1 });
      t.ok(difference(feeds.rows.data, reference.wide?.data ?? []) < exact, 'stored rows are the rows, rounded');
      for (const [name, value] of Object.entries(reference)) t.ok(difference(value.data, numbers(onnx[name])) < rounded, `${name}: ${difference(value.data, numbers(onnx[name]))}`);
    });
  }
}
