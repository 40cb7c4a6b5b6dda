/** Tools are declared as openai-harmony does, through the vectors that Python's are held to it by. */
import { describe, expect, test, vi } from "vitest";

import { dump, plain, readJson } from "../src/json.js";
import {
  BROWSER_TOOL,
  Conversation,
  PYTHON_TOOL,
  Reply,
  type SystemPrompt,
  type Tool,
  type ToolNamespace,
  UserError,
} from "../src/node.js";
import { typescript } from "../src/schema.js";
import { systemText } from "../src/system.js";
import { inNamespaces, renderTools } from "../src/tools.js";
import { type SharedSystem, systemFromShared, vectors } from "./support.js";

type Tools = (Tool | ToolNamespace)[];
const { declared, refused, systems, types, numbers } = vectors<{
  declared: { name: string; tools: Tools; text: string }[];
  refused: { name: string; tools: Tools }[];
  systems: (Omit<SharedSystem, "tools"> & {
    name: string;
    tools: ("browser" | "python")[];
    has_functions?: boolean;
    text: string;
  })[];
  types: { schema: string; type: string }[];
  numbers: { number: string; text: string }[];
}>("tools");

const render = (tools: Tools) => renderTools(inNamespaces(tools));

test.each(declared)("declares $name", ({ tools, text }) => {
  expect(render(tools)).toBe(text);
});

test.each(refused)("refuses $name", ({ tools }) => {
  expect(() => render(tools)).toThrow(UserError);
  expect(() => render(tools)).toThrow(/^.{10,300}$/); // one line: a dot is no line feed
});

test.each(systems)("says $name", ({ name, text, has_functions: hasFunctions = false, ...given }) => {
  const built = { browser: BROWSER_TOOL, python: PYTHON_TOOL };
  const tools = given.tools.map((tool) => built[tool]);
  const system = systemFromShared({ date: "2026-01-01", ...given, tools })!;
  expect(systemText(system, hasFunctions)).toBe(text);
});

test("schemas are declared as their text says", () => {
  for (const { schema, type } of types) expect(typescript(readJson(schema, "schema"))).toBe(type);
});

test.each(numbers)("writes $number", ({ number, text }) => {
  expect(dump(readJson(number, "number"))).toBe(text);
});

describe("JavaScript's own values", () => {
  const schema = (value: unknown) => dump(plain(value, "parameters"));

  test("are JSON as JSON.stringify has it, but for numbers", () => {
    const value = { a: [1, -1.5, "\u2028é\n", true, null], b: { c: undefined, d: {} }, 5: "x" };
    expect(schema(value)).toBe(JSON.stringify(value));
    expect([1e21, 1e-7, 1e20, -0, 2 ** 53, 10n ** 20n, 5n].map(schema)).toEqual([
      "1e21", "1e-7", "1e20", "0", "9007199254740992", "1e20", "5",
    ]);
    expect(schema("\ud800\\ud800 🎉")).toBe('"\ufffd\\\\ud800 🎉"');
  });

  test("of a Map keep their order", () => {
    const properties = new Map<string, unknown>([["b", {}], ["1", { default: 2 }], ["0", true]]);
    const tools = [{ name: "f", parameters: new Map<string, unknown>([["type", "object"], ["properties", properties]]) }];
    expect(render(tools)).toContain("{\nb?: any,\n1?: any, // default: 2\n0?: any,\n}");
  });

  const circle: unknown[] = [];
  circle.push(circle);
  const others: [unknown, RegExp][] = [
    [{ default: NaN }, /^parameters\.default holds NaN/],
    [{ "a b": [Infinity] }, /^parameters\["a b"\]\[0\] holds Infinity/],
    [{ maximum: 10n ** 400n }, /^parameters\.maximum holds a number beyond/],
    [{ enum: new Set([1]) }, /^parameters\.enum is a Set/],
    [{ format: () => 1 }, /^parameters\.format is a function/],
    [{ format: Symbol("x") }, /^parameters\.format is a symbol/],
    [new Map([[1, 2]]), /^parameters has a number as key/],
    [circle, /nested deeper than 128 levels$/],
  ];
  test("others are refused by place", () => {
    for (const [value, said] of others) {
      expect(() => schema(value)).toThrow(UserError);
      expect(() => schema(value)).toThrow(said);
    }
  });

  test.each([[null], ["weather"], [5], [undefined]])("%o is no tool", (tool) => {
    expect(() => render([tool as never])).toThrow(UserError);
  });

  test("OpenAI's own form of a tool has no name where ours has it", () => {
    const tool = { type: "function", function: { name: "f" } };
    expect(() => render([tool as never])).toThrow("has no name");
    expect(() => render([{ name: "n", tools: 5 } as never])).toThrow("tools is no list");
    expect(() => render([{ name: "n", tools: [null] } as never])).toThrow("has no name");
  });
});

test("today is the first turn's day, past midnight too", async () => {
  const days: unknown[] = [];
  const talk = (system?: SystemPrompt | null) =>
    new Conversation(
      (_, { system }) => {
        days.push(system && system.date);
        return new Reply(async function* () {});
      },
      { system },
    );
  vi.useFakeTimers({ toFake: ["Date"], now: new Date(2026, 0, 31, 23, 59) });
  const open = talk();
  vi.setSystemTime(new Date(2026, 1, 1));
  const given = [{ date: "2020-02-02" }, { date: null }, null];
  for (const one of [open, ...given.map(talk), talk({ date: "today" })]) await one.send("hi").text();
  vi.useRealTimers();
  expect(days).toEqual(["2026-01-31", "2020-02-02", null, null, "2026-02-01"]);
});
