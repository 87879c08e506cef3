import { existsSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { calibrateWeights } from '../session/calibrate-weights.ts';
import { saveWeightCodes } from '../session/weight-codes-file.ts';
import { openTokenizer } from '../text/tokenizer.ts';
import { textsFor } from './calibrate.ts';
import { defineCommand, modelArgument, UsageError } from './command.ts';
import { openNamedModel } from './model-path.ts';
import { pairTableOption, requiredText, texts, threadsOption, wholeNumber } from './options.ts';
import { grouped, listing, percent } from './table.ts';
import { withProgress } from './with-progress.ts';

const WINDOW_TOKENS = 512, TEXT_TOKENS = 6144;

/** `count` windows of `window` tokens from all over `ids`, side by side where there are no more. */
function spread(ids: readonly number[], window: number, count: number): number[][] {
  const whole = Math.floor(ids.length / window), taken = Math.min(whole, count);
  return Array.from({ length: taken }, (_, i) => Math.floor((i * whole) / taken)).map((at) => ids.slice(at * window, (at + 1) * window));
}

/** `quantise MODEL --out FILE`: weights in few bits, rounded for a text, for `--weights FILE`. */
export const quantise = defineCommand({
  name: 'quantise',
  summary: 'round the weights to 4 bits as a text bears it best, for --weights of eval and generate',
  argument: modelArgument,
  options: {
    out: requiredText('--out <FILE>', 'the codes, a .safetensors file'),
    text: texts('--text <FILE...>', 'texts whose activations guide the rounding, UTF-8 (default: those that ship with the package)'),
    tokens: wholeNumber('--tokens <N>', `tokens of the texts to use, from all over them (default ${grouped(TEXT_TOKENS)})`, { least: 1 }),
    blockSize: wholeNumber('--block-size <N>', 'weights that share a scale, a power of two (default 32)', { least: 16 }),
    pairTable: pairTableOption,
    threads: threadsOption,
  },
  async run(name, { out, text, tokens = TEXT_TOKENS, blockSize, pairTable, threads }, io) {
    if (!out.endsWith('.safetensors')) throw new UsageError(`--out must end in .safetensors, got ${out}`);
    if (blockSize !== undefined && !Number.isInteger(Math.log2(blockSize))) throw new UsageError(`--block-size must be a power of two, got ${blockSize}`);
    if (existsSync(out)) throw new Error(`quantise: --out must be a new file, but ${out} is there`);
    const given = await textsFor('quantise: --text', text.length > 0 ? text : undefined);
    const model = await openNamedModel(name, io, { pairTable });
    const tokenizer = await openTokenizer(model.path);
    const window = Math.min(WINDOW_TOKENS, model.config.maxPositions, tokens);
    const windows = given.flatMap(({ text: words }) => spread(tokenizer.encode(words), window, Math.max(1, Math.floor(tokens / window / given.length))));
    if (windows.length === 0) throw new Error(`quantise: --text must have at least ${window} tokens, got fewer in ${given.map((one) => one.name).join(', ') || 'no text'}`);
    const begin = io.clock();
    const codes = await withProgress('rounding', 'matrices', io, (onProgress) =>
      calibrateWeights(model, windows, { ...(blockSize === undefined ? {} : { blockSize }), ...(threads === undefined ? {} : { threads }), signal: io.signal, onProgress }));
    await saveWeightCodes(out, codes, { signal: io.signal });
    const seconds = (io.clock() - begin) / 1000, errors = [...codes.codes.values()].map(({ relativeError }) => relativeError);
    const json = {
      matrices: codes.codes.size, tokens: windows.length * window, texts: given.map((one) => one.name), bytes: (await stat(out)).size,
      meanRelativeError: errors.reduce((sum, error) => sum + error, 0) / Math.max(1, errors.length), seconds, out: resolve(out),
    };
    return {
      json,
      text: listing([
        ['matrices in 4 bits', grouped(json.matrices)],
        ['tokens', `${grouped(json.tokens)} of ${json.texts.join(', ')}`],
        ['mean relative error of a matrix', percent(json.meanRelativeError)],
        ['bytes', grouped(json.bytes)],
        ['seconds', grouped(seconds)],
        ['written to', out],
      ]),
    };
  },
});
