import { fileURLToPath } from "node:url";

import { defineConfig } from "vite";

const folder = (path: string) => fileURLToPath(new URL(path, import.meta.url));

export default defineConfig({
  // In an app of yours this is `npm install` of what `make npm-package` makes, and of onnxruntime-web, and none of the next lines.
  server: { fs: { allow: [folder("../..")] } },
  resolve: {
    alias: [
      { find: /^gptoss-onnx$/, replacement: folder("../../dist/web.js") },
      { find: /^gptoss-onnx\/worker$/, replacement: folder("../../dist/worker.js") },
    ],
  },
  base: "./",
  // The package is served as /package: copy or link it to public/package (`make chat TARGET=web` does).
  build: { target: "es2023", chunkSizeWarningLimit: 2000 },
  worker: { format: "es" },
  // Kept as they are: the runtime finds its .wasm file relative to itself.
  optimizeDeps: { exclude: ["onnxruntime-web", "gptoss-onnx"] },
});
