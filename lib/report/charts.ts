/** What the report draws, as chart descriptions: plain records, drawn by plots.ts. */
import type { ConversionReport } from '../convert.ts';

/** One series of points; `series` names the line it belongs to. */
export interface Point {
  readonly x: number;
  readonly y: number;
  readonly series: string;
}

/** What a picture shows. */
export interface Chart {
  readonly title: string;
  readonly kind: 'line' | 'point' | 'bar';
  readonly xTitle: string;
  readonly yTitle: string;
  readonly logarithmic: boolean;
  readonly points: readonly Point[];
}

/** Singular values below this share of the largest are rounding and would only stretch the axis. */
const ROUNDING = 1e-7;

/** The charts that a conversion has numbers for. */
export function chartsOf({ layers }: ConversionReport): Chart[] {
  const perLayer = (series: string, of: (layer: ConversionReport['layers'][number]) => number | null): Point[] =>
    layers.flatMap((layer) => {
      const y = of(layer);
      return y === null ? [] : [{ x: layer.layer, y, series }];
    });
  const charts: Chart[] = [
    {
      title: 'Relative error of keys, values and attention output', kind: 'line', xTitle: 'layer', yTitle: 'relative error', logarithmic: false,
      points: [
        ...perLayer('keys', ({ keyError }) => keyError), ...perLayer('values', ({ valueError }) => valueError),
        ...perLayer('output before the refit', ({ outputErrorBeforeRefit }) => outputErrorBeforeRefit), ...perLayer('output', ({ outputError }) => outputError),
      ],
    },
    { title: 'Energy of keys and values that the latent keeps', kind: 'bar', xTitle: 'layer', yTitle: 'share', logarithmic: false, points: perLayer('kept', ({ energyKept }) => energyKept) },
    {
      title: 'Singular values, relative to the largest', kind: 'line', xTitle: 'index', yTitle: 'relative to the largest', logarithmic: true,
      points: layers.flatMap(({ layer, spectrum }) => spectrum.flatMap((value, x): Point[] => (value > ROUNDING * (spectrum[0] ?? NaN) ? [{ x, y: value / (spectrum[0] ?? NaN), series: `layer ${layer}` }] : []))),
    },
    {
      title: 'Frequencies that keep rotating', kind: 'point', xTitle: 'layer', yTitle: 'radians per token', logarithmic: true,
      points: layers.flatMap(({ layer, frequencies }) => frequencies.flatMap((y): Point[] => (y > 0 ? [{ x: layer, y, series: 'component' }] : []))),
    },
  ];
  return charts.filter(({ points }) => points.length > 0);
}
