import type { Command } from './command.ts';
import { convertModel } from './convert.ts';
import { evaluate } from './eval.ts';
import { generateText } from './generate.ts';
import { inspect } from './inspect.ts';
import { quantise } from './quantise.ts';
import { trainModel } from './train.ts';
import { verifyModel } from './verify.ts';

/** Every command, in the order of the help text. */
export const commands: readonly Command[] = [inspect, convertModel, quantise, evaluate, generateText, verifyModel, trainModel];
