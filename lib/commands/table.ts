/** Rows as aligned columns: text to the left, figures to the right. */
export function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const lines = [header, ...rows];
  const widths = header.map((_, column) => Math.max(...lines.map((line) => (line[column] ?? '').length)));
  const figures = header.map((_, column) => rows.length > 0 && rows.every((row) => /^(-?[\d.,]+( ?%|e[-+]?\d+)?|-|)$/.test(row[column] ?? '')));
  return lines.map((line) => line.map((cell, column) => {
    const width = widths[column] ?? 0;
    return figures[column] === true ? cell.padStart(width) : cell.padEnd(width);
  }).join('  ').trimEnd()).join('\n');
}

/** Names and values below each other. */
export function listing(pairs: readonly (readonly [name: string, value: string])[]): string {
  const width = Math.max(...pairs.map(([name]) => name.length));
  return pairs.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join('\n');
}

/** 1234567 -> 1,234,567 */
export const grouped = (value: number): string => value.toLocaleString('en-US', { maximumFractionDigits: 1 });

export const percent = (share: number): string => `${(100 * share).toFixed(2)} %`;
