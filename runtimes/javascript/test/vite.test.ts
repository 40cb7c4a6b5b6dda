/** The Vite app, built and used. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";

import type { Browser } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";

import { Site, inChromium, openBrowser, openPage } from "./site.js";

inChromium("the Vite app", () => {
  let folder: string;
  let site: Site;
  let browser: Browser;
  beforeAll(async () => {
    folder = mkdtempSync(`${tmpdir()}/gptoss-vite-`);
    const { build } = await import("vite");
    const root = fileURLToPath(new URL("../examples/vite", import.meta.url));
    await build({ root, logLevel: "warn", build: { outDir: folder, emptyOutDir: true } });
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
    await page.waitForFunction(() => !document.querySelector("button")?.disabled);
    expect(await page.textContent("#status")).toContain("on wasm");
    await page.click("button");
    await page.waitForFunction(() => !document.querySelector("button")?.disabled);
    expect(await page.textContent("#talk")).toContain(
      "> What does os.path.join do?\nJoin two or more pathname components, inserting '/' as needed.",
    );
  });
});
