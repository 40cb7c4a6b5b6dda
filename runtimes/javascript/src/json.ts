/**
 * JSON values as openai-harmony has them: read and written as Rust's serde_json does. Objects are
 * Maps, because JavaScript's own put keys like "10" first; numbers are text, because 1.0 is 1 to it.
 */
import { UserError } from "./errors.js";

/** A number as it is written. */
export class JsonNumber {
  constructor(readonly text: string) {}
}

export type Json = null | boolean | string | JsonNumber | Json[] | Map<string, Json>;

const DEEPEST = 128; // levels, as in serde_json
const TOKENS = /"[^"\\]*(?:\\.[^"\\]*)*"|[-+.\w]+|[[\]{}]/g;
const NUMBER = /^(-?)(\d+)(?:\.(\d+))?(?:[eE]([-+]?)0*(\d+))?$/;

/** JSON text; UserError, which names `where`, when it is none. */
export function readJson(text: string, where: string): Json {
  try {
    JSON.parse(text);
  } catch (error) {
    throw new UserError(`${where} is no JSON: ${(error as Error).message.replace(/\s+/g, " ")}`);
  }
  // What is left is to keep the order of keys and the form of numbers.
  const tokens = text.matchAll(TOKENS);
  const next = (): string => tokens.next().value![0];
  const read = (token: string, depth: number): Json => {
    if (depth > DEEPEST) throw tooDeep(where);
    if (token === "[") {
      const list: Json[] = [];
      for (let inner = next(); inner !== "]"; inner = next()) list.push(read(inner, depth + 1));
      return list;
    }
    if (token === "{") {
      const map = new Map<string, Json>();
      for (let key = next(); key !== "}"; key = next()) {
        map.set(JSON.parse(key) as string, read(next(), depth + 1));
      }
      return map;
    }
    return /[-\d]/.test(token[0]) ? readNumber(token, where) : (JSON.parse(token) as Json);
  };
  return read(next(), 0);
}

/** A value of JavaScript; UserError, which names the place, for what JSON cannot hold. */
export function plain(value: unknown, where: string, depth = 0): Json {
  if (depth > DEEPEST) throw tooDeep(where);
  if (value === null || typeof value === "boolean" || typeof value === "string") return value;
  if (typeof value === "bigint" || (typeof value === "number" && Number.isFinite(value))) {
    return readNumber(value === 0 ? "0" : String(value), where);
  }
  if (typeof value === "number") throw new UserError(`${where} holds ${value}, which is no JSON number`);
  if (Array.isArray(value)) return value.map((entry, i) => plain(entry, `${where}[${i}]`, depth + 1));
  const isMap = value instanceof Map;
  if (typeof value !== "object" || value === undefined || (!isMap && Symbol.iterator in value)) {
    const kind = typeof value === "object" ? value.constructor.name : typeof value;
    throw new UserError(`${where} is a ${kind}, which JSON does not have`);
  }
  const map = new Map<string, Json>();
  for (const [key, entry] of isMap ? value : Object.entries(value)) {
    if (typeof key !== "string") throw new UserError(`${where} has a ${typeof key} as key: give text`);
    if (entry !== undefined) map.set(key, plain(entry, inside(where, key), depth + 1));
  }
  return map;
}

/** JSON text without spaces. */
export function dump(value: Json): string {
  if (value instanceof JsonNumber) return value.text;
  if (Array.isArray(value)) return `[${value.map(dump).join(",")}]`;
  if (value instanceof Map) {
    return `{${[...value].map(([key, entry]) => `${dump(key)}:${dump(entry)}`).join(",")}}`;
  }
  // Half a surrogate pair is no character: the tokenizer knows, JSON.stringify would spell it.
  return JSON.stringify(typeof value === "string" ? value.replace(/\p{Cs}/gu, "\ufffd") : value);
}

function inside(where: string, key: string): string {
  return /^[\p{L}_$][\p{L}\d_$]*$/u.test(key) ? `${where}.${key}` : `${where}[${JSON.stringify(key)}]`;
}

function tooDeep(where: string): UserError {
  return new UserError(`${where.slice(0, 80)} is nested deeper than ${DEEPEST} levels`);
}

/**
 * JSON number `text` as serde_json writes what it reads. It reads whole numbers of 64 bits exactly.
 * Others are a significand of 64 bits, further digits forgotten, times or by a power of ten: the
 * last digit may differ from the nearest double's.
 */
function readNumber(text: string, where: string): JsonNumber {
  const [, sign, whole, fraction = "", direction, power] = NUMBER.exec(text)!;
  if (/^-?\d+$/.test(text) && text !== "-0" && whole.length <= 20) {
    const integer = BigInt(text);
    if (integer >= -(2n ** 63n) && integer < 2n ** 64n) return new JsonNumber(text);
  }
  let [significand, exponent] = [0n, 0];
  const add = (digit: string): boolean => {
    const more = significand * 10n + BigInt(digit);
    if (more >= 2n ** 64n) return false;
    significand = more;
    return true;
  };
  for (let place = 0; place < whole.length; place++) {
    if (add(whole[place])) continue;
    exponent = whole.length - place;
    break;
  }
  for (const digit of fraction) {
    if (!add(digit)) break;
    exponent--;
  }
  if (power !== undefined) {
    const size = power.length < 10 ? Number(power) : 1e9;
    exponent += direction === "-" ? -size : size;
  }
  let value = Number(significand);
  for (; value && exponent < -308; exponent += 308) value /= 1e308;
  if (value && exponent >= 0) value *= Number(`1e${exponent}`);
  else if (value) value /= Number(`1e${-exponent}`);
  if (value === Infinity) {
    throw new UserError(`${where} holds a number beyond 1.8e308: make it smaller`);
  }
  return new JsonNumber(sign + written(value));
}

/** The shortest digits that mean `value`, in the notation that serde_json takes for them. */
function written(value: number): string {
  const [mantissa, power] = value.toExponential().split("e");
  const digits = mantissa.replace(".", "");
  const point = Number(power) + 1; // digits before the decimal point
  if (digits.length <= point && point <= 16) return `${digits.padEnd(point, "0")}.0`;
  if (point > 0 && point <= 16) return `${digits.slice(0, point)}.${digits.slice(point)}`;
  if (point > -5 && point <= 0) return `0.${"0".repeat(-point)}${digits}`;
  return `${mantissa}e${point - 1}`;
}
