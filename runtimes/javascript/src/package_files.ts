/** The files of a package on a server, each fetched once, with the progress of all of them. */
import type { Downloader } from "./download.js";
import { UserError } from "./errors.js";
import { type FileEntry, externalDataFiles } from "./manifest.js";

export interface GraphFiles {
  graph: Uint8Array;
  data: { path: string; data: Uint8Array }[];
}

export class PackageFiles {
  /** Bytes of the files that were asked for. */
  total = 0;
  readonly #base: URL;
  readonly #downloader: Downloader;
  readonly #entries: Record<string, FileEntry>;
  readonly #fetched = new Map<string, Promise<Uint8Array>>();

  constructor(base: URL, downloader: Downloader, entries: Record<string, FileEntry>) {
    [this.#base, this.#downloader, this.#entries] = [base, downloader, entries];
  }

  has(name: string): boolean {
    return Object.hasOwn(this.#entries, name);
  }

  bytes(name: string): Promise<Uint8Array> {
    return this.#get(name);
  }

  async optionalText(name: string): Promise<string | undefined> {
    return this.has(name) ? new TextDecoder().decode(await this.#get(name)) : undefined;
  }

  /** A graph and its data, side by side with `others`, which may be absent. */
  async graph(name: string, others: readonly string[] = []): Promise<GraphFiles> {
    const graph = await this.#get(name); // it says which data files it needs
    const shards = externalDataFiles(graph);
    const wanted = [...shards, ...others.filter((other) => this.has(other))];
    const all = await Promise.all(wanted.map((path) => this.#get(path)));
    return { graph, data: shards.map((path, i) => ({ path, data: all[i] })) };
  }

  #get(name: string): Promise<Uint8Array> {
    const known = this.#fetched.get(name);
    if (known) return known;
    const entry = this.#entries[name];
    if (!this.has(name)) {
      throw new UserError(`${this.#base}: the manifest names no ${name}; export it again`);
    }
    this.total += entry.size;
    const started = this.#downloader.file(name, entry);
    this.#fetched.set(name, started);
    return started;
  }
}
