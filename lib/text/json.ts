/** Narrowing of parsed JSON, whose shape nobody has promised. */

export type JsonObject = Readonly<Record<string, unknown>>;

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The field when it is a non-empty string, otherwise null. */
export function textField(object: JsonObject, key: string): string | null {
  const value = object[key];
  return typeof value === 'string' && value !== '' ? value : null;
}

/** The field when it is an array, otherwise an empty one. */
export function listField(object: JsonObject, key: string): readonly unknown[] {
  const value = object[key];
  return Array.isArray(value) ? value : [];
}

/** Parses a JSON object. Errors: `NAME: FILE is not valid JSON, got REASON`, or not an object. */
export function parseJsonObject(caller: string, file: string, text: string): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`${caller}: ${file} must be valid JSON, got ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
  if (!isJsonObject(value)) throw new Error(`${caller}: ${file} must hold a JSON object, got ${Array.isArray(value) ? 'an array' : String(value)}`);
  return value;
}

/** JSON with keys sorted at every depth and no spaces: equal values give equal text. */
export function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`;
  if (!isJsonObject(value)) return JSON.stringify(value) ?? 'null';
  const fields = Object.keys(value)
    .sort()
    .map((key) => `${JSON.stringify(key)}:${canonicalJson(value[key])}`);
  return `{${fields.join(',')}}`;
}
