/** The training curve as a picture. */

export interface CurvePoint {
  readonly step: number;
  readonly loss: number;
}

const WIDTH = 720, HEIGHT = 360, LEFT = 64, RIGHT = 16, TOP = 28, BOTTOM = 40;

/** Round numbers that cover low..high in about five steps. */
function ticks(low: number, high: number): number[] {
  const rough = Math.max(high - low, 1e-9) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((size) => size >= rough) ?? rough;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(1, Math.floor(high / step + 1e-9) - first + 1) }, (_, i) => Number(((first + i) * step).toPrecision(6)));
}

/** Not Math.min(...): a long run has more points than a call takes arguments. */
const least = (values: readonly number[]): number => values.reduce((a, b) => Math.min(a, b), Infinity);

/** Moving mean over about a fiftieth of the points, so that the trend shows. */
function smooth(points: readonly CurvePoint[]): CurvePoint[] {
  const keep = 1 - 1 / Math.max(2, points.length / 50);
  let mean: number | null = null;
  return points.map(({ step, loss }) => {
    mean = mean === null ? loss : keep * mean + (1 - keep) * loss;
    return { step, loss: mean };
  });
}

/** An SVG of loss over steps: every update pale, their moving mean dark, evaluations as dots. Points must be finite. */
export function curveSvg(title: string, points: readonly CurvePoint[], evaluations: readonly CurvePoint[]): string {
  const all = [...points, ...evaluations];
  const [from, to] = [Math.min(0, least(all.map((p) => p.step))), Math.max(1, -least(all.map((p) => -p.step)))];
  const [low, high] = all.length === 0 ? [0, 1] : [least(all.map((p) => p.loss)), -least(all.map((p) => -p.loss))];
  const span = Math.max(high - low, 1e-9);
  const x = (step: number): string => (LEFT + ((step - from) / (to - from)) * (WIDTH - LEFT - RIGHT)).toFixed(1);
  const y = (loss: number): string => (TOP + ((high - loss) / span) * (HEIGHT - TOP - BOTTOM)).toFixed(1);
  const line = (of: readonly CurvePoint[], colour: string, width: number): string =>
    `<polyline fill="none" stroke="${colour}" stroke-width="${width}" points="${of.map((p) => `${x(p.step)},${y(p.loss)}`).join(' ')}"/>`;
  const text = (at: string, to: string, content: string, anchor: string): string => `<text x="${at}" y="${to}" text-anchor="${anchor}">${content}</text>`;
  const escaped = title.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="11" fill="#333">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="#fff"/>`, text(String(WIDTH / 2), '18', escaped, 'middle'),
    ...ticks(low, high).map((loss) => `<path d="M${LEFT} ${y(loss)}H${WIDTH - RIGHT}" stroke="#e4e4e4"/>${text(String(LEFT - 6), y(loss), String(loss), 'end')}`),
    ...ticks(from, to).map((step) => text(x(step), String(HEIGHT - BOTTOM + 16), String(step), 'middle')),
    text(String(WIDTH / 2), String(HEIGHT - 8), 'step', 'middle'),
    line(points, '#b9cbe8', 1), line(smooth(points), '#1f4e9c', 1.5),
    ...evaluations.map((p) => `<circle cx="${x(p.step)}" cy="${y(p.loss)}" r="3" fill="#c0392b"/>`),
    '</svg>', '',
  ].join('\n');
}
