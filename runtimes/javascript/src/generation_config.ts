/** generation_config.json as people have it: what it may say, what it means, what a fault names. */
import { type Check, flag, list, object, whole } from "./checks.js";
import { UserError } from "./errors.js";
import { SETTINGS, type Sampling } from "./sampling.js";

export const GENERATION_CONFIG = "generation_config.json";
type Config = Record<string, any>;

const checkSampling = object({
  "temperature?": SETTINGS.temperature,
  "top_p?": SETTINGS.topP,
  "min_p?": SETTINGS.minP,
  "repetition_penalty?": SETTINGS.repetitionPenalty,
  "top_k?": SETTINGS.topK,
  "do_sample?": flag,
});
const id = whole(0, 2 ** 31 - 1);
const checkStops = object({
  "eos_token_id?": (value, where) => (Array.isArray(value) ? list(id, 4096, 1) : id)(value, where),
});

/**
 * The sampling that a generation_config.json asks for: greedy unless it says `do_sample`. null is as
 * if absent; a filter that it does not name is off: its author sampled without it. UserError names
 * the field that cannot be followed.
 */
export function samplingFromConfig(config: Config): Sampling {
  const found = checked(config, checkSampling, GENERATION_CONFIG);
  return {
    temperature: found.temperature,
    topK: found.top_k === -1 ? 0 : found.top_k,
    topP: found.top_p,
    minP: found.min_p,
    repetitionPenalty: found.repetition_penalty,
    doSample: found.do_sample ?? false,
  };
}

/** `eos_token_id`, one or several; undefined where it is absent or null. */
export function stopIdsFromConfig(config: Config, where: string): Set<number> | undefined {
  const { eos_token_id } = checked(config, checkStops, where);
  return eos_token_id === undefined ? undefined : new Set([eos_token_id].flat());
}

function checked(config: Config, check: Check, where: string): Config {
  const given = Object.fromEntries(Object.entries(config).filter(([, value]) => value !== null));
  const found = check(given, "");
  if (found) throw new UserError(`${where}: ${found}; correct it there`);
  return given;
}
