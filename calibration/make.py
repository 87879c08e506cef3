"""Builds calibration/*.txt from Debian packages and this repository: see calibration/README.md."""
import gzip, os, re, struct, sys, zlib
from html.parser import HTMLParser

packages, repository = sys.argv[1:3]   # packages: where `dpkg -x` put them
out = os.path.join(repository, 'calibration')

def novels():
    data = open(f'{packages}/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb', 'rb').read()
    position, books = 0, []
    while position < len(data):
        stream = zlib.decompressobj()
        raw = stream.decompress(data[position + 4:])
        position = len(data) - len(stream.unused_data)
        lines, at = [], 0
        while (at := raw.find(b'\x00\x04\x00\x09', at)) >= 0:      # a string of R's serialisation: flags, length, bytes
            length = struct.unpack('>i', raw[at + 4:at + 8])[0]
            lines.append(raw[at + 8:at + 8 + length].decode('utf8'))
            at += 8 + length
        books.append(lines)
    return books

def paragraphs(lines):
    text = '\n'.join(line.rstrip() for line in lines)
    return '\n\n'.join(' '.join(block.split()) for block in re.split(r'\n\s*\n', text) if block.strip())

class Text(HTMLParser):
    skipped = {'script', 'style', 'title', 'head'}
    breaks = {'p', 'div', 'h1', 'h2', 'h3', 'h4', 'li', 'tr', 'br', 'dt', 'dd', 'table', 'ul', 'ol'}
    def __init__(self):
        super().__init__(); self.parts, self.deep, self.pre = [], 0, 0
    def handle_starttag(self, tag, attrs):
        if tag in self.skipped: self.deep += 1
        if tag == 'pre': self.pre += 1; self.parts.append('\n\n')
        if tag in self.breaks: self.parts.append('\n' if tag in ('li', 'tr', 'br') else '\n\n')
    def handle_endtag(self, tag):
        if tag in self.skipped: self.deep -= 1
        if tag == 'pre': self.pre -= 1; self.parts.append('\n\n')
    def handle_data(self, data):
        if self.deep: return
        self.parts.append(data if self.pre else re.sub(r'\s+', ' ', data))

def page(name):
    parser = Text(); parser.feed(open(f'{packages}/usr/share/doc/sqlite3/{name}.html', encoding='utf8').read())
    text = ''.join(parser.parts)
    text = re.sub(r'[ \t]+\n', '\n', text)
    text = re.sub(r'(?<=\n) (?=\S)', '', text)
    text = re.sub(r'\n{3,}', '\n\n', text).strip()
    start = text.find('Search Changelog'); text = text[start + 16:].strip() if start >= 0 else text
    return re.sub(r'^This page last modified on.*$', '', text, flags=re.M).strip()

def ascii(text):
    for a, b in {'\u2018': "'", '\u2019': "'", '\u201c': '"', '\u201d': '"', '\u2014': '--', '\u2013': '-', '\u00a0': ' ', '\u2026': '...'}.items(): text = text.replace(a, b)
    return text

def write(name, text, limit):
    cut = ascii(text)[:limit]; cut = cut[:cut.rfind('\n')] + '\n'
    open(os.path.join(out, name), 'w').write(cut); print(name, len(cut))

if __name__ == '__main__':
    os.makedirs(out, exist_ok=True)
    novel = {book[0]: book for book in novels()}
    write('prose.txt', paragraphs(novel['NORTHANGER ABBEY'][8:]), 60_000)
    write('dialogue.txt', paragraphs(novel['PRIDE AND PREJUDICE'][6:]), 60_000)
    jargon = gzip.open(f'{packages}/usr/share/doc/jargon-text/jargon.txt.gz', 'rt', encoding='utf8').read()
    entries = jargon.index('abbrev: /')
    write('glossary.txt', paragraphs(jargon[entries:].split('\n')), 60_000)
    pages = ['whentouse', 'faq', 'atomiccommit', 'wal', 'isolation', 'queryplanner', 'howtocorrupt']
    write('manual.txt', '\n\n'.join(page(name) for name in pages), 80_000)
    header = open(f'{packages}/usr/include/sqlite3.h', encoding='utf8').read()
    ours = ['kernels/attention.ts', 'kernels/latent-attention.ts', 'lib/linalg/hermitian-eigh.ts', 'lib/random.ts', 'lib/graph/dims.ts', 'lib/checkpoint/safetensors.ts']
    sources = [open(os.path.join(repository, path), encoding='utf8').read() for path in ours]
    # turns of C and TypeScript, so that a short window count sees both
    half = [header[i * 9_000:(i + 1) * 9_000] for i in range(len(sources))]
    write('code.txt', '\n'.join(part for pair in zip(half, sources) for part in pair), 80_000)
