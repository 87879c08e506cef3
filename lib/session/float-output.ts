import type { HostTensor } from '../graph/subgraph.ts';

/** The numbers of a graph's output. Errors: there is no such output, or it is of another type. */
export function floatOutput(outputs: Readonly<Record<string, HostTensor>>, name: string): Float32Array {
  const tensor = outputs[name];
  if (tensor?.dtype !== 'float32') throw new TypeError(`openSession: output ${name} must be float32, got ${tensor?.dtype}`);
  return tensor.data;
}
