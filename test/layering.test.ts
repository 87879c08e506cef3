/** The arrows of docs/architecture.md: examples, bench, test -> lib -> kernels; one door per package; no circles. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import ts from 'typescript';

const root = fileURLToPath(new URL('..', import.meta.url));
const GENERATED = 'lib/graph/generated/';
/** Hard limit; about 200 is the aim. */
const MOST_LINES = 300;

/** The only file of lib that may import each package. zod checks what is parsed, wherever a format is parsed. */
const doors: Readonly<Record<string, string>> = {
  '@huggingface/hub': 'lib/hub.ts',
  '@huggingface/jinja': 'lib/text/chat.ts',
  '@huggingface/tokenizers': 'lib/text/tokenizer.ts',
  '@bufbuild/protobuf': 'lib/graph/onnx.ts',
  'cli-progress': 'lib/progress.ts',
  vega: 'lib/report/plots.ts',
  'vega-lite': 'lib/report/plots.ts',
  commander: 'lib/cli.ts',
  fp16: 'lib/float16.ts',
  ndarray: 'lib/tensor.ts',
  'onnxruntime-node': 'lib/graph/runtime.ts',
};
const anywhere = ['zod'];

interface Import {
  readonly from: string;
  readonly typeOnly: boolean;
}

interface SourceFile {
  readonly path: string;
  readonly lines: number;
  readonly imports: readonly Import[];
  /** Lines of `any` types and of directives that silence the compiler or the linter. */
  readonly loose: readonly number[];
}

function filesBelow(folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)).replaceAll('\\', '/'))
    .filter((path) => !path.startsWith('test/data/') && !path.includes('node_modules/'));
}

const isTypeOnly = (clause: ts.ImportClause | undefined): boolean =>
  clause !== undefined && (clause.phaseModifier === ts.SyntaxKind.TypeKeyword || (clause.name === undefined && clause.namedBindings !== undefined
    && ts.isNamedImports(clause.namedBindings) && clause.namedBindings.elements.every((element) => element.isTypeOnly)));

function read(path: string): SourceFile {
  const text = readFileSync(join(root, path), 'utf8');
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.ES2022, true);
  const imports: Import[] = [];
  const loose: number[] = [];
  const lineOf = (position: number): number => source.getLineAndCharacterOfPosition(position).line + 1;
  const add = (specifier: ts.Expression | undefined, typeOnly: boolean): void => {
    if (specifier === undefined || !ts.isStringLiteral(specifier)) return;
    const { text: from } = specifier;
    imports.push({ from: from.startsWith('.') ? normalize(join(dirname(path), from)).replaceAll('\\', '/') : from, typeOnly });
  };
  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node)) add(node.moduleSpecifier, isTypeOnly(node.importClause));
    else if (ts.isExportDeclaration(node)) add(node.moduleSpecifier, node.isTypeOnly);
    else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) add(node.arguments[0], false);
    else if (node.kind === ts.SyntaxKind.AnyKeyword) loose.push(lineOf(node.getStart()));
    ts.forEachChild(node, visit);
  };
  visit(source);
  // Spelled in two parts, so that this file does not find itself.
  for (const match of text.matchAll(new RegExp('@ts-' + '(ignore|expect-error|nocheck)|eslint-' + 'disable', 'g'))) loose.push(lineOf(match.index));
  return { path, lines: text.split('\n').length - (text.endsWith('\n') ? 1 : 0), imports, loose };
}

const folders = ['kernels', 'lib', 'test', 'bench', 'examples'];
const files = folders.filter((folder) => existsSync(join(root, folder))).flatMap(filesBelow).map(read);
const own = files.filter(({ path }) => !path.startsWith(GENERATED));
const below = (folder: string): SourceFile[] => files.filter(({ path }) => path.startsWith(`${folder}/`));
const isOwnPath = (from: string): boolean => folders.some((folder) => from.startsWith(`${folder}/`));
/** `@scope/name/deep` -> `@scope/name`. */
const packageOf = (from: string): string => from.split('/').slice(0, from.startsWith('@') ? 2 : 1).join('/');

t.test('kernels import only kernels', (t) => {
  t.same(below('kernels').flatMap(({ path, imports }) => imports.filter(({ from }) => !from.startsWith('kernels/')).map(({ from }) => `${path} <- ${from}`)), []);
  t.ok(below('kernels').length > 10, 'kernels were found');
  t.end();
});

t.test('lib imports kernels, lib, Node and its packages', (t) => {
  const allowed = (from: string): boolean => from.startsWith('lib/') || from.startsWith('kernels/') || from.startsWith('node:') || Object.hasOwn(doors, packageOf(from)) || anywhere.includes(from);
  t.same(below('lib').flatMap(({ path, imports }) => imports.filter(({ from }) => !allowed(from)).map(({ from }) => `${path} <- ${from}`)), []);
  t.end();
});

t.test('examples and benches use the public list', (t) => {
  const allowed = (path: string, from: string): boolean => !isOwnPath(from) || ['lib/index.ts', 'kernels/index.ts'].includes(from) || dirname(path).split('/')[0] === from.split('/')[0];
  t.same([...below('examples'), ...below('bench')].flatMap(({ path, imports }) => imports.filter(({ from }) => !allowed(path, from)).map(({ from }) => `${path} <- ${from}`)), []);
  t.end();
});

t.test('each package has one door', (t) => {
  for (const [name, door] of Object.entries(doors)) {
    const importers = below('lib').filter(({ path, imports }) => !path.startsWith(GENERATED) && imports.some(({ from }) => packageOf(from) === name)).map(({ path }) => path);
    t.same(importers, [door], name);
  }
  const declared: unknown = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const dependencies = Object.keys((declared as { readonly dependencies: Readonly<Record<string, string>> }).dependencies).filter((name) => !name.startsWith('@types/'));
  t.same(dependencies.sort(), [...Object.keys(doors), ...anywhere].sort(), 'every dependency is used, and no other');
  t.end();
});

t.test('no circles among files, type-only imports aside', (t) => {
  const byPath = new Map(files.map((file) => [file.path, file]));
  const circles: string[] = [];
  const done = new Set<string>();
  const walk = (path: string, trail: readonly string[]): void => {
    const start = trail.indexOf(path);
    if (start >= 0) circles.push([...trail.slice(start), path].join(' -> '));
    if (start >= 0 || done.has(path)) return;
    for (const { from, typeOnly } of byPath.get(path)?.imports ?? []) if (!typeOnly && byPath.has(from)) walk(from, [...trail, path]);
    done.add(path);
  };
  for (const path of byPath.keys()) walk(path, []);
  t.same(circles, []);
  t.end();
});

t.test('relative imports name existing .ts files', (t) => {
  const paths = new Set(files.map(({ path }) => path));
  t.same(own.flatMap(({ path, imports }) => imports.filter(({ from }) => isOwnPath(from) && !paths.has(from)).map(({ from }) => `${path} <- ${from}`)), []);
  t.end();
});

t.test('files stay short and types strict', (t) => {
  t.same(own.filter(({ path, lines }) => !path.startsWith('test/') && lines > MOST_LINES).map(({ path, lines }) => `${path}: ${lines} lines`), []);
  t.same(own.flatMap(({ path, loose }) => loose.map((line) => `${path}:${line}`)), [], 'no `any`, no silenced compiler or linter');
  t.end();
});
