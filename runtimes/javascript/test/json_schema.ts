/**
 * Values held to a JSON Schema, by the few keywords that manifest.schema.json is written in: the
 * same lines in every language, which find the same first fault and name its field alike.
 */
export interface Schema {
  readonly [keyword: string]: any;
}

const KINDS: Record<string, [string, (value: unknown) => boolean]> = {
  null: ["null", (value) => value === null],
  boolean: ["true or false", (value) => typeof value === "boolean"],
  integer: ["a whole number", (value) => Number.isInteger(value)],
  number: ["a number", (value) => typeof value === "number"],
  string: ["a string", (value) => typeof value === "string"],
  array: ["a list", (value) => Array.isArray(value)],
  object: ["an object", isObject],
};

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * The first thing in `value`, as JSON has it, that `schema` forbids, in one line that begins with
 * the field: `kv.layers[0].window is -1: it must be at least 1`. `where` is the field it stands in.
 */
export function fault(value: unknown, schema: Schema, root: Schema, where = ""): string | undefined {
  for (const part of [...(schema.$ref ? [referred(root, schema.$ref)] : []), ...(schema.allOf ?? [])]) {
    const found = fault(value, part, root, where);
    if (found) return found;
  }
  const wanted = wantedOf(value, schema);
  if (wanted) return `${where} is ${shown(value)}: it must be ${wanted}`;
  if (Array.isArray(value)) {
    const found = counted(value.length, schema, "Items", where);
    if (found) return found;
    for (const [i, item] of value.entries()) {
      const found = fault(item, schema.items ?? {}, root, `${where}[${i}]`);
      if (found) return found;
    }
  } else if (isObject(value)) return faultOfMembers(value, schema, root, where);
  return undefined;
}

/** A value as JSON on one line of ASCII, cut short. */
export function shown(value: unknown): string {
  const text = (JSON.stringify(value) ?? String(value)).replace(
    /[^ -~]/g,
    (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  return text.length <= 60 ? text : `${text.slice(0, 57)}...`;
}

function referred(root: Schema, pointer: string): Schema {
  return pointer.slice(2).split("/").reduce((found, part) => found[part], root);
}

function wantedOf(value: unknown, schema: Schema): string | undefined {
  const kinds: string[] = [schema.type ?? []].flat();
  if (kinds.length && !kinds.some((kind) => KINDS[kind][1](value))) {
    return kinds.map((kind) => KINDS[kind][0]).join(" or ");
  }
  const allowed: unknown[] | undefined = "const" in schema ? [schema.const] : schema.enum;
  if (allowed && !allowed.includes(value)) return allowed.map(shown).join(" or ");
  if (typeof value === "number") {
    if (value < schema.minimum) return `at least ${schema.minimum}`;
    if (value > schema.maximum) return `at most ${schema.maximum}`;
  }
  if (typeof value === "string") {
    const { minLength = 0, maxLength = value.length, pattern, title } = schema;
    if (value.length < minLength || value.length > maxLength) {
      return `of ${minLength} to ${maxLength} letters`;
    }
    if (pattern && !new RegExp(pattern).test(value)) return `of the form ${title}`;
  }
  return undefined;
}

function faultOfMembers(
  value: Record<string, unknown>,
  schema: Schema,
  root: Schema,
  where: string,
): string | undefined {
  const members = Object.entries(value);
  const found = counted(members.length, schema, "Properties", where);
  if (found) return found;
  for (const name of schema.required ?? []) {
    if (!Object.hasOwn(value, name)) return `${joined(where, name)} is missing`;
  }
  const { properties: known = {}, additionalProperties: others = {}, propertyNames = {} } = schema;
  for (const [name, member] of members) {
    const why = fault(name, propertyNames, root, "a name");
    if (why) return `${where}: ${why}`;
    const [field, isKnown] = [joined(where, name), Object.hasOwn(known, name)];
    if (!isKnown && others === false) {
      return `${field} is not known: ${Object.keys(known).join(", ")} may be there and nothing else`;
    }
    const found = fault(member, isKnown ? known[name] : others, root, field);
    if (found) return found;
  }
  return undefined;
}

function counted(count: number, schema: Schema, what: string, where: string): string | undefined {
  const { [`min${what}`]: least = 0, [`max${what}`]: most = count } = schema;
  if (count >= least && count <= most) return undefined;
  return `${where} holds ${count}: it must hold ${least} to ${schema[`max${what}`] ?? "any"}`;
}

function joined(where: string, name: string): string {
  const part = /^[A-Za-z0-9_.+-]{1,128}$/.test(name) ? name : shown(name);
  return where ? `${where}.${part}` : part;
}
