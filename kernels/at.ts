/** Element i of a list, which must exist. */
export function at<T>(list: readonly T[], i: number): T {
  const element = list[i];
  if (element === undefined) throw new RangeError(`at: index must be 0..${list.length - 1}, got ${i}`);
  return element;
}
