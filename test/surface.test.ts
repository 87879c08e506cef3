/** The public list: its names are pinned, and everything on it is documented. */
import { fileURLToPath } from 'node:url';
import t from 'tap';
import ts from 'typescript';
import * as library from '../lib/index.ts';

const values = [
  'ROW_BLOCKS', 'absorbUpProjections', 'benchmarkSubgraph', 'blockSingleRows', 'buildMlaLayer', 'byteLength', 'cacheFormats', 'calibrateWeights', 'calibrationOf',
  'chooseLatentGroups', 'collectStatistics', 'compose', 'convert', 'convertAndHeal', 'costMs', 'createAdamW', 'createTrainer', 'decodeCost',
  'decodePasses', 'decodePassesFor', 'differentiate', 'downloadModel', 'eager', 'factorStrategies', 'finishGeneration', 'fromModel', 'fromNdarray',
  'fuseIntegerProducts', 'fuseSkipNorms', 'fuseTransposedWeights', 'generate', 'gradientOf', 'heal', 'healLayers', 'healingText', 'hugePageEnvironment', 'inferShapes',
  'initialWeights', 'isHubId', 'isOneRow', 'jointKvSvd', 'latentCachedRows', 'learningRateFactor', 'loadPrompt', 'loadWeightCodes', 'losses', 'mergeProjections', 'mergeReshapes', 'mergeRotations', 'mergeRoundings', 'mergeSplits', 'nextTokenSubgraph',
  'normals', 'openCheckpoint', 'openGguf', 'openModel', 'openRuntime', 'openSafetensors', 'openSequences', 'openSession', 'openStatistics',
  'openTokenSource', 'openTokenizer', 'optimiserKernel', 'packageFile', 'parseConfig', 'perplexity', 'placeWeights', 'planStrategies', 'printSubgraph', 'prune', 'quantiseDynamic',
  'quantiseWeights', 'rankRopeDims', 'readAttentionLayer', 'readConfig', 'readModel', 'readPairTable', 'readSafetensors', 'record',
  'regressionSubgraph', 'relativeRates', 'relayModel', 'renamePorts', 'renderChat', 'replaceSymbols', 'resolveBudget', 'ropePlan',
  'rotateResidual', 'rowMultiple', 'runPasses', 'runSubgraph', 'sampleToken', 'samplingCandidates', 'savePrompt', 'saveWeightCodes', 'schedules', 'scoreByRows', 'seededRandom', 'signCodes', 'signedProductsAreExact', 'startProgress', 'sumBlocksOnce', 'svgOf',
  'teacherSubgraph', 'tensor', 'tensorSources', 'toDType', 'toEager', 'toFloat32', 'toFloat64', 'toModel', 'toNdarray', 'tokenSource', 'train',
  'trainStep', 'trainableNames', 'trainableSets', 'verifyAgainstLogits', 'verifyAgainstModel', 'viewBeforeSplit', 'vocabularySampler', 'weightCodesPass', 'weightFormats', 'weightPasses', 'writeModel',
  'writeSafetensors', 'writeShardedSafetensors', 'zeros',
];

t.test('the values of the library', (t) => {
  t.same(Object.keys(library).sort(), values);
  t.end();
});

/** Exported names of a module with the declarations behind them. */
function exportsOf(program: ts.Program, path: string): { readonly name: string; readonly symbol: ts.Symbol }[] {
  const checker = program.getTypeChecker();
  const source = program.getSourceFile(path);
  const module = source === undefined ? undefined : checker.getSymbolAtLocation(source);
  if (module === undefined) throw new Error(`${path} must be a module of the program`);
  return checker.getExportsOfModule(module).map((symbol) => ({
    name: symbol.name,
    symbol: (symbol.flags & ts.SymbolFlags.Alias) === 0 ? symbol : checker.getAliasedSymbol(symbol),
  }));
}

t.test('everything public is documented, and every type a public function names can be imported', (t) => {
  const root = fileURLToPath(new URL('..', import.meta.url));
  const parsed = ts.getParsedCommandLineOfConfigFile(`${root}tsconfig.json`, {}, { ...ts.sys, onUnRecoverableConfigFileDiagnostic: () => undefined });
  const lists = [`${root}lib/index.ts`, `${root}kernels/index.ts`];
  const program = ts.createProgram(lists, parsed?.options ?? {});
  const checker = program.getTypeChecker();
  const symbols = lists.map((path) => exportsOf(program, path));
  t.ok((symbols[0]?.length ?? 0) > values.length, 'the list was read, types too');

  const undocumented = symbols.flat()
    .filter(({ symbol }) => (symbol.flags & ts.SymbolFlags.Value) !== 0 && ts.displayPartsToString(symbol.getDocumentationComment(checker)).trim() === '')
    .map(({ name, symbol }) => `${name} (${symbol.declarations?.[0]?.getSourceFile().fileName.slice(root.length)})`);
  t.same(undocumented, [], 'values without a doc comment');

  const known = new Set(symbols.flat().map(({ symbol }) => symbol));
  const hidden = new Set<string>();
  for (const { name, symbol } of symbols[0] ?? []) {
    for (const declaration of symbol.declarations ?? []) {
      if (!ts.isFunctionDeclaration(declaration)) continue;
      for (const node of [...declaration.parameters, declaration.type]) {
        const visit = (inner: ts.Node): void => {
          if (ts.isTypeReferenceNode(inner)) {
            const target = checker.getSymbolAtLocation(inner.typeName);
            const real = target !== undefined && (target.flags & ts.SymbolFlags.Alias) !== 0 ? checker.getAliasedSymbol(target) : target;
            const [where] = real?.declarations ?? [];
            // A type that its own file keeps to itself is a shorthand, not a name to import.
            const own = where !== undefined && where.getSourceFile().fileName.startsWith(`${root}lib/`) && (ts.getCombinedModifierFlags(where) & ts.ModifierFlags.Export) !== 0;
            if (real !== undefined && own && !known.has(real)) hidden.add(`${name}: ${real.name}`);
          }
          ts.forEachChild(inner, visit);
        };
        if (node !== undefined) visit(node);
      }
    }
  }
  t.same([...hidden].sort(), [], 'types of public signatures that are not on the list');
  t.end();
});
