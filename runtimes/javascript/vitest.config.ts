import { defineConfig } from "vitest/config";

export default defineConfig({
  // A busy machine is slow; a hang still ends.
  test: {
    include: ["test/**/*.test.ts"],
    testTimeout: 60_000,
    hookTimeout: 120_000,
    fileParallelism: false, // a model takes every core
  },
});
