/** Sessions for whole windows of text: many rows a run, few runs, weights that may be gigabytes. */
import { elementCount } from '../tensor.ts';
import { allConstants } from './constants.ts';
import { readsOf } from './rename.ts';
import { openRuntime, type Runtime, type RuntimeOptions } from './runtime.ts';
import type { Node, Subgraph } from './subgraph.ts';

/** Weights of more bytes than this, as float32, are widened one after another in every run; those of fewer once, at opening. */
const LARGE_BYTES = 256e6;

type Threads = Pick<RuntimeOptions, 'threads'>;

/** `openRuntime` for subgraphs that run over whole windows: `openWidening` where the weights are large. */
export async function openForWindows(subgraph: Subgraph, { threads }: Threads = {}): Promise<Runtime> {
  const bytes = allConstants(subgraph).reduce((sum, { shape }) => sum + Float32Array.BYTES_PER_ELEMENT * elementCount(shape), 0);
  return bytes > LARGE_BYTES ? openWidening(subgraph, { threads }) : openRuntime(subgraph, { threads });
}

/**
 * The engine's rewrites would keep all weights widened, and take twice that to open; without them a run widens and turns each
 * weight where it is used and drops it again. A window of 256 rows takes two thirds longer so, one of
 * 1024 an eighth, opening no time: even after some four to eight windows. Results differ by rounding.
 */
export async function openWidening(subgraph: Subgraph, { threads }: Threads = {}): Promise<Runtime> {
  return openRuntime(constantsFirst(subgraph), { threads, optimisation: 'disabled', prepack: false, memoryArena: false, memoryPattern: false });
}

/**
 * The same subgraph, nodes that need nothing but constants in front. Of a product's operands onnxruntime computes the one
 * whose node comes last first: weights recorded behind the activations would all be widened before the first product.
 */
export function constantsFirst(subgraph: Subgraph): Subgraph {
  const known = new Set(subgraph.constants.keys());
  const [fixed, others]: [Node[], Node[]] = [[], []];
  for (const node of subgraph.nodes) {
    const constant = readsOf(node).every((name) => known.has(name));
    if (constant) for (const name of node.outputs) known.add(name);
    (constant ? fixed : others).push(node);
  }
  return { ...subgraph, nodes: [...fixed, ...others] };
}
