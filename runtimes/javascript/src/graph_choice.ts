/**
 * Which of a package's graphs a runtime takes: the rule that every language has. Of the graphs that
 * it can run, the one made for the provider it ranks highest; of those the one that asks most of the
 * device; of those the first.
 */
import { UserError } from "./errors.js";
import type { GraphEntry } from "./manifest.js";

/** What there is to run a graph with. */
export interface Runtime {
  /** As its npm package is called. */
  name: string;
  version: string;
  /** What packages for it are exported with. */
  target: string;
  /** ONNX Runtime's names; the one whose graphs suit it best first. */
  providers: readonly string[];
  /** Of the device. */
  features: ReadonlySet<string>;
  /** Element types of the KV caches it keeps. */
  kv: readonly string[];
  /** Whether it runs graphs that make their KV cache anew (`in_place` false). */
  appends: boolean;
}

/** UserError says why the first graph cannot run where none can. `where` is the manifest's place. */
export function chooseGraph(
  entries: readonly GraphEntry[],
  runtime: Runtime,
  where: string,
): { entry: GraphEntry; graphReason?: string } {
  const refusals = entries.map((entry) => refusal(entry, runtime));
  const fit = entries.filter((_, i) => !refusals[i]);
  if (!fit.length) {
    const again = `export the package for it (gptoss export --target ${runtime.target})`;
    throw new UserError(`${where}: ${refusals[0]}; ${again}`);
  }
  const place = (entry: GraphEntry) => {
    const first = runtime.providers.indexOf(entry.session.providers[0]);
    return first < 0 ? runtime.providers.length : first; // made for another, but runs
  };
  const asked = (entry: GraphEntry) => entry.requires?.length ?? 0;
  const [entry] = fit.sort((a, b) => place(a) - place(b) || asked(b) - asked(a));
  const graphReason = asked(entry)
    ? `this device has ${entry.requires?.join(", ")}`
    : entries.flatMap((other, i) => (refusals[i] ? `${other.graph} ${refusals[i]}` : [])).join("; ");
  return { entry, graphReason: graphReason || undefined };
}

/** Why `runtime` cannot run a graph; undefined when it can. */
function refusal(entry: GraphEntry, runtime: Runtime): string | undefined {
  const { name, version } = runtime;
  if (compareVersions(version, entry.min_runtime) < 0) {
    return `needs onnxruntime ${entry.min_runtime} or newer, this is ${name} ${version}: update it`;
  }
  const { providers } = entry.session;
  if (!providers.some((provider) => runtime.providers.includes(provider))) {
    return `is made for ${providers.join(", ")}, which ${name} lacks`;
  }
  const missing = entry.requires?.filter((feature) => !runtime.features.has(feature)) ?? [];
  if (missing.length) return `needs ${missing.join(", ")}, which this device lacks`;
  if (!runtime.kv.includes(entry.kv.dtype)) {
    return `has a KV cache of ${entry.kv.dtype}, which is not supported (${runtime.kv.join(" and ")} are)`;
  }
  if (!runtime.appends && entry.kv.in_place === false) {
    return "makes its KV cache anew at every run (in_place is false), which is not supported";
  }
  return undefined;
}

/** Below 0 when `a` is the older; by leading numbers: 1.32.0-dev.1 and 1.32.0.dev1 are 1.32.0. */
function compareVersions(a: string, b: string): number {
  const [left, right] = [a, b].map((v) => v.split(/[-+]/)[0].split(".").map(Number));
  for (let i = 0; i < Math.max(left.length, right.length); i++) {
    const difference = (left[i] || 0) - (right[i] || 0);
    if (difference) return difference;
  }
  return 0;
}
