/** dist/: one file for Node, one for pages, one for their workers, and the types. */
import { execFileSync } from "node:child_process";
import { rmSync, statSync } from "node:fs";

import { build } from "esbuild";

rmSync("dist", { recursive: true, force: true });
execFileSync("npx", ["tsc", "--emitDeclarationOnly"], { stdio: "inherit" });
const shared = {
  bundle: true,
  format: "esm",
  minify: true,
  sourcemap: true,
  target: "es2023",
  external: ["onnxruntime-node", "onnxruntime-web/*"],
};
await build({ ...shared, entryPoints: ["src/node.ts"], outdir: "dist", platform: "node" });
// Each complete in itself, so that a page can use them without a build step.
await build({ ...shared, entryPoints: ["src/web.ts", "src/worker.ts"], outdir: "dist" });
for (const name of ["node", "web", "worker"]) {
  console.log(`dist/${name}.js ${(statSync(`dist/${name}.js`).size / 1000).toFixed(1)} kB`);
}
