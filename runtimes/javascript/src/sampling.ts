/** Choosing the next token from logits: filters in Hugging Face's order, a portable generator. */
import { type Check, object, value, whole } from "./checks.js";
import { UserError } from "./errors.js";

/**
 * How tokens are chosen: all of it, so the defaults sample from the model's own distribution.
 * `{ ...model.sampling, repetitionPenalty: 1.1 }` changes the package's own instead: where that is
 * greedy, a penalty leaves it so, as in transformers.
 *
 * `temperature` 0 or `doSample` false is greedy; `topK` 0 or -1, `topP` 1, `minP` 0 and
 * `repetitionPenalty` 1 are off; without `seed` it is a new one each time.
 */
export interface Sampling {
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  doSample?: boolean;
  /** A whole number from 0 to 2^64 - 1. */
  seed?: number | bigint;
}

function number(wanted: string, right: (value: number) => boolean): Check {
  return value(`a number${wanted}`, (value) => Number.isFinite(value) && right(value));
}

/** What each setting may be; generation_config.json has the same under names of its own. */
export const SETTINGS = {
  temperature: number(", 0 or more", (value) => value >= 0),
  topP: number(" above 0 and at most 1", (value) => value > 0 && value <= 1),
  minP: number(" from 0 to 1", (value) => value >= 0 && value <= 1),
  repetitionPenalty: number(" above 0", (value) => value > 0),
  topK: whole(-1), // 0 and -1 are off
};
const checkSettings = object(SETTINGS);

type Settled = Required<Omit<Sampling, "seed">> & { seed?: bigint };

/** With its defaults; UserError for a value that is out of range. */
function settle(given: Sampling): Settled {
  const { temperature = 1, topK = 0, topP = 1, minP = 0, repetitionPenalty = 1 } = given;
  const { doSample = true } = given;
  const seed = given.seed === undefined ? undefined : toSeed(given.seed);
  const found = checkSettings({ temperature, topK, topP, minP, repetitionPenalty }, "");
  if (found) throw new UserError(found);
  return { temperature, topK, topP, minP, repetitionPenalty, doSample, seed };
}

function toSeed(given: number | bigint): bigint {
  const seed = typeof given === "bigint" || Number.isSafeInteger(given) ? BigInt(given) : -1n;
  if (seed >= 0n && seed < 1n << 64n) return seed;
  throw new UserError(`seed is ${given}: it must be a whole number from 0 to 2^64 - 1`);
}

/** Steele, Lea and Flood's SplitMix64, in pairs of 32-bit words: BigInt would be far slower. */
export class SplitMix64 {
  #high: number;
  #low: number;

  constructor(seed: bigint) {
    this.#high = Number(seed >> 32n) >>> 0;
    this.#low = Number(seed & 0xffffffffn);
  }

  /** 64 random bits, as [high, low] words. */
  next(): [number, number] {
    const low = this.#low + 0x7f4a7c15;
    this.#low = low >>> 0;
    this.#high = (this.#high + 0x9e3779b9 + (low > 0xffffffff ? 1 : 0)) >>> 0;
    let z = xorShift(this.#high, this.#low, 30);
    z = xorShift(...multiply(...z, 0xbf58476d, 0x1ce4e5b9), 27);
    return xorShift(...multiply(...z, 0x94d049bb, 0x133111eb), 31);
  }

  /** A double in [0, 1): the upper 53 of 64 bits, times 2^-53. */
  uniform(): number {
    const [high, low] = this.next();
    return (high * 2 ** 21 + (low >>> 11)) * 2 ** -53;
  }
}

/** z ^ (z >> by), for `by` below 32. */
function xorShift(high: number, low: number, by: number): [number, number] {
  return [(high ^ (high >>> by)) >>> 0, (low ^ ((high << (32 - by)) | (low >>> by))) >>> 0];
}

/** The lower 64 bits of a product. */
function multiply(aHigh: number, aLow: number, bHigh: number, bLow: number): [number, number] {
  const [a1, a0, b1, b0] = [aLow >>> 16, aLow & 0xffff, bLow >>> 16, bLow & 0xffff];
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const carried = a0 * b1 + (middle & 0xffff);
  // Whole and below 2^53: exact.
  const upper = a1 * b1 + Math.floor(middle / 65536) + Math.floor(carried / 65536);
  const crossed = Math.imul(aHigh, bLow) + Math.imul(aLow, bHigh);
  return [(upper + crossed) >>> 0, Math.imul(aLow, bLow) >>> 0];
}

type Scores = Float32Array | Float64Array;

/**
 * Draws one sequence's tokens, id for id as every runtime of these packages does.
 *
 * Everything is float64. Scores are the logits, with those of tokens seen in prompt or reply
 * divided by the penalty (multiplied when negative). Greedy takes the highest, the lower id of
 * two equals. Otherwise the tokens are put in order, highest score first, lower id first of two
 * equals, and weigh exp((score - highest) / temperature). top_k keeps scores >= the k-th; top_p
 * keeps a token while those before it weigh less than top_p of the total; min_p keeps weights >=
 * min_p. Of what is kept, one uniform number u chooses the first token at which the running total
 * exceeds u times the kept total.
 */
export class Sampler {
  readonly #options: Settled;
  readonly #random: SplitMix64;
  readonly #seen = new Set<number>();

