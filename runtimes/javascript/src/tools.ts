/** Tools as harmony's system and developer messages declare them. */
import { UserError } from "./errors.js";
import { plain, readJson } from "./json.js";
import { typescript } from "./schema.js";

export type JsonSchema = Record<string, unknown>;

/** The namespace of an application's own tools. */
export const FUNCTION_NAMESPACE = "functions";

/**
 * A function the model may call. `parameters` is a JSON schema, left out for no arguments. Given as
 * JSON text it keeps what JavaScript's objects do not: keys like "10" stay where they are, 1.0 does
 * not become 1. A Map keeps the order too.
 */
export interface Tool {
  name: string;
  description?: string | null;
  parameters?: JsonSchema | ReadonlyMap<string, unknown> | boolean | string | null;
}

/** Tools under a name of their own: the model calls `name.tool`, or `name` if it has none. */
export interface ToolNamespace {
  name: string;
  description?: string | null;
  tools: readonly Tool[];
}

// A call is a name behind `to=`, which white space and `<` end, and a declaration is
// `type name = (...) => any;` between braces: other characters would make it something else.
const NO_NAME = /[\0-\x20\x7f-\xa0\u1680\u2000-\u200f\u2028-\u202f\u205f\u3000\ufeff<>(){};=]/;

/** `tools` by namespace, in the order of names; a `Tool` of its own is one of `functions`. */
export function inNamespaces(tools: readonly (Tool | ToolNamespace)[]): ToolNamespace[] {
  const own: Tool[] = [];
  const found: ToolNamespace[] = [];
  for (const tool of tools) {
    if (typeof tool !== "object" || tool === null) throw new UserError(`a tool is ${tool}: give an object`);
    if ("tools" in tool) found.push(tool);
    else own.push(tool);
  }
  if (own.length) found.push({ name: FUNCTION_NAMESPACE, tools: own });
  checkNames(found, "a tool namespace");
  const order = ({ name }: ToolNamespace) =>
    [...name].map((char) => char.codePointAt(0)!.toString(16).padStart(6, "0")).join("");
  return found.sort((a, b) => (order(a) < order(b) ? -1 : 1));
}

/** What a call may name: `weather` for one of `functions`, `browser.search`, `python`. */
export function toolNames(tools: readonly (Tool | ToolNamespace)[]): string[] {
  return inNamespaces(tools).flatMap(({ name, tools: own = [] }) => {
    const prefix = name === FUNCTION_NAMESPACE ? "" : `${name}.`;
    return own.length ? own.map((tool) => prefix + tool.name) : [name];
  });
}

/** The tools as the declarations the model was trained on; UserError for what is no tool. */
export function renderTools(namespaces: readonly ToolNamespace[]): string {
  return ["# Tools", ...namespaces.map(section)].join("\n\n");
}

function section({ name, description, tools }: ToolNamespace): string {
  if (!Array.isArray(tools)) throw new UserError(`tool namespace ${name}: tools is no list`);
  checkNames(tools, `a tool of ${name}`);
  const about = splitLines(description, `tool namespace ${name}`);
  if (!tools.length) return [`## ${name}`, "", ...about].join("\n");
  const lines = [`## ${name}`, "", ...about.map(comment), `namespace ${name} {`, ""];
  for (const tool of tools) {
    lines.push(...splitLines(tool.description, `tool ${tool.name}`).map(comment));
    lines.push(`type ${tool.name} = (${argumentsOf(tool)}) => any;`, "");
  }
  return [...lines, `} // namespace ${name}`].join("\n");
}

const comment = (line: string) => `// ${line}`;

function argumentsOf({ name, parameters = null }: Tool): string {
  const where = `tool ${name}: parameters`;
  const schema = typeof parameters === "string" ? readJson(parameters, where) : plain(parameters, where);
  if (schema === null) return "";
  if (!(schema instanceof Map) && typeof schema !== "boolean") {
    throw new UserError(`${where} are no JSON schema: give an object, or nothing for no arguments`);
  }
  return `_: ${typescript(schema)}`;
}

/** Lines as Rust's str::lines has them: only a line feed ends one. */
function splitLines(text: string | null | undefined, where: string): string[] {
  const lines = text ?? "";
  if (typeof lines !== "string") {
    throw new UserError(`${where}: the description is a ${typeof lines}: give text`);
  }
  return lines.split(/\r?\n/).filter((line, i, all) => line !== "" || i < all.length - 1);
}

function checkNames(named: readonly { name: string }[], what: string): void {
  const seen = new Set<string>();
  for (const one of named) {
    const name: unknown = one?.name;
    if (typeof name !== "string" || !name) throw new UserError(`${what} has no name: give one`);
    const wrong = NO_NAME.exec(name);
    if (wrong) {
      throw new UserError(
        `${what} is named ${JSON.stringify(name)}: a model could not call it for the ` +
          JSON.stringify(wrong[0]),
      );
    }
    if (seen.has(name)) {
      throw new UserError(`${what} is named ${name}, and so is another: give names that differ`);
    }
    seen.add(name);
  }
}
