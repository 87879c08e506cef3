/**
 * Outputs that stay where the engine wrote them. After a run onnxruntime-node 1.29 copies every fetched output into new
 * memory, also one whose memory the caller gave; for 540 MB, the gradients of 135 million weights, that is 0.2 to 0.4 s. It goes
 * through them in order and stops, with an error, at one that is not a tensor. So a graph that wants no copies has an
 * empty sequence in front of its outputs, and fetches it when every other output has its memory: the error then says
 * that the run is done. Nothing in the engine's documentation promises that, so it is asked first whether it is so.
 */
import type { HostTensor, Subgraph } from './subgraph.ts';

/** The sequence's name; no word of the vocabulary makes edges with such a name. */
export const UNCOPIED = 'outputs.stay';

/** What the engine says instead of copying; an error of the run itself says something else. */
export const isUncopied = (error: unknown): boolean => error instanceof Error && error.message.includes('Non tensor type is temporarily not supported');

/** A graph opened with the sequence. */
interface Opened {
  run(feeds: Readonly<Record<string, HostTensor>>, fetches: Readonly<Record<string, HostTensor>>): Promise<unknown>;
  release(): Promise<void>;
}

const NUMBERS = [3, 5, 7] as const;

/** Whether runs that fetch the sequence leave their outputs written in the memory given. Costs a few milliseconds. */
export async function outputsStay(open: (subgraph: Subgraph) => Promise<Opened>): Promise<boolean> {
  const shape = [NUMBERS.length];
  const vector = (data: readonly number[]): HostTensor<'float32'> => ({ dtype: 'float32', shape, data: Float32Array.from(data) });
  const doubled = vector(NUMBERS.map(() => NaN));
  const opened = await open({
    name: 'uncopied', nodes: [{ op: 'Add', domain: '', inputs: ['x', 'x'], outputs: ['doubled'], attributes: {} }], constants: new Map(),
    inputs: [{ name: 'x', dtype: 'float32', shape }], outputs: [{ name: 'doubled', dtype: 'float32', shape }],
  });
  try {
    await opened.run({ x: vector(NUMBERS) }, { doubled });
    return NUMBERS.every((number, i) => doubled.data[i] === 2 * number);
  } catch {
    return false;
  } finally {
    await opened.release();
  }
}
