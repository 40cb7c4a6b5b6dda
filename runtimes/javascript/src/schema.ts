/**
 * A tool's JSON schema as the TypeScript-like type of harmony's prompts, as openai-harmony 0.0.8
 * renders it, letter for letter; what it does not know (`$ref`, `anyOf`, `const`) is `any`.
 */
import { type Json, dump } from "./json.js";

/** The type of what `schema` admits. */
export function typescript(schema: Json, indent = ""): string {
  if (!(schema instanceof Map)) return "any";
  const variants = listOf(schema, "oneOf");
  if (variants) {
    return variants
      .map((one) => `\n${indent} | ${variant(one, indent, textOf(one, "description"), false)}`)
      .join("");
  }
  const names = texts(listOf(schema, "type"));
  if (names.length) return names.map((name) => (name === "integer" ? "number" : name)).join(" | ");
  switch (schema.get("type")) {
    case "object":
      return objectType(schema, indent);
    case "string":
      return texts(listOf(schema, "enum")).map((value) => `"${value}"`).join(" | ") || "string";
    case "array":
      return schema.has("items") ? `${typescript(schema.get("items")!, indent)}[]` : "Array<any>";
    case "number":
    case "integer":
      return "number";
    case "boolean":
      return "boolean";
    default:
      return "any";
  }
}

function objectType(schema: Map<string, Json>, indent: string): string {
  const description = textOf(schema, "description");
  const lines = description === undefined ? [] : [`${indent}// ${description}`];
  lines.push("{");
  const required = listOf(schema, "required");
  const properties = schema.get("properties");
  for (const [key, value] of properties instanceof Map ? properties : []) {
    const name = required?.includes(key) ? key : `${key}?`;
    lines.push(...property(name, value, indent).map((line) => indent + line));
  }
  return [...lines, `${indent}}`].join("\n");
}

/** The lines of one property. Those of nested types are indented already, the first excepted. */
function property(name: string, schema: Json, indent: string): string[] {
  const [title, description] = [textOf(schema, "title"), textOf(schema, "description")];
  const value = defaultOf(schema);
  const head = title === undefined ? [] : [`// ${title}`, "//"];
  const about = description === undefined ? [] : [`// ${description}`];
  const shown = listOf(schema, "examples") ?? [];
  const examples = shown.length ? ["// Examples:"] : [];
  for (const text of texts(shown)) examples.push(`// - "${text}"`);
  const variants = listOf(schema, "oneOf");
  if (!variants) {
    const kind = nullable(schema, `${indent}    `);
    // A oneOf that is no list: the reference tells no more.
    if (schema instanceof Map && schema.has("oneOf")) return [...head, ...examples, `${name}: ${kind},`];
    const comment = value === undefined ? "" : ` // ${value}`;
    return [...head, ...about, ...examples, `${name}: ${kind},${comment}`];
  }
  // The reference leaves a description that the first variant repeats out of both.
  const repeated = variants.length > 0 && textOf(variants[0], "description") === description;
  const lines = [...head, ...examples, ...(repeated ? [] : about)];
  if (value !== undefined) lines.push(`// ${value}`);
  lines.push(`${name}:`);
  variants.forEach((one, place) => {
    const said = textOf(one, "description");
    const hidden = said === description || (place === 0 && about.length > 0);
    lines.push(` | ${variant(one, indent, hidden ? undefined : said, true)}`);
  });
  return [...lines, ","];
}

/** One alternative of a `oneOf`, with its description and default behind it. */
function variant(
  schema: Json,
  indent: string,
  description: string | undefined,
  bareEnum: boolean,
): string {
  const comments = [description, defaultOf(schema, bareEnum)];
  const shown = comments.filter((comment) => comment !== undefined);
  return nullable(schema, `${indent}   `) + (shown.length ? ` // ${shown.join(" ")}` : "");
}

function nullable(schema: Json, indent: string): string {
  const kind = typescript(schema, indent);
  const isNullable = schema instanceof Map && schema.get("nullable") === true;
  return isNullable && !kind.includes("null") ? `${kind} | null` : kind;
}

function defaultOf(schema: Json, bareEnum = true): string | undefined {
  if (!(schema instanceof Map)) return undefined;
  const value = schema.get("default");
  if (value === undefined) return undefined;
  if (typeof value === "string" && !listOf(schema, "enum")?.length) return `default: "${value}"`;
  if (typeof value === "string" && bareEnum) return `default: ${value}`;
  return `default: ${dump(value)}`;
}

function textOf(schema: Json, key: string): string | undefined {
  const value = schema instanceof Map ? schema.get(key) : undefined;
  return typeof value === "string" ? value : undefined;
}

function listOf(schema: Json, key: string): Json[] | undefined {
  const value = schema instanceof Map ? schema.get(key) : undefined;
  return Array.isArray(value) ? value : undefined;
}

function texts(list: Json[] | undefined): string[] {
  return (list ?? []).filter((value) => typeof value === "string");
}
