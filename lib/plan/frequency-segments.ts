/** Which segments of frequencies to pool, and how many components to keep in each: an exact dynamic programme. */

/** What one segment of frequencies [from, to) is worth. */
export interface SegmentGains {
  readonly from: number;
  readonly to: number;
  /** gains[m]: what keeping the best m components gains; gains[0] is 0. */
  readonly gains: readonly number[];
}

export interface ChosenSegment<S extends SegmentGains> {
  readonly segment: S;
  /** Components kept, above 0. */
  readonly components: number;
}

/**
 * Cuts 0..frequencies-1 into segments of the given list and keeps exactly `components` of them in all, so that the sum of
 * gains is largest: best[b][k] = max over segments [a, b) and m of best[a][k - m] + gain(a, b, m).
 * Errors: the segments cannot hold so many components.
 */
export function chooseSegments<S extends SegmentGains>(segments: readonly S[], frequencies: number, components: number): ChosenSegment<S>[] {
  const ending = Array.from({ length: frequencies + 1 }, (): S[] => []);
  for (const segment of segments) ending[segment.to]?.push(segment);
  const width = components + 1;
  const best = new Float64Array((frequencies + 1) * width).fill(-Infinity);
  best[0] = 0;
  const from: ({ readonly segment: S; readonly kept: number } | undefined)[] = [];
  for (let to = 1; to <= frequencies; to++) {
    for (const segment of ending[to] ?? []) {
      for (const [kept, gain] of segment.gains.entries()) {
        for (let k = kept; k <= components; k++) {
          const value = best[segment.from * width + k - kept]! + gain;
          if (value > best[to * width + k]!) {
            best[to * width + k] = value;
            from[to * width + k] = { segment, kept };
          }
        }
      }
    }
  }
  const chosen: ChosenSegment<S>[] = [];
  for (let to = frequencies, k = components; to > 0;) {
    const step = from[to * width + k];
    if (step === undefined) throw new RangeError(`chooseSegments: segments must hold ${components} components in all`);
    if (step.kept > 0) chosen.push({ segment: step.segment, components: step.kept });
    to = step.segment.from;
    k -= step.kept;
  }
  return chosen.reverse();
}
