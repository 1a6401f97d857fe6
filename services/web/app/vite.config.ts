import react from "@vitejs/plugin-react";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

// `npm run dev` serves the page itself and sends every call to a running mesh.
const EDGE_URL = process.env.EDGE_URL ?? "http://127.0.0.1:8080";

/** Puts Swagger UI's files, as its package has them, where the server looks for them. */
function swaggerUi(): Plugin {
  const names = ["swagger-ui.css", "swagger-ui-bundle.js", "swagger-ui-standalone-preset.js", "favicon-32x32.png"];
  return {
    name: "swagger-ui",
    apply: "build",
    generateBundle() {
      for (const name of names) {
        const source = readFileSync(here(`./node_modules/swagger-ui-dist/${name}`));
        this.emitFile({ type: "asset", fileName: `docs/${name}`, source });
      }
    },
  };
}

export default defineConfig({
  plugins: [react(), swaggerUi()],
  resolve: {
    // gen/ts lies outside this folder, so what it imports is looked up here.
    alias: [
      { find: /^@\//, replacement: here("./src/") },
      { find: /^@gen\//, replacement: here("../../../gen/ts/") },
      { find: /^@bufbuild\/protobuf$/, replacement: here("./node_modules/@bufbuild/protobuf/dist/esm/index.js") },
      {
        find: /^@bufbuild\/protobuf\/(codegenv2|wkt)$/,
        replacement: here("./node_modules/@bufbuild/protobuf/dist/esm/$1/index.js"),
      },
    ],
  },
  build: {
    outDir: here("../dist"),
    emptyOutDir: true,
    // Nothing may be inlined: the page's content policy allows files of this origin only.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 900,
  },
  server: {
    host: "127.0.0.1",
    proxy: { "^/tradeloom\\.": { target: EDGE_URL, changeOrigin: false } },
  },
  test: {
    environment: "jsdom",
    include: ["src/**/*.test.{ts,tsx}"],
    setupFiles: [here("./src/test/setup.ts")],
    restoreMocks: true,
    // One jsdom for all files: making one takes longer than most files' tests, and than a second worker would save.
    isolate: false,
    maxWorkers: 1,
    testTimeout: 20_000,
    expect: { poll: { timeout: 10_000 } },
  },
});
