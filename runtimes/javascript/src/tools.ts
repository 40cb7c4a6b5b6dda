/** The tools' part of harmony's developer message: JSON schemas as TypeScript-like declarations. */

export type JsonSchema = Record<string, unknown>;

/** A function the model may call; `parameters` is a JSON schema, left out for no arguments. */
export interface Tool {
  name: string;
  description: string;
  parameters?: JsonSchema | null;
}

/** The functions as the TypeScript-like declarations the model was trained on. */
export function renderTools(tools: readonly Tool[]): string {
  const lines = ["# Tools", "", "## functions", "", "namespace functions {", ""];
  for (const tool of tools) {
    lines.push(...splitLines(tool.description).map((line) => `// ${line}`));
    const schema = tool.parameters ?? undefined;
    const given = schema === undefined ? "" : `_: ${typescript(schema, "")}`;
    lines.push(`type ${tool.name} = (${given}) => any;`, "");
  }
  return [...lines, "} // namespace functions"].join("\n");
}

/** Lines as Python's str.splitlines has them. */
function splitLines(text: string): string[] {
  const lines = text.split(/\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/);
  if (lines.at(-1) === "") lines.pop();
  return lines;
}

/** A JSON schema as a type; `any` for what the reference renderer does not know either. */
function typescript(schema: unknown, indent: string): string {
  if (!isObject(schema)) return "any";
  if (Array.isArray(schema.oneOf)) {
    return schema.oneOf
      .map((one) => `\n${indent} | ${variant(one, indent, textOf(one, "description"), false)}`)
      .join("");
  }
  const kind = schema.type;
  if (Array.isArray(kind) && kind.length) {
    return kind.map((name) => (name === "integer" ? "number" : String(name))).join(" | ");
  }
  switch (kind) {
    case "object":
      return objectType(schema, indent);
    case "string": {
      const values = listOf(schema.enum).filter((value) => typeof value === "string");
      return values.map((value) => `"${value}"`).join(" | ") || "string";
    }
    case "array":
      return "items" in schema ? `${typescript(schema.items, indent)}[]` : "Array<any>";
    case "number":
    case "integer":
      return "number";
    case "boolean":
      return "boolean";
    default:
      return "any";
  }
}

function objectType(schema: JsonSchema, indent: string): string {
  const description = textOf(schema, "description");
  const lines = description === undefined ? [] : [`${indent}// ${description}`];
  lines.push("{");
  const required = listOf(schema.required);
  const properties = isObject(schema.properties) ? schema.properties : {};
  for (const [key, value] of Object.entries(properties)) {
    const name = required.includes(key) ? key : `${key}?`;
    lines.push(...property(name, value, indent).map((line) => indent + line));
  }
  return [...lines, `${indent}}`].join("\n");
}

/** The lines of one property. Those of nested types are indented already, the first excepted. */
function property(name: string, schema: unknown, indent: string): string[] {
  if (!isObject(schema)) return [`${name}: any,`];
  const [title, description] = [textOf(schema, "title"), textOf(schema, "description")];
  const value = defaultOf(schema);
  const head = title === undefined ? [] : [`// ${title}`, "//"];
  const about = description === undefined ? [] : [`// ${description}`];
  const shown = listOf(schema.examples);
  const examples = shown.length ? ["// Examples:"] : [];
  for (const text of shown) if (typeof text === "string") examples.push(`// - "${text}"`);
  const variants = schema.oneOf;
  if (!Array.isArray(variants)) {
    const comment = value ? ` // ${value}` : "";
    const kind = nullable(schema, `${indent}    `);
    return [...head, ...about, ...examples, `${name}: ${kind},${comment}`];
  }
  // The reference leaves a description that the first variant repeats out of both.
  const repeated = variants.length > 0 && textOf(variants[0], "description") === description;
  const lines = [...head, ...examples, ...(repeated ? [] : about)];
  if (value) lines.push(`// ${value}`);
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
  schema: unknown,
  indent: string,
  description: string | undefined,
  bareEnum: boolean,
): string {
  const comments = [description, defaultOf(schema, bareEnum)];
  const text = comments.filter((comment) => comment !== undefined).join(" ");
  return nullable(schema, `${indent}   `) + (text ? ` // ${text}` : "");
}

function nullable(schema: unknown, indent: string): string {
  const kind = typescript(schema, indent);
  const isNullable = isObject(schema) && schema.nullable === true;
  return isNullable && !kind.includes("null") ? `${kind} | null` : kind;
}

function defaultOf(schema: unknown, bareEnum = true): string | undefined {
  if (!isObject(schema) || !("default" in schema)) return undefined;
  const value = schema.default;
  const hasEnum = Array.isArray(schema.enum) && schema.enum.length > 0;
  if (typeof value === "string" && !hasEnum) return `default: "${value}"`;
  if (typeof value === "string" && bareEnum) return `default: ${value}`;
  return `default: ${JSON.stringify(value)}`;
}

function textOf(schema: unknown, key: string): string | undefined {
  const value = isObject(schema) ? schema[key] : undefined;
  return typeof value === "string" ? value : undefined;
}

function listOf(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}

function isObject(value: unknown): value is JsonSchema {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
