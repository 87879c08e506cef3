import { statSync } from 'node:fs';
import { readSafetensors, someNames } from '../checkpoint/safetensors.ts';
import type { HostTensor } from '../graph/subgraph.ts';
import type { Model } from '../models/model.ts';
import { verifyAgainstLogits, verifyAgainstModel, type Verification, type VerifyOptions } from '../session/verify.ts';
import { openTokenizer } from '../text/tokenizer.ts';
import { defineCommand, modelArgument, UsageError } from './command.ts';
import { openNamedModel } from './model-path.ts';
import { pairTableOption, requiredText, text, threadsOption } from './options.ts';
import { listing, percent } from './table.ts';
import { readText, shippedTextPath } from './text-file.ts';
import { withProgress } from './with-progress.ts';

/** Tokens of a text that two models are compared on: every one goes through the decode graph once. */
const TEXT_TOKENS = 256;

async function againstFile(model: Model, file: string, options: VerifyOptions): Promise<Verification> {
  const tensors = await readSafetensors(file);
  const tensor = (name: string): HostTensor => {
    const found = tensors.get(name);
    if (found === undefined) throw new Error(`verify: ${file} must hold ids [b, s] and logits [b, s, vocab], got ${someNames(tensors)}`);
    return found;
  };
  return verifyAgainstLogits(model, tensor('ids'), tensor('logits'), options);
}

async function againstModel(model: Model, other: Model, file: string, options: VerifyOptions): Promise<Verification> {
  const words = await readText('verify: --text', file);
  const [ours, theirs] = [await openTokenizer(model.path), await openTokenizer(other.path)];
  const ids = ours.encode(words);
  if (ours.fingerprint !== theirs.fingerprint && ids.join() !== theirs.encode(words).join()) {
    throw new Error(`verify: both models must cut the text into the same tokens, got different ones from ${model.path} and ${other.path}`);
  }
  if (ids.length === 0) throw new Error(`verify: --text must hold at least one token, got none in ${file}`);
  const length = Math.min(TEXT_TOKENS, model.config.maxPositions, other.config.maxPositions);
  return verifyAgainstModel(model, other, ids.slice(0, length), options);
}

const isLogitsFile = (path: string): boolean => path.endsWith('.safetensors') && statSync(path, { throwIfNoEntry: false })?.isFile() === true;

/** `verify MODEL --against MODEL|FILE`: how far logits are from a reference, and the model's own forms from each other. */
export const verifyModel = defineCommand({
  name: 'verify',
  summary: 'compare a model with recorded logits or with another model',
  argument: modelArgument,
  options: {
    against: requiredText('--against <MODEL|FILE>', 'another model, or a .safetensors file with ids [b, s] and logits [b, s, vocab]'),
    text: text('--text <FILE>', `text that two models are compared on, its first ${TEXT_TOKENS} tokens (default: the one that ships with the package)`),
    pairTable: pairTableOption,
    threads: threadsOption,
  },
  async run(name, { against, text: file, threads, pairTable }, io) {
    const recorded = isLogitsFile(against);
    if (recorded && file !== undefined) throw new UsageError('--text must be left out when --against is a file of logits, got both');
    const model = await openNamedModel(name, io, { pairTable });
    const other = recorded ? null : await openNamedModel(against, io);
    const result = await withProgress('verifying', 'tokens', io, (onProgress) => {
      const options = { threads, signal: io.signal, onProgress };
      return other === null ? againstFile(model, against, options) : againstModel(model, other, file ?? shippedTextPath(), options);
    });
    return {
      json: { ...result },
      text: listing([
        ['compared', `${result.tokens} tokens in ${result.sequences} sequence${result.sequences === 1 ? '' : 's'}`],
        ['largest difference of logits', result.maxAbsDifference.toExponential(2)],
        ['mean KL, nats', result.meanKl.toExponential(2)],
        ['same likeliest token', percent(result.top1Agreement)],
        ['absorbed against expanded', result.absorbedVsExpanded === null ? '- (a source model has one form)' : result.absorbedVsExpanded.toExponential(2)],
        ['cached against uncached', result.cachedVsUncached.toExponential(2)],
      ]),
    };
  },
});
