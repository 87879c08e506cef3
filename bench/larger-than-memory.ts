/**
 * npm run larger-than-memory -- [--layers 4] [--hidden 4096] [--heads 32] [--kv-heads 32] [--intermediate 11008] [--vocab 32000]
 *                               [--cache-share 0.125] [--windows 0] [--tokens 512] [--work DIR]
 *
 * Converts a synthetic float16 checkpoint in shards (random weights; Llama-2-7B's shape unless told otherwise) and holds the
 * peak memory of the conversion against the size of its layers: it must not grow with their number. With --windows, random
 * tokens calibrate it, refit included; as for a model larger than memory no perplexity is measured. Prints a table for people
 * and a last line of JSON for machines.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { calibrationOf, convert, openModel, packageFile, seededRandom, startProgress, toDType, writeShardedSafetensors, type TensorSource } from '../lib/index.ts';
import { markdownTable } from './support/table.ts';

const options = {
  layers: { type: 'string', default: '4' }, hidden: { type: 'string', default: '4096' }, heads: { type: 'string', default: '32' },
  'kv-heads': { type: 'string', default: '32' }, intermediate: { type: 'string', default: '11008' }, vocab: { type: 'string', default: '32000' },
  'cache-share': { type: 'string', default: '0.125' }, windows: { type: 'string', default: '0' }, tokens: { type: 'string', default: '512' },
  work: { type: 'string', default: packageFile('converted', 'larger-than-memory') },
} as const;
/** The conversion runs in a process of its own, started with this word: its peak is then its own. */
const CONVERT = 'convert-only';
const { values, positionals } = parseArgs({ options, allowPositionals: true });
const [layers, hidden, heads, kvHeads, intermediate, vocab, windows, tokens] =
  [values.layers, values.hidden, values.heads, values['kv-heads'], values.intermediate, values.vocab, values.windows, values.tokens].map(Number) as [number, number, number, number, number, number, number, number];
const source = join(values.work, 'source'), converted = join(values.work, 'converted');
/** What this script writes; whatever else lies in --work stays. */
const removeModels = (): void => { for (const directory of [source, converted]) rmSync(directory, { recursive: true, force: true }); };

type Shapes = readonly (readonly [name: string, shape: readonly number[]])[];

function layerShapes(layer: number): Shapes {
  const width = (hidden / heads) * kvHeads, prefix = `model.layers.${layer}`;
  return [
    [`${prefix}.input_layernorm.weight`, [hidden]], [`${prefix}.post_attention_layernorm.weight`, [hidden]],
    [`${prefix}.self_attn.q_proj.weight`, [hidden, hidden]], [`${prefix}.self_attn.k_proj.weight`, [width, hidden]],
    [`${prefix}.self_attn.v_proj.weight`, [width, hidden]], [`${prefix}.self_attn.o_proj.weight`, [hidden, hidden]],
    [`${prefix}.mlp.gate_proj.weight`, [intermediate, hidden]], [`${prefix}.mlp.up_proj.weight`, [intermediate, hidden]], [`${prefix}.mlp.down_proj.weight`, [hidden, intermediate]],
  ];
}

const size = (shapes: Shapes): number => shapes.reduce((sum, [, shape]) => sum + shape.reduce((a, b) => a * b, 1), 0);

/** Weights spread evenly around 0 with deviation 1 / sqrt(inputs), norms near 1, drawn when their turn to be written comes. */
function sourceTensor(name: string, shape: readonly number[], seed: number): TensorSource {
  const [, inputs] = shape, spread = inputs === undefined ? 0.1 : Math.sqrt(3 / inputs), middle = inputs === undefined ? 1 : 0;
  return {
    name, shape, dtype: 'float16',
    read() {
      const random = seededRandom(seed), data = new Float32Array(size([[name, shape]]));
      for (let i = 0; i < data.length; i++) data[i] = middle + spread * (2 * random.uniform() - 1);
      return toDType({ dtype: 'float32', shape, data }, 'float16');
    },
  };
}

async function writeSource(): Promise<void> {
  removeModels();
  mkdirSync(source, { recursive: true });
  const shapes: Shapes = [
    ['model.embed_tokens.weight', [vocab, hidden]], ...Array.from({ length: layers }, (_, layer) => layerShapes(layer)).flat(),
    ['model.norm.weight', [hidden]], ['lm_head.weight', [vocab, hidden]],
  ];
  await writeShardedSafetensors(source, shapes.map(([name, shape], i) => sourceTensor(name, shape, i)), { maxShardBytes: 2e9 });
  writeFileSync(join(source, 'config.json'), JSON.stringify({
    model_type: 'llama', architectures: ['LlamaForCausalLM'], hidden_size: hidden, intermediate_size: intermediate, num_hidden_layers: layers, num_attention_heads: heads,
    num_key_value_heads: kvHeads, vocab_size: vocab, max_position_embeddings: 4096, rms_norm_eps: 1e-5, rope_theta: 10000, tie_word_embeddings: false,
  }));
}

async function convertSource(): Promise<{ peakBytes: number; seconds: number }> {
  const model = await openModel(source), random = seededRandom(1);
  const tokenizer = { fingerprint: 'random', encode: () => Array.from({ length: (windows + 1) * tokens }, () => random.integer(vocab)) };
  const calibration = windows === 0 ? {} : { calibration: await calibrationOf(model, tokenizer, [{ name: 'random tokens', text: 'random tokens' }], { window: tokens, windows, attentionWindows: 1 }) };
  const bar = startProgress('layers', layers, 'layers');
  const { seconds } = await convert(model, converted, { budget: { cacheShare: Number(values['cache-share']) }, ...calibration, memoryBytes: 0, onProgress: (done) => { bar.update(done); } });
  bar.stop();
  return { peakBytes: 1024 * process.resourceUsage().maxRSS, seconds };
}

async function main(): Promise<void> {
  if (positionals[0] === CONVERT) {
    console.log(JSON.stringify(await convertSource()));
    return;
  }
  await writeSource();
  const output = execFileSync(process.execPath, [...process.execArgv, ...process.argv.slice(1), CONVERT], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
  const { peakBytes, seconds } = JSON.parse(output.trim().split('\n').at(-1) ?? '') as Awaited<ReturnType<typeof convertSource>>;
  const layerBytes = 2 * size(layerShapes(0)), sourceBytes = layers * layerBytes + 4 * vocab * hidden;
  const gigabytes = (bytes: number): string => (bytes / 1e9).toFixed(2);
  console.log(markdownTable(
    ['layers', 'source, GB', 'one layer as stored, GB', 'peak of the conversion, GB', 'peak in layers as stored', 'peak in layers as float32', 'seconds'],
    [[`${layers}`, gigabytes(sourceBytes), gigabytes(layerBytes), gigabytes(peakBytes), (peakBytes / layerBytes).toFixed(2), (peakBytes / layerBytes / 2).toFixed(2), seconds.toFixed(0)]],
  ));
  removeModels();
  console.log(JSON.stringify({ layers, hidden, windows, tokens, sourceBytes, layerBytes, peakBytes, seconds }));
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
