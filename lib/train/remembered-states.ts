/** What a teacher thinks of a batch does not change: a text that comes again is not run through it again. */
import type { HostTensor } from '../../kernels/emit.ts';

/** Bytes of states that are kept at most: those of a hundred thousand tokens and more of a small model, and no more than a step takes. */
const MOST_BYTES = 2 ** 29;

/** `states` of ids, kept in memory until there are `mostBytes`; batches beyond that are run each time. */
export function rememberStates(states: (ids: HostTensor<'int64'>) => Promise<HostTensor>, mostBytes = MOST_BYTES): (ids: HostTensor<'int64'>) => Promise<HostTensor> {
  const known = new Map<string, HostTensor>();
  let bytes = 0;
  return async (ids) => {
    const key = `${ids.shape.join()}:${ids.data.join()}`;
    const had = known.get(key);
    if (had !== undefined) return had;
    const result = await states(ids);
    if (bytes + result.data.byteLength <= mostBytes) {
      bytes += result.data.byteLength;
      known.set(key, result);
    }
    return result;
  };
}
