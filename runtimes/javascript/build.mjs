/** dist/: an entry for Node, one for pages, one for their workers, and the types. */
import { execFileSync } from "node:child_process";
import { copyFileSync, readdirSync, rmSync, statSync } from "node:fs";

import { build } from "esbuild";

rmSync("dist", { recursive: true, force: true });
execFileSync("npx", ["tsc", "--emitDeclarationOnly"], { stdio: "inherit" });
const common = { outdir: "dist", format: "esm", sourcemap: true, target: "es2023" };
// What the three share lies in files of its own, which each imports by a relative path: a page
// needs no build step.
await build({
  entryPoints: ["src/node.ts", "src/web.ts", "src/worker.ts"],
  ...common,
  chunkNames: "shared-[hash]",
  bundle: true,
  splitting: true,
  minify: true,
  charset: "utf8",
  platform: "neutral",
  external: ["./import_url.js", "node:*", "onnxruntime-node", "onnxruntime-web/*"],
});
copyFileSync("../manifest.schema.json", "dist/manifest.schema.json");
// By itself and not minified: its comments are what bundlers read.
await build({ entryPoints: ["src/import_url.ts"], ...common });
const files = readdirSync("dist").filter((name) => name.endsWith(".js"));
const sizes = files.map((name) => statSync(`dist/${name}`).size);
files.forEach((name, i) => console.log(`dist/${name} ${(sizes[i] / 1000).toFixed(1)} kB`));
console.log(`all of it ${(sizes.reduce((a, b) => a + b, 0) / 1000).toFixed(1)} kB`);
