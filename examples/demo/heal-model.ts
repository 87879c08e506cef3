import { readdirSync, readFileSync } from 'node:fs';
import { heal, healingText, openModel, openTokenizer, packageFile, startProgress, type Healing } from '../../lib/index.ts';

/** The texts that ship for calibration, which healing learns from too. */
function shippedTexts(): { readonly name: string; readonly text: string }[] {
  const names = readdirSync(packageFile('calibration')).filter((name) => name.endsWith('.txt')).sort();
  return names.map((name) => ({ name, text: readFileSync(packageFile('calibration', name), 'utf8') }));
}

/** Trains the conversion at `converted` on so many tokens, with `source` as its teacher, into `out`. */
export async function healModel(source: string, converted: string, out: string, tokens: number): Promise<Healing> {
  const tokenizer = await openTokenizer(source);
  const bar = startProgress('healing', tokens, 'tokens');
  try {
    return await heal(await openModel(source), await openModel(converted), out, {
      tokens, text: healingText(tokenizer, shippedTexts()), files: async () => tokenizer.files,
      onUpdate: ({ step, steps }) => bar.update(Math.round((tokens * step) / steps)),
    });
  } finally {
    bar.stop();
  }
}
