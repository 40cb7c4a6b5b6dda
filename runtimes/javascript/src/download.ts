/**
 * A package's files from a server: fetched, checked against the manifest, kept by the browser.
 *
 * Files are kept under their SHA-256, so bytes that two packages share are stored once and a changed
 * file is never confused with its predecessor.
 */
import { UserError, firstLine } from "./errors.js";
import type { FileEntry, Manifest } from "./manifest.js";

const CACHE = "gptoss-onnx";
const COPY = "copy the package there again";

export class Downloader {
  /** Why the browser keeps no copy; undefined when it does. */
  notCached?: string;
  readonly #base: URL;
  readonly #cache?: Cache;
  readonly #signal?: AbortSignal;
  readonly #onBytes: (file: string, bytes: number) => void;

  private constructor(
    base: URL,
    cache: Cache | undefined,
    onBytes: (file: string, bytes: number) => void,
    signal?: AbortSignal,
  ) {
    [this.#base, this.#cache, this.#onBytes, this.#signal] = [base, cache, onBytes, signal];
  }

  static async open(
    base: URL,
    keep: boolean,
    onBytes: (file: string, bytes: number) => void,
    signal?: AbortSignal,
  ): Promise<Downloader> {
    if (!crypto.subtle) {
      throw new UserError(
        `${base}: files cannot be checked in an insecure page: serve it over https, or from localhost`,
      );
    }
    let cache: Cache | undefined;
    let why = keep ? undefined : "the caller asked for none";
    if (keep) {
      try {
        cache = await caches.open(CACHE);
      } catch (error) {
        why = firstLine(error); // as in a private window
      }
    }
    const made = new Downloader(base, cache, onBytes, signal);
    made.notCached = why;
    return made;
  }

  /** The server's manifest, or without network the one kept from last time. */
  async manifest(): Promise<string> {
    const url = new URL("manifest.json", this.#base);
    let text: string;
    try {
      text = await (await this.#get(url, "no-cache")).text();
    } catch (error) {
      this.#signal?.throwIfAborted();
      const kept = error instanceof Unreachable ? await this.#cache?.match(url) : undefined;
      if (!kept) throw error;
      return kept.text();
    }
    return text;
  }

  /** Keep `text`, a manifest that was found good, and forget files that no kept one refers to. */
  async keepManifest(text: string): Promise<void> {
    const [cache, url] = [this.#cache, new URL("manifest.json", this.#base)];
    if (!cache) return;
    const before = await hashesOf(await cache.match(url));
    await this.#put(url.href, text);
    // Packages share files: what another one refers to stays.
    const wanted = new Set<string>();
    for (const request of await cache.keys()) {
      if (!request.url.endsWith("/manifest.json")) continue;
      for (const hash of await hashesOf(await cache.match(request))) wanted.add(hash);
    }
    for (const hash of before) if (!wanted.has(hash)) await cache.delete(keyOf(hash));
  }

  /** The bytes of one file, from the cache or the server. */
  async file(name: string, entry: FileEntry): Promise<Uint8Array<ArrayBuffer>> {
    this.#signal?.throwIfAborted();
    const key = keyOf(entry.sha256);
    const kept = await this.#cache?.match(key);
    if (kept) {
      const bytes = new Uint8Array(await kept.arrayBuffer());
      if (bytes.length === entry.size) {
        this.#onBytes(name, bytes.length);
        return bytes;
      }
    }
    const url = new URL(name, this.#base);
    const bytes = await this.#read(await this.#get(url, "no-store"), name, entry);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hex !== entry.sha256) {
      throw new UserError(`${url}: its bytes changed: the SHA-256 is not the manifest's; ${COPY}`);
    }
    await this.#put(key, bytes);
    return bytes;
  }

  async #read(
    response: Response,
    name: string,
    { size }: FileEntry,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = new Uint8Array(size);
    let length = 0;
    try {
      // Not `for await`: Safari cannot iterate a stream.
      const reader = response.body?.getReader();
      for (let part = await reader?.read(); part && !part.done; part = await reader?.read()) {
        if (length + part.value.length <= size) bytes.set(part.value, length);
        length += part.value.length;
        this.#onBytes(name, part.value.length);
      }
    } catch (error) {
      this.#signal?.throwIfAborted();
      throw new Unreachable(`${response.url}: broke off after ${length} bytes (${firstLine(error)})`);
    }
    if (length !== size) {
      throw new UserError(`${response.url}: ${length} bytes instead of ${size}; ${COPY}`);
    }
    return bytes;
  }

  async #get(url: URL, cache: RequestCache): Promise<Response> {
    let response: Response;
    try {
      response = await fetch(url, { cache, signal: this.#signal });
    } catch (error) {
      this.#signal?.throwIfAborted();
      throw new Unreachable(
        `${url}: cannot be fetched (${firstLine(error)}): is the server up, and does it allow ` +
          "this page (CORS)?",
      );
    }
    if (!response.ok) {
      const what = url.pathname.endsWith("/manifest.json")
        ? "there is no package at this address"
        : "the package there is not complete: copy it again";
      throw new UserError(`${url}: ${response.status} ${response.statusText}: ${what}`);
    }
    return response;
  }

  async #put(key: string, content: Uint8Array<ArrayBuffer> | string): Promise<void> {
    try {
      await this.#cache?.put(key, new Response(content));
    } catch (error) {
      this.notCached = firstLine(error); // as when the disk is full
    }
  }
}

/** No answer, or half of one: what was kept may serve instead. */
class Unreachable extends UserError {}

/** The SHA-256 of every file that a kept manifest names. */
async function hashesOf(kept: Response | undefined): Promise<string[]> {
  if (!kept) return [];
  const { files } = (await kept.json()) as Manifest;
  return Object.values(files).map((entry) => entry.sha256);
}

function keyOf(sha256: string): string {
  return `https://gptoss-onnx.invalid/sha256/${sha256}`;
}
