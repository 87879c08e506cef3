/** What training starts from, as files in a working directory. */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { initialWeights, parseConfig, tensorSources, writeSafetensors } from '../../lib/index.ts';
import { configuration, SEED, VOCABULARY } from './recipe.ts';
import { readBible, readJargon, readNovels } from './texts.ts';
import { tokenizerFiles } from './tokenizer-files.ts';
import { countWords, trainBpe } from './train-bpe.ts';

/** Kept out of training: the end of *Persuasion*, to see by. */
const HELD_OUT = { novel: 'PERSUASION', characters: 45_000 };

export interface Prepared {
  /** Texts as .jsonl, one document a line. */
  readonly texts: Readonly<Record<'novels' | 'bible' | 'jargon', string>>;
  /** Text that training does not see. */
  readonly heldOut: string;
  /** Model directory with random weights and the tokenizer. */
  readonly start: string;
}

export async function prepare(packages: string, work: string): Promise<Prepared> {
  const texts = { novels: join(work, 'novels.jsonl'), bible: join(work, 'bible.jsonl'), jargon: join(work, 'jargon.jsonl') };
  const prepared = { texts, heldOut: join(work, 'held-out.txt'), start: join(work, 'start') };
  if (existsSync(join(prepared.start, 'model.safetensors'))) return prepared; // written last
  const novels = readNovels(packages);
  const novel = novels.get(HELD_OUT.novel) ?? '';
  const cut = novel.indexOf('\n\n', novel.length - HELD_OUT.characters); // at the end of a paragraph
  const documents = {
    novels: [...novels].map(([name, text]) => (name === HELD_OUT.novel ? novel.slice(0, cut) : text)),
    bible: readBible(packages),
    jargon: [readJargon(packages)],
  };
  mkdirSync(prepared.start, { recursive: true });
  for (const kind of ['novels', 'bible', 'jargon'] as const) writeFileSync(texts[kind], documents[kind].map((text) => `${JSON.stringify({ text })}\n`).join(''));
  writeFileSync(prepared.heldOut, `${novel.slice(cut).trim()}\n`);
  const bpe = trainBpe(countWords(Object.values(documents).flat()), VOCABULARY - 1);
  for (const [name, text] of Object.entries(tokenizerFiles(bpe))) writeFileSync(join(prepared.start, name), text);
  writeFileSync(join(prepared.start, 'config.json'), `${JSON.stringify(configuration, null, 1)}\n`);
  const weights = initialWeights(parseConfig(configuration, 'the embedded model'), { seed: SEED });
  await writeSafetensors(join(prepared.start, 'model.safetensors'), tensorSources(weights));
  return prepared;
}
