/** A server for pages under test, and the browser that opens them. */
import { existsSync, readFileSync } from "node:fs";
import { type Server, createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";

import { type Browser, type Page, chromium } from "playwright-core";
import { describe } from "vitest";

import { ROOT, WEB_PACKAGE } from "./support.js";

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";

/** `describe`; skipped, and said so, on a machine without the browser. */
export function inChromium(name: string, body: () => void): void {
  if (existsSync(CHROMIUM)) describe(name, body);
  else describe.skip(`${name}: no browser at ${CHROMIUM} (set CHROMIUM to one)`, body);
}

const TYPES: Record<string, string> = {
  html: "text/html",
  js: "text/javascript",
  mjs: "text/javascript",
  wasm: "application/wasm",
};

/** What to serve in place of a package's file: other bytes, a status, or null for no answer. */
export type Fault = Uint8Array | string | number | null;

export class Site {
  /** The folder at /package/. */
  package = WEB_PACKAGE;
  /** By file name in the package. */
  readonly faults = new Map<string, Fault>();
  /** Files of the package that are answered only once all of them were asked for. */
  together = new Set<string>();
  /** Of the package, answered or not. */
  readonly requests: string[] = [];
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** The repository at /, the package at /package/ and whatever `folders` say. */
  static async start(folders: Record<string, string> = {}): Promise<Site> {
    const site = new Site(
      createServer(async (request, response) => {
        const path = decodeURIComponent((request.url ?? "/").split("?")[0]);
        const name = path.startsWith("/package/") ? path.slice("/package/".length) : undefined;
        if (name !== undefined) site.requests.push(name);
        const broken = name !== undefined && site.faults.has(name) ? name : "*";
        const fault = name === undefined ? undefined : site.faults.get(broken);
        if (fault === null) return void request.socket.destroy();
        if (typeof fault === "number") return void response.writeHead(fault).end();
        if (path === "/") {
          response.writeHead(200, { "content-type": "text/html" });
          return void response.end("<!doctype html>");
        }
        const mounted = Object.entries({ "/package/": site.package, ...folders, "/": ROOT });
        const [prefix, folder] = mounted.find(([start]) => path.startsWith(start)) as [string, string];
        let file = join(folder, path.slice(prefix.length));
        if (path.endsWith("/")) file = join(file, "index.html");
        if (fault === undefined && !existsSync(file)) return void response.writeHead(404).end();
        await site.#allAsked(name);
        const type = TYPES[file.split(".").at(-1) ?? ""] ?? "application/octet-stream";
        response.writeHead(200, { "content-type": type });
        response.end(fault ?? readFileSync(file));
      }),
    );
    await new Promise<void>((resolve) => site.#server.listen(0, "127.0.0.1", resolve));
    return site;
  }

  async #allAsked(name = ""): Promise<void> {
    if (!this.together.has(name)) return;
    while ([...this.together].some((other) => !this.requests.includes(other))) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** As it was at first. */
  reset(): void {
    this.package = WEB_PACKAGE;
    this.together.clear();
    this.faults.clear();
    this.requests.length = 0;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** Chromium with WebGPU in software: no GPU is needed. */
export function openBrowser(): Promise<Browser> {
  return chromium.launch({
    executablePath: CHROMIUM,
    args: [
      "--headless",
      "--no-sandbox",
      "--enable-unsafe-webgpu",
      "--use-webgpu-adapter=swiftshader",
      "--enable-features=Vulkan",
    ],
  });
}

/** A page with nothing kept, on which `gptoss` and `ort` are this package and its runtime. */
export async function openPage(browser: Browser, site: Site): Promise<Page> {
  const page = await (await browser.newContext()).newPage();
  page.setDefaultTimeout(120_000);
  await page.goto(site.url);
  // As text: the test runner would rewrite an import.
  await page.evaluate(`(async () => {
    globalThis.gptoss = await import("/runtimes/javascript/dist/web.js");
    const modules = location.origin + "/runtimes/javascript/node_modules/";
    globalThis.options = { ort: modules + "onnxruntime-web/dist/" };
  })()`);
  return page;
}

/** Memory of the pages' processes, garbage collected. */
export async function residentBytes(browser: Browser): Promise<number> {
  for (const page of browser.contexts().flatMap((context) => context.pages())) {
    const session = await page.context().newCDPSession(page);
    await session.send("HeapProfiler.collectGarbage");
    await session.detach();
  }
  const session = await browser.newBrowserCDPSession();
  const { processInfo } = await session.send("SystemInfo.getProcessInfo");
  await session.detach();
  const ids = processInfo.filter(({ type }) => type === "renderer").map(({ id }) => id);
  const pages = ids.map((id) => Number(readFileSync(`/proc/${id}/statm`, "utf8").split(" ")[1]));
  return pages.reduce((sum, count) => sum + count * 4096, 0);
}
