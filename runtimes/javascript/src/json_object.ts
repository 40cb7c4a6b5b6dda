/** JSON texts of packages, which may hold anything. */
import { UserError, firstLine } from "./errors.js";
import { isObject } from "./checks.js";

/** The object in a text; UserError names `where` the text is from. */
export function parseObject(text: string, where: string): Record<string, unknown> {
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch (error) {
    throw new UserError(`${where}: cannot be read as JSON (${firstLine(error)})`);
  }
  if (!isObject(content)) throw new UserError(`${where}: holds no JSON object`);
  return content;
}
