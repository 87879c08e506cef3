/** The cases by name. Adding one is a file here and a row. */
import type { BenchCase } from '../support/case.ts';
import { absorbed } from './absorbed.ts';
import { convertLayer } from './convert-layer.ts';
import { decode } from './decode.ts';
import { expanded } from './expanded.ts';
import { generate } from './generate.ts';
import { load } from './load.ts';
import { memory } from './memory.ts';
import { prefill } from './prefill.ts';
import { rank } from './rank.ts';
import { step } from './step.ts';
import { svd } from './svd.ts';
import { trainStep } from './train-step.ts';

export const cases: Readonly<Record<string, BenchCase>> = {
  rank, svd, 'convert-layer': convertLayer, expanded, absorbed, decode, step, prefill, 'train-step': trainStep, load, memory, generate,
};
