/** A conversion's report as one HTML file that needs nothing beside it. */
import type { ConversionReport } from '../convert.ts';
import { chartsOf } from './charts.ts';
import { svgOf } from './plots.ts';

const escape = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
const number = (value: number): string => value.toLocaleString('en', { maximumFractionDigits: 4 });

const STYLE = `body{font:15px/1.5 system-ui,sans-serif;max-width:760px;margin:2rem auto;padding:0 1rem;color:#1a202c}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .75rem;text-align:right;border-bottom:1px solid #e2e8f0}td:first-child,th:first-child{text-align:left}
figure{margin:1.5rem 0}svg{max-width:100%;height:auto}.warning{background:#fffbeb;border-left:4px solid #d69e2e;padding:.5rem 1rem;margin:.5rem 0}`;

function rows(report: ConversionReport): [string, string][] {
  const { cacheElementsPerToken: { before, after }, perplexity, calibration, healing } = report;
  const facts: [string, string][] = [
    ['what keeps rotating', report.plan],
    ['factors', report.factor],
    ['budget', report.budget],
    ['cached elements per token', `${number(before)} → ${number(after)} (${number(100 * report.reduction)} % less)`],
    ['cache in float32, bytes per token', `${number(4 * before)} → ${number(4 * after)}`],
    ['seconds', number(report.seconds)],
  ];
  if (perplexity !== null) facts.push([`perplexity on ${number(perplexity.tokens)} tokens of the calibration text that it was not calibrated on`, `${number(perplexity.before)} → ${number(perplexity.after)}`]);
  facts.push(['calibration', calibration === null ? 'none: by the weights alone' : `${number(calibration.tokens)} tokens of ${calibration.texts.map(({ name }) => name).join(', ')}${calibration.refit ? '; outputs refitted' : ''}`]);
  if (healing !== null) facts.push(['healing', `${number(healing.tokens)} tokens of ${healing.texts.join(', ')}; ${healing.train} learnt, peak rate ${number(healing.learningRate)}, ${number(healing.seconds)} s`]);
  if (healing !== null && healing.perplexity !== null) {
    const { source, before: converted, after: healed } = healing.perplexity;
    facts.push([`perplexity of source, conversion and healed conversion on text kept aside, windows of ${number(healing.sequenceLength)}`, `${number(source)}, ${number(converted)}, ${number(healed)}`]);
  }
  return facts;
}

/** The report as HTML, its plots as SVG inside. */
export async function reportHtml(report: ConversionReport): Promise<string> {
  const figures: string[] = [];
  for (const chart of chartsOf(report)) figures.push(`<figure>${await svgOf(chart)}</figure>`);
  const title = `Conversion of ${escape(report.source)} to latent attention`;
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>${title}</title><style>${STYLE}</style></head><body>
<h1>${title}</h1>
${report.warnings.map((warning) => `<p class="warning">${escape(warning)}</p>`).join('\n')}
<table>${rows(report).map(([name, value]) => `<tr><td>${escape(name)}</td><td>${escape(value)}</td></tr>`).join('')}</table>
${figures.join('\n')}
<table><tr><th>layer</th><th>rank</th><th>components</th><th>key error</th><th>value error</th><th>output error</th><th>energy kept</th></tr>
${report.layers.map((layer) => `<tr>${[layer.layer, layer.rank, layer.components, layer.keyError, layer.valueError, layer.outputError, layer.energyKept].map((cell) => `<td>${cell === null ? '–' : number(cell)}</td>`).join('')}</tr>`).join('\n')}
</table></body></html>
`;
}
