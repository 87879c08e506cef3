/** A subgraph as text. */
import { constantBytes } from './constants.ts';
import { isStored } from './subgraph.ts';
import type { Attribute, Dim, DType, Subgraph } from './subgraph.ts';

/** Dtype and shape by edge: what inferShapes returns. */
export type Facts = ReadonlyMap<string, { readonly dtype: DType; readonly shape: readonly Dim[] }>;

const type = ({ dtype, shape }: { readonly dtype: DType; readonly shape: readonly Dim[] }): string => `${dtype} [${shape.join(',')}]`;
const list = (values: readonly (string | number)[]): string => (values.length > 8 ? `[${values.slice(0, 8).join(',')},... ${values.length}]` : `[${values.join(',')}]`);

function attributeText(a: Attribute): string {
  switch (a.kind) {
    case 'int': case 'float': return `${a.value}`;
    case 'string': return JSON.stringify(a.value);
    case 'ints': case 'floats': return list(a.value);
    case 'strings': return list(a.value.map((s) => JSON.stringify(s)));
    case 'tensor': return type(a.value);
    case 'graph': return `{${a.value.name}: ${a.value.nodes.length} nodes}`;
  }
}

/**
 * Ports, constants and one line per node: `y = MatMul(x, w)  float32 [b,s,64]`. Types of results are printed when
 * `facts` has them: printSubgraph(subgraph, inferShapes(subgraph)).
 */
export function printSubgraph(subgraph: Subgraph, facts: Facts = new Map()): string {
  const lines = [
    subgraph.name,
    ...subgraph.inputs.map((port) => `  input ${port.name}  ${type(port)}`),
    ...[...subgraph.constants].map(([name, constant]) => {
      const where = isStored(constant) ? `${constant.file.path} at ${constant.file.offset}` : 'in memory';
      return `  constant ${name}  ${type(constant)}, ${constantBytes(constant)} bytes ${where}`;
    }),
    ...subgraph.nodes.map((node) => {
      const inputs = [...node.inputs.map((name) => (name === '' ? '-' : name)), ...Object.entries(node.attributes).map(([name, a]) => `${name}=${attributeText(a)}`)];
      const types = node.outputs.flatMap((name) => { const fact = facts.get(name); return fact === undefined ? [] : [type(fact)]; });
      const op = node.domain === '' ? node.op : `${node.domain}:${node.op}`;
      return `  ${node.outputs.map((name) => (name === '' ? '-' : name)).join(', ')} = ${op}(${inputs.join(', ')})${types.length === 0 ? '' : `  ${types.join(', ')}`}`;
    }),
    ...subgraph.outputs.map((port) => `  output ${port.name}  ${type(port)}`),
  ];
  return lines.join('\n');
}
