/** Subgraphs from subgraphs: keeping only what some outputs need, and wiring several into one. */
import { sameDim, substituteDim, symbolsOfDim } from './dims.ts';
import { readsOf, renameEdges, renameNode } from './rename.ts';
import type { Constant, Dim, Node, Port, Subgraph } from './subgraph.ts';
import { unify } from './unify.ts';

export interface PruneOptions {
  /** Keeps inputs that nothing reads any more, so that callers need not change their feeds. Default true. */
  readonly keepInputs?: boolean;
}

/** Keeps the nodes and constants that the named outputs need (default: all declared ones); throws on an unknown output. */
export function prune(subgraph: Subgraph, outputs: readonly string[] = subgraph.outputs.map((p) => p.name), { keepInputs = true }: PruneOptions = {}): Subgraph {
  const ports = outputs.map((name) => subgraph.outputs.find((p) => p.name === name) ?? refuseOutput(subgraph, name));
  const wanted = new Set(outputs);
  const nodes = [...subgraph.nodes].reverse().filter((node) => {
    if (!node.outputs.some((name) => wanted.has(name))) return false;
    for (const name of readsOf(node)) wanted.add(name);
    return true;
  }).reverse();
  return {
    name: subgraph.name,
    inputs: keepInputs ? subgraph.inputs : subgraph.inputs.filter((p) => wanted.has(p.name)),
    outputs: ports,
    nodes,
    constants: new Map([...subgraph.constants].filter(([name]) => wanted.has(name))),
  };
}

const refuseOutput = (subgraph: Subgraph, name: string): never => {
  throw new Error(`prune: an output of ${subgraph.name} must be one of ${subgraph.outputs.map((p) => p.name).join(', ')}, got ${name}`);
};

/**
 * One subgraph from several. `wiring` leads from sources to targets: `{ 'a.y': 'b.x' }`, several targets as a list. A
 * name without a part is a port of the result: `{ positions: ['a.positions', 'b.positions'], 'b.y': 'output' }`. Ports
 * that are not wired become ports `part.port`; so an output that feeds something is only visible where it is named.
 *
 * Lengths that meet are made equal: a symbol takes the meaning of what it meets, two numbers must agree. Symbols of the
 * same name that nothing tells apart are the same symbol. A constant that several parts share is kept once.
 * Throws, with both sides, on a mismatch of dtype or shape; on unknown ports, inputs fed twice, and cycles.
 */
export function compose(name: string, parts: Readonly<Record<string, Subgraph>>, wiring: Readonly<Record<string, string | readonly string[]>>): Subgraph {
  const fail = (rule: string, got: string): never => { throw new Error(`compose: ${name}: ${rule}, got ${got}`); };
  const sources = new Map<string, Port>(), targets = new Map<string, Port>();
  const prefixed = Object.entries(parts).map(([part, subgraph]) => {
    if (!/^[A-Za-z_]\w*$/.test(part)) fail('names of parts must be letters, digits and _', part);
    const local = localSymbols(part, renameEdges(subgraph, (edge) => `${part}.${edge}`));
    for (const port of local.outputs) sources.set(port.name, port);
    for (const port of local.inputs) targets.set(port.name, port);
    return local;
  });

  const feeds = new Map<string, string>(); // edge read by a part -> edge it stands for
  const inputs = new Map<string, Port>(), outputs = new Map<string, string>();
  const wires: [Port, Port][] = [];
  for (const [from, to] of Object.entries(wiring)) {
    for (const target of [to].flat()) {
      const port = targets.get(target);
      if (port === undefined && target.includes('.')) fail(`a target must be an input of a part (${[...targets.keys()].join(', ')})`, target);
      const source = sources.get(from) ?? (from.includes('.') || port === undefined ? fail(`a source must be an output of a part (${[...sources.keys()].join(', ')})`, from) : null);
      if (port === undefined) {
        if (outputs.has(target)) fail('an output must have one source', `${outputs.get(target)} and ${from} for ${target}`);
        outputs.set(target, from);
        continue;
      }
      if (feeds.has(target)) fail('an input must have one source', `${feeds.get(target)} and ${from} for ${target}`);
      feeds.set(target, from);
      if (source === null && !inputs.has(from)) inputs.set(from, { ...port, name: from });
      wires.push([source ?? inputs.get(from)!, port]);
    }
  }
  for (const port of targets.values()) if (!feeds.has(port.name)) inputs.set(port.name, port);
  const fed = new Set([...feeds.values(), ...outputs.values()]);
  for (const port of sources.values()) if (!fed.has(port.name)) outputs.set(port.name, port.name);

  const twice = [...outputs.keys()].find((port) => inputs.has(port) && outputs.get(port) !== port);
  if (twice !== undefined) fail('a port must be an input or an output', twice);

  const meaning = meet(wires, fail);
  const global = (port: Port): Port => ({ ...port, shape: port.shape.map(meaning) });
  const origin = (edge: string): string => {
    const passed = new Set<string>();
    let at = edge;
    for (let from = feeds.get(at); from !== undefined; from = feeds.get(at)) {
      if (passed.has(at)) fail('wires must not run in a circle', [...passed].join(' -> '));
      passed.add(at);
      at = from;
    }
    return at;
  };
  const { constants, same } = shareConstants(prefixed);
  const edge = (e: string): string => same.get(origin(e)) ?? origin(e);
  const nodes = sortNodes(prefixed.flatMap((part) => part.nodes.map((node) => renameNode(node, edge))), fail);
  const ports = [...outputs].map(([port, from]) => ({ ...global(sources.get(from)!), name: port }));
  return nameOutputs({ name, inputs: [...inputs.values()].map(global), outputs: ports, nodes, constants }, new Map([...outputs].map(([port, from]) => [port, edge(from)])));
}

