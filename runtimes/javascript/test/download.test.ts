/** What the browser keeps of packages, and for how long; the cache and the network are stand-ins. */
import { createHash } from "node:crypto";

import { afterEach, expect, test, vi } from "vitest";

import { Downloader } from "../src/download.js";
import type { Manifest } from "../src/manifest.js";

afterEach(() => vi.unstubAllGlobals());

/** Cache Storage's one cache, as much of it as is used. */
function storage() {
  const kept = new Map<string, Uint8Array | string>();
  const url = (key: string | URL | Request) => (key instanceof Request ? key.url : String(key));
  const cache = {
    match: async (key: string | URL | Request) => {
      const found = kept.get(url(key));
      return found === undefined ? undefined : new Response(found as BodyInit);
    },
    put: async (key: string, response: Response) => {
      kept.set(url(key), new Uint8Array(await response.arrayBuffer()));
    },
    delete: async (key: string) => kept.delete(url(key)),
    keys: async () => [...kept.keys()].map((key) => new Request(key)),
  };
  vi.stubGlobal("caches", { open: async () => cache });
  return kept;
}

/** A server of packages: a folder's files, by name, and its manifest out of them. */
function serve(packages: Record<string, Record<string, string>>) {
  let fetched = 0;
  vi.stubGlobal("fetch", async (where: URL) => {
    const [, folder, name] = where.pathname.split("/");
    const text = name === "manifest.json" ? manifest(packages[folder]) : packages[folder]?.[name];
    if (name !== "manifest.json") fetched++;
    return new Response(text ?? "", { status: text === undefined ? 404 : 200 });
  });
  return () => fetched;
}

function manifest(files: Record<string, string>): string {
  const entry = (text: string) => ({
    size: text.length,
    sha256: createHash("sha256").update(text).digest("hex"),
  });
  const entries = Object.entries(files).map(([name, text]) => [name, entry(text)]);
  return JSON.stringify({ files: Object.fromEntries(entries) });
}

/** As `GptOss.load` does: the manifest, every file, then the manifest is kept. */
async function load(folder: string): Promise<string[]> {
  const base = new URL(`https://models.example/${folder}/`);
  const downloader = await Downloader.open(base, true, () => {});
  const text = await downloader.manifest();
  const { files } = JSON.parse(text) as Manifest;
  const found = [];
  for (const [name, entry] of Object.entries(files)) {
    found.push(new TextDecoder().decode(await downloader.file(name, entry)));
  }
  await downloader.keepManifest(text);
  return found;
}

test("a file stays while a package refers to it", async () => {
  const kept = storage();
  const packages: Record<string, Record<string, string>> = {
    one: { "model.onnx.data": "shared", "model.onnx": "one" },
    two: { "model.onnx.data": "shared", "model.onnx": "two" },
  };
  const fetched = serve(packages);
  await load("one");
  await load("two");
  expect(fetched()).toBe(3); // the shared bytes once
  packages.one = { "model.onnx.data": "newer", "model.onnx": "one" };
  expect(await load("one")).toEqual(["newer", "one"]);
  expect(fetched()).toBe(4);
  serve({}); // without network
  vi.stubGlobal("fetch", async () => {
    throw new TypeError("offline");
  });
  expect(await load("two")).toEqual(["shared", "two"]);
  expect(await load("one")).toEqual(["newer", "one"]);
  // Two manifests, shared, newer, one, two; and when nobody refers to it any more, it goes.
  expect(kept.size).toBe(6);
  packages.two = { "model.onnx.data": "newer", "model.onnx": "two" };
  serve(packages);
  await load("two");
  expect(kept.size).toBe(5);
});
