/** Checks tensors against the ports they are meant for, and finds the value of every symbol the ports name. */
import type { HostTensor } from '../../kernels/emit.ts';
import { elementCount } from '../tensor.ts';
import { divideExactly, subDims, substituteDim, symbolsOfDim } from './dims.ts';
import type { Port } from './subgraph.ts';

/** Numbers by symbol, e.g. { b: 1, s: 64 }. */
export type Bindings = Readonly<Record<string, number>>;

const SYMBOL = /^[A-Za-z_][\w.]*$/;
const portText = (port: Port): string => `${port.dtype} [${port.shape.join(',')}]`;

/**
 * Makes the check once per subgraph so that a run pays about a microsecond per port. The check throws
 * `<caller>: input q must be float32 [b,s,576], got ...` on a missing, superfluous or wrong tensor and on a symbol
 * that two ports, or a port and `bound`, disagree about; it returns what the symbols stand for (those it could
 * determine). Inputs must all be there, outputs need not.
 */
export function portChecker(caller: string, kind: 'input' | 'output', ports: readonly Port[]): (tensors: Readonly<Record<string, HostTensor>>, bound?: Bindings) => Bindings {
  const names = new Set(ports.map((port) => port.name));
  // What each axis asks for, read once: a number, a symbol, or an expression to be settled when its symbols are known.
  const known = ports.map((port) => ({ port, axes: port.shape.map((dim) => ({ dim, isSymbol: typeof dim === 'string' && SYMBOL.test(dim) })) }));
  const refuse = (port: Port, got: string): never => { throw new Error(`${caller}: ${kind} ${port.name} must be ${portText(port)}, got ${got}`); };
  return (tensors, bound = {}) => {
    for (const name of Object.keys(tensors)) {
      if (!names.has(name)) throw new Error(`${caller}: ${kind} must be one of ${[...names].join(', ')}, got ${name}`);
    }
    const bindings: Record<string, number> = { ...bound }, source: Record<string, string> = {};
    const open: { port: Port; axis: number; size: number }[] = [];
    for (const { port, axes } of known) {
      const tensor = tensors[port.name];
      if (tensor === undefined) {
        if (kind === 'output') continue;
        return refuse(port, 'none');
      }
      const { dtype, shape, data } = tensor;
      if (dtype !== port.dtype || shape.length !== port.shape.length) refuse(port, `${dtype} [${shape}]`);
      if (data.length !== elementCount(shape)) refuse(port, `${data.length} elements for [${shape}]`);
      for (let axis = 0; axis < axes.length; axis++) {
        const { dim, isSymbol } = axes[axis]!, size = shape[axis]!;
        if (typeof dim === 'number') {
          if (dim !== size) refuse(port, `[${shape}]`);
        } else if (!isSymbol) {
          open.push({ port, axis, size });
        } else if (bindings[dim] === undefined) {
          bindings[dim] = size;
          source[dim] = port.name;
        } else if (bindings[dim] !== size) {
          refuse(port, `[${shape}] where ${dim} is ${bindings[dim]}${source[dim] === undefined ? '' : ` in ${kind} ${source[dim]}`}`);
        }
      }
    }
    settle(open, bindings, (port, value) => {
      throw new Error(`${caller}: ${kind} ${port.name} must be ${portText(port)}, got [${tensors[port.name]!.shape}] where ${value}`);
    });
    return bindings;
  };
}

/** Checks sums and products once their symbols are known; solves those with one unknown symbol, until nothing moves. */
function settle(
  open: readonly { port: Port; axis: number; size: number }[], bindings: Record<string, number>, refuse: (port: Port, why: string) => never,
): void {
  let rest = open;
  for (let before = -1; rest.length !== before;) {
    before = rest.length;
    rest = rest.filter(({ port, axis, size }) => {
      const dim = port.shape[axis]!;
      const left = substituteDim(dim, bindings);
      const why = (): string => `${dim} = ${size}${symbolsOfDim(dim).filter((s) => bindings[s] !== undefined).map((s) => `, ${s} = ${bindings[s]}`).join('')}`;
      if (typeof left === 'number') return left === size ? false : refuse(port, why());
      const [symbol, another] = symbolsOfDim(left);
      if (symbol === undefined || another !== undefined) return true;
      const offset = substituteDim(left, { [symbol]: 0 });
      const factor = divideExactly(subDims(left, offset), symbol);
      if (typeof factor !== 'number') return true;
      const value = divideExactly(subDims(size, offset), factor);
      if (typeof value !== 'number' || value < 0) return refuse(port, why());
      bindings[symbol] = value;
      return false;
    });
  }
}
