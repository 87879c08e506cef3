/** `--weights`: what a model's weights are held in while it runs; its files stay as they are. */
import type { Model } from '../models/model.ts';
import type { Pass } from '../passes/pass.ts';
import { weightFormats, weightPasses, type WeightFormatName } from '../passes/weight-formats.ts';
import { weightCodesPass } from '../session/calibrate-weights.ts';
import { loadWeightCodes } from '../session/weight-codes-file.ts';
import { UsageError, type OptionSpec } from './command.ts';
import { namesOf, shown } from './options.ts';

const isFormat = (name: string): name is WeightFormatName => Object.hasOwn(weightFormats, name);
const CODES = '.safetensors';

/** A format by name, or a file that `quantise` has made. */
export const weightsOption: OptionSpec<string> = {
  flags: '--weights <TYPE>',
  help: `type of the weights in memory: ${namesOf(weightFormats).join(', ')} (default f32), or a ${CODES} file that \`quantise\` has made`,
  read(raw) {
    if (raw === undefined) return 'f32';
    if (typeof raw === 'string' && (isFormat(raw) || raw.endsWith(CODES))) return raw;
    throw new UsageError(`--weights must be one of ${namesOf(weightFormats).join(', ')} or a ${CODES} file, got ${shown(raw)}`);
  },
};

/** The passes of a value of `weightsOption`. Errors: as loadWeightCodes. */
export const passesFor = async (model: Model, weights: string): Promise<readonly Pass[]> =>
  (isFormat(weights) ? weightPasses(weights) : [await weightCodesPass(model, await loadWeightCodes(weights, model))]);
