/** The door to Vega: a chart as SVG text, in Node, with no browser and no network. */
import { parse, View } from 'vega';
import { compile, type TopLevelSpec } from 'vega-lite';
import type { Chart } from './charts.ts';

const MANY = 8;

function specification({ title, kind, xTitle, yTitle, logarithmic, points }: Chart): TopLevelSpec {
  const series = new Set(points.map((point) => point.series));
  // With many lines a legend would be longer than the plot: their order is then a shade.
  const colour = series.size === 1 ? { value: '#2b6cb0' }
    : { field: 'series', type: 'nominal' as const, title: null, sort: [...series], ...(series.size > MANY ? { legend: null, scale: { scheme: 'viridis' as const } } : {}) };
  return {
    title, width: 560, height: 260, background: 'white', config: { legend: { labelLimit: 300 } },
    data: { values: points.map((point) => ({ ...point })) },
    mark: kind === 'line' ? { type: 'line', strokeWidth: series.size > MANY ? 0.8 : 1.6 } : kind === 'bar' ? { type: 'bar' } : { type: 'point', filled: true, size: 16 },
    encoding: {
      x: { field: 'x', type: 'quantitative', title: xTitle },
      y: { field: 'y', type: 'quantitative', title: yTitle, ...(logarithmic ? { scale: { type: 'log' as const } } : {}) },
      color: colour,
    },
  };
}

/** A chart as a self-contained SVG element. */
export async function svgOf(chart: Chart): Promise<string> {
  const view = new View(parse(compile(specification(chart)).spec), { renderer: 'none' });
  try {
    return await view.toSVG();
  } finally {
    view.finalize();
  }
}
