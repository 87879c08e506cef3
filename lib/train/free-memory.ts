import { MessageChannel } from 'node:worker_threads';

/**
 * Gives back the memory of arrays that are no longer needed, within a tick. The collector would do so too, but it sees
 * little heap in use and may wait through several training steps, each leaving gradients as large as the model.
 * The arrays are empty afterwards.
 */
export function freeMemory(arrays: Iterable<Float32Array>): void {
  const buffers = new Set<ArrayBuffer>();
  for (const { buffer } of arrays) if (buffer instanceof ArrayBuffer && buffer.byteLength > 0) buffers.add(buffer);
  const { port1, port2 } = new MessageChannel();
  // What is handed to a port whose other end is closed belongs to nobody.
  port2.close();
  port1.postMessage(null, [...buffers]);
  port1.close();
}