  constructor(sampling: Sampling, prompt: Iterable<number>) {
    this.#options = settle(sampling);
    this.#random = new SplitMix64(this.#options.seed ?? randomSeed());
    if (this.#penalized) for (const token of prompt) this.#seen.add(token);
  }

  get #penalized(): boolean {
    return this.#options.repetitionPenalty !== 1;
  }

  /** The token that follows; `logits` are left as they are. Throws for NaN logits. */
  next(logits: Float32Array): number {
    const scores = this.#penalized ? this.#penalize(logits) : logits;
    const highest = argmax(scores);
    if (!Number.isFinite(scores[highest])) {
      throw new Error(`the model's logits are broken: token ${highest} has ${scores[highest]}`);
    }
    const greedy = this.#options.temperature === 0 || !this.#options.doSample;
    const token = greedy ? highest : this.#draw(scores, scores[highest]);
    if (this.#penalized) this.#seen.add(token);
    return token;
  }

  #penalize(logits: Float32Array): Float64Array {
    const scores = Float64Array.from(logits);
    const penalty = this.#options.repetitionPenalty;
    for (const token of this.#seen) {
      scores[token] = scores[token] < 0 ? scores[token] * penalty : scores[token] / penalty;
    }
    return scores;
  }

  #draw(scores: Scores, highest: number): number {
    const { temperature, topK, topP, minP } = this.#options;
    const u = this.#random.uniform();
    const floor = topK > 0 && topK < scores.length ? kthHighest(scores, topK) : -Infinity;
    let [size, total] = [0, 0];
    for (let i = 0; i < scores.length; i++) {
      if (scores[i] < floor) continue;
      size++;
      total += Math.exp((scores[i] - highest) / temperature);
    }
    const filtered = topP < 1 || minP > 0;
    // The tokens that matter are few: put no more in order than the choice depends on.
    for (let count = 256; ; count *= 16) {
      const everything = count >= size;
      const least = everything ? floor : kthHighest(scores, count);
      const top: number[] = [];
      for (let i = 0; i < scores.length; i++) if (scores[i] >= least) top.push(i);
      top.sort((a, b) => scores[b] - scores[a] || a - b);
      const weights = top.map((token) => Math.exp((scores[token] - highest) / temperature));
      let sum = 0;
      const running = weights.map((weight) => (sum += weight));
      let kept = top.length;
      if (topP < 1) {
        // The first token is preceded by nothing, so one at least is kept.
        const cut = running.findIndex((before) => before >= topP * total);
        if (cut >= 0) kept = Math.min(kept, cut + 1);
      }
      if (minP > 0) {
        // The highest weighs 1, so min_p times the highest probability is weight min_p.
        const cut = weights.findIndex((weight) => weight < minP);
        if (cut >= 0) kept = Math.min(kept, cut);
      }
      // The kept total is known without a filter, or when the cut lies inside `top`.
      const target = u * (filtered || everything ? running[kept - 1] : total);
      if (everything || (filtered ? kept < top.length : sum > target)) {
        return top[running.findIndex((value) => value > target)];
      }
    }
  }
}

/** The first of the highest, or the first NaN. */
function argmax(scores: Scores): number {
  let best = 0;
  for (let i = 0; i < scores.length; i++) {
    if (!(scores[i] <= scores[best])) {
      best = i;
      if (Number.isNaN(scores[i])) break;
    }
  }
  return best;
}

/** The k-th highest score, from a heap of the k highest. */
function kthHighest(scores: Scores, k: number): number {
  const heap = Float64Array.from(scores.subarray(0, k)).sort(); // ascending is a min-heap
  for (let i = k; i < scores.length; i++) {
    const score = scores[i];
    if (!(score > heap[0])) continue;
    let place = 0;
    for (let child = 1; child < k; child = 2 * place + 1) {
      if (child + 1 < k && heap[child + 1] < heap[child]) child++;
      if (heap[child] >= score) break;
      heap[place] = heap[child];
      place = child;
    }
    heap[place] = score;
  }
  return heap[0];
}

/** One nobody can guess: a reply should not tell when it was made. */
function randomSeed(): bigint {
  return crypto.getRandomValues(new BigUint64Array(1))[0];
}
