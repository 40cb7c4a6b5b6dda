/** The Vite app, built and used, and as its development server shows it. */
import { mkdtempSync, rmSync, symlinkSync, unlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";

import type { Browser, Page } from "playwright-core";
import { createLogger } from "vite";
import { afterAll, beforeAll, expect, test } from "vitest";

import { Site, inChromium, openBrowser, openPage } from "./site.js";
import { WEB_PACKAGE } from "./support.js";

const root = fileURLToPath(new URL("../examples/vite", import.meta.url));

/** Of the build and of the development server. */
const warnings: string[] = [];
const logger = { ...createLogger("warn"), warn: (text: string) => void warnings.push(text) };

/** Its question, answered. */
async function ask(page: Page): Promise<void> {
  await page.waitForFunction(() => !document.querySelector("button")?.disabled);
  expect(await page.textContent("#status")).toContain("on wasm");
  await page.click("button");
  await page.waitForFunction(() => !document.querySelector("button")?.disabled);
  expect(await page.textContent("#talk")).toContain(
    "> What does os.path.join do?\nJoin two or more pathname components, inserting '/' as needed.",
  );
}

inChromium("the Vite app", () => {
  let folder: string;
  let site: Site;
  let browser: Browser;
  beforeAll(async () => {
    folder = mkdtempSync(`${tmpdir()}/gptoss-vite-`);
    const { build } = await import("vite");
    await build({ root, customLogger: logger, build: { outDir: folder, emptyOutDir: true } });
    site = await Site.start({ "/app/": folder });
    browser = await openBrowser();
  });
  afterAll(async () => {
    await Promise.all([browser?.close(), site?.stop()]);
    rmSync(folder, { recursive: true });
  });

  test("talks through its worker", async () => {
    const page = await openPage(browser, site);
    await page.goto(`${site.url}/app/?package=/package/`);
    await ask(page);
  });

  /** The development server, with a folder for what it serves as it is. */
  async function developing(use: (page: Page, publicDir: string) => Promise<void>): Promise<void> {
    const { createServer } = await import("vite");
    const publicDir = mkdtempSync(`${tmpdir()}/gptoss-public-`);
    symlinkSync(WEB_PACKAGE, `${publicDir}/package`);
    const server = await createServer({ root, publicDir, customLogger: logger, server: { port: 0 } });
    try {
      await server.listen();
      const page = await browser.newPage();
      await page.goto(server.resolvedUrls!.local[0]);
      await use(page, publicDir);
    } finally {
      await server.close();
      rmSync(publicDir, { recursive: true });
    }
  }

  test("talks while it is developed, from a package that is linked", () => developing(ask));

  // Vite says "cannot be analyzed" of an import whose comments were lost.
  test("gives its developer no warnings", () => expect(warnings).toEqual([]));

  test("says that there is no package", () =>
    developing(async (page, publicDir) => {
      unlinkSync(`${publicDir}/package`);
      await page.reload();
      await page.waitForFunction(() => document.querySelector("#status")?.textContent);
      expect(await page.textContent("#status")).toMatch(/package\/manifest\.json: /);
    }));
});
