import { MessageChannel } from 'node:worker_threads';

/** Less is left to the collector, to which it is no burden. */
const WORTH_FREEING = 4e6;

/** What is handed to a closed port belongs to nobody, and goes at once. */
const { port1: nobody } = new MessageChannel();
nobody.close();

/**
 * Gives back the memory of arrays that are no longer needed. The collector would do so too, but it sees little heap in
 * use and may wait through several training steps or products, each leaving gigabytes.
 * Whole buffers go, views of them included: the arrays must not be used afterwards, nor anything that shares memory with them.
 */
export function freeMemory(arrays: Iterable<ArrayBufferView>): void {
  const buffers = new Set<ArrayBuffer>();
  for (const { buffer } of arrays) if (buffer instanceof ArrayBuffer && buffer.byteLength > 0) buffers.add(buffer);
  if ([...buffers].reduce((sum, { byteLength }) => sum + byteLength, 0) >= WORTH_FREEING) nobody.postMessage(null, [...buffers]);
}
