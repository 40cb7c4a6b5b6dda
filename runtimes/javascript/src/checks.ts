/** Values of JSON held to what they must be: checks of few words, that make up larger ones. */

/** The first fault, in one line that begins with the field `where`; undefined where there is none. */
export type Check = (value: unknown, where: string) => string | undefined;
type Members = Record<string, Check>;

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A value as JSON on one line of ASCII, cut short. */
export function shown(value: unknown): string {
  const text = (JSON.stringify(value) ?? String(value)).replace(
    /[^ -~]/g,
    (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  return text.length <= 60 ? text : `${text.slice(0, 57)}...`;
}

function wrong(value: unknown, where: string, wanted: string): string {
  return `${where} is ${shown(value)}: it must be ${wanted}`;
}

export function value(wanted: string, right: (value: any) => boolean): Check {
  return (value, where) => (right(value) ? undefined : wrong(value, where, wanted));
}

export const flag = value("true or false", (value) => typeof value === "boolean");

export function whole(least = 0, most = Number.MAX_SAFE_INTEGER): Check {
  const right = (value: unknown) => Number.isInteger(value) && (value as number) >= least && (value as number) <= most;
  return value(`a whole number from ${least} to ${most}`, right);
}

export function text(most: number, pattern = /^/, form = `of at most ${most} letters`): Check {
  const right = (value: unknown) => typeof value === "string" && value.length <= most && pattern.test(value);
  return value(`a string, ${form}`, right);
}

export function oneOf(...allowed: unknown[]): Check {
  return value(allowed.map(shown).join(" or "), (value) => allowed.includes(value));
}

export function either(...checks: Check[]): Check {
  return (value, where) => {
    const faults = checks.map((check) => check(value, where));
    return faults.includes(undefined) ? undefined : faults[0];
  };
}

export function list(item: Check, most: number, least = 0): Check {
  return (value, where) => {
    if (!Array.isArray(value) || value.length < least || value.length > most) {
      return wrong(value, where, `a list of ${least} to ${most}`);
    }
    return first(value, (one, i) => item(one, `${where}[${i}]`));
  };
}

/** An object's members; `?` behind a name may be absent. `others` are those of other names. */
export function object(members: Members, others?: Check): Check {
  const known: Members = Object.fromEntries(
    Object.entries(members).map(([name, check]) => [name.replace("?", ""), check]),
  );
  return (value, where) => {
    if (!isObject(value)) return wrong(value, where, "an object");
    for (const name of Object.keys(members)) {
      if (!name.endsWith("?") && !Object.hasOwn(value, name)) return `${joined(where, name)} is missing`;
    }
    return first(Object.entries(value), ([name, member]) =>
      (Object.hasOwn(known, name) ? known[name] : others)?.(member, joined(where, name)),
    );
  };
}

/** An object with any members, `least` to `most`, of names and values of a kind. */
export function table(most: number, name?: Check, member?: Check, least = 0): Check {
  return (value, where) => {
    const members = isObject(value) ? Object.entries(value) : undefined;
    if (!members || members.length < least || members.length > most) {
      return wrong(value, where, `an object of ${least} to ${most}`);
    }
    return first(
      members,
      ([key, one]) => name?.(key, `${where}: a name`) ?? member?.(one, joined(where, key)),
    );
  };
}

/** For members that nobody knows. */
export const never: Check = (_, where) => `${where} is not known: it may not be there`;

function first<T>(all: T[], check: (one: T, place: number) => string | undefined) {
  for (const [i, one] of all.entries()) {
    const found = check(one, i);
    if (found) return found;
  }
  return undefined;
}

function joined(where: string, name: string): string {
  const part = /^[\w.+-]{1,128}$/.test(name) ? name : shown(name);
  return where ? `${where}.${part}` : part;
}