/** Every symbol under the name of its part, so that equal names of different parts can take different meanings. */
function localSymbols(part: string, subgraph: Subgraph): Subgraph {
  const local = (dim: Dim): Dim => substituteDim(dim, Object.fromEntries(symbolsOfDim(dim).map((s) => [s, `${part}.${s}`])));
  const port = (p: Port): Port => ({ ...p, shape: p.shape.map(local) });
  return { ...subgraph, inputs: subgraph.inputs.map(port), outputs: subgraph.outputs.map(port) };
}

/** Checks the two ends of every wire and returns what a local length means in the result. */
function meet(wires: readonly (readonly [Port, Port])[], fail: (rule: string, got: string) => never): (dim: Dim) => Dim {
  const bare = (dim: Dim): Dim => substituteDim(dim, Object.fromEntries(symbolsOfDim(dim).map((s) => [s, s.slice(s.indexOf('.') + 1)])));
  const text = (port: Port): string => `${port.name} ${port.dtype} [${port.shape.map(bare).join(',')}]`;
  const pairs = wires.flatMap(([from, to]) => {
    if (from.dtype !== to.dtype || from.shape.length !== to.shape.length) fail('both ends of a wire must agree', `${text(from)} and ${text(to)}`);
    return from.shape.map((dim, axis) => ({ dims: [dim, to.shape[axis]!] as const, from, to }));
  });
  const solved = unify(pairs.map((pair) => pair.dims), (index, left, right) => {
    const { from, to } = pairs[index]!;
    return fail('both ends of a wire must agree', `${text(from)} and ${text(to)}, where ${bare(left)} meets ${bare(right)}`);
  });
  const meaning = (dim: Dim): Dim => bare(substituteDim(dim, solved));
  for (const { dims: [left, right], from, to } of pairs) {
    if (!sameDim(meaning(left), meaning(right))) fail('both ends of a wire must agree', `${text(from)} and ${text(to)}, where ${meaning(left)} meets ${meaning(right)}`);
  }
  return meaning;
}

/** One name per constant value: `same` leads from the further names of a shared record to its first. */
function shareConstants(parts: readonly Subgraph[]): { constants: Map<string, Constant>; same: Map<string, string> } {
  const first = new Map<Constant, string>(), constants = new Map<string, Constant>(), same = new Map<string, string>();
  for (const [name, constant] of parts.flatMap((part) => [...part.constants])) {
    const known = first.get(constant);
    if (known !== undefined) same.set(name, known);
    else {
      first.set(constant, name);
      constants.set(name, constant);
    }
  }
  return { constants, same };
}

/** An order in which every edge is produced before it is read; nodes that are free to move stay in the order given. */
function sortNodes(nodes: readonly Node[], fail: (rule: string, got: string) => never): Node[] {
  const producer = new Map(nodes.flatMap((node) => node.outputs.filter((o) => o !== '').map((o) => [o, node] as const)));
  const state = new Map<Node, 'open' | 'done'>(), sorted: Node[] = [];
  for (const root of nodes) {
    // Depth first with a stack of our own: a model's chain of nodes is deeper than the call stack.
    const stack = [root];
    for (let node = stack.at(-1); node !== undefined; node = stack.at(-1)) {
      const waiting = readsOf(node).map((name) => producer.get(name)).filter((p) => p !== undefined && state.get(p) !== 'done');
      if (state.get(node) === 'done' || waiting.length === 0) {
        if (state.get(node) !== 'done') sorted.push(node);
        state.set(node, 'done');
        stack.pop();
        continue;
      }
      state.set(node, 'open');
      const circular = waiting.find((p) => p !== undefined && state.get(p) === 'open');
      if (circular !== undefined) fail('wires must not run in a circle', `${circular.op} -> ${circular.outputs.join(', ')}`);
      stack.push(waiting[0]!);
    }
  }
  return sorted;
}

/** Gives the edges behind outputs the names of the ports; an Identity where an edge cannot be renamed. */
function nameOutputs(subgraph: Subgraph, edges: ReadonlyMap<string, string>): Subgraph {
  const produced = new Set(subgraph.nodes.flatMap((node) => node.outputs));
  const names = new Map<string, string>();
  const copies: Node[] = [];
  // Ports whose edge already has their name come first: that edge cannot take a second one.
  for (const [port, edge] of [...edges].sort(([a, x], [b, y]) => Number(b === y) - Number(a === x))) {
    if (produced.has(edge) && !names.has(edge)) names.set(edge, port);
    else if (port !== edge) copies.push({ op: 'Identity', domain: '', inputs: [names.get(edge) ?? edge], outputs: [port], attributes: {} });
  }
  const rename = (edge: string): string => names.get(edge) ?? edge;
  return { ...subgraph, nodes: [...subgraph.nodes.map((node) => renameNode(node, rename)), ...copies] };
}
