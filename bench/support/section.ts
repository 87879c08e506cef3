/** A page of Markdown with the `## heading` section replaced where it stands, or added at the end. */
export function replaceSection(page: string, heading: string, body: string): string {
  const [top = '', ...sections] = page.split(/^## /m);
  const own = `${heading}\n\n${body.trim()}\n`;
  const at = sections.findIndex((section) => section.startsWith(`${heading}\n`));
  const kept = at < 0 ? [...sections, own] : sections.map((section, i) => (i === at ? own : section));
  return `${top.trimEnd()}\n\n${kept.map((section) => `## ${section.trimEnd()}\n`).join('\n')}`;
}
