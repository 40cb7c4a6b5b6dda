package gptoss

import java.security.SecureRandom
import java.util.PriorityQueue
import kotlin.math.exp
import kotlin.math.min

/**
 * How tokens are chosen; temperature 0 or `doSample` false is greedy, topK 0, topP 1, minP 0 off.
 * It is all of it, and samples by default: `sampling.copy(repetitionPenalty = 1.1)` of the opened package changes
 * its own, and leaves greedy what is.
 */
data class Sampling(
    val temperature: Double = 1.0,
    val topK: Int = 0,
    val topP: Double = 1.0,
    val minP: Double = 0.0,
    val repetitionPenalty: Double = 1.0,
    val doSample: Boolean = true,
    val seed: ULong? = null,
) {
    init {
        fun require(name: String, value: Any, right: Boolean, wanted: String) {
            if (!right) throw UserError("$name is $value: it must be $wanted")
        }
        require("temperature", temperature, temperature >= 0 && temperature.isFinite(), "0 or more")
        require("topK", topK, topK >= 0, "0 or more")
        require("topP", topP, topP > 0 && topP <= 1, "above 0 and at most 1")
        require("minP", minP, minP in 0.0..1.0, "from 0 to 1")
        val penalty = repetitionPenalty > 0 && repetitionPenalty.isFinite()
        require("repetitionPenalty", repetitionPenalty, penalty, "above 0")
    }
}

/** Steele, Lea and Flood's SplitMix64. */
class SplitMix64(private var state: ULong) {
    fun next(): ULong {
        state += 0x9E3779B97F4A7C15u
        var z = state
        z = (z xor (z shr 30)) * 0xBF58476D1CE4E5B9u
        z = (z xor (z shr 27)) * 0x94D049BB133111EBu
        return z xor (z shr 31)
    }

    /** A double in [0, 1): the upper 53 of 64 bits, times 2^-53. */
    fun uniform(): Double = (next() shr 11).toDouble() / (1L shl 53).toDouble()
}

/** Draws one sequence's tokens, id for id as every runtime of these packages (tests/vectors). */
class Sampler(private val options: Sampling, prompt: Iterable<Int>) {
    private val random = SplitMix64(options.seed ?: SecureRandom().nextLong().toULong())
    private val penalized = options.repetitionPenalty != 1.0
    private val seen = if (penalized) prompt.toMutableSet() else mutableSetOf()

    /** The token that follows. IllegalStateException for NaN logits. */
    fun next(logits: FloatArray): Int {
        val scores = DoubleArray(logits.size) { logits[it].toDouble() }
        if (penalized) {
            val penalty = options.repetitionPenalty
            for (token in seen) scores[token] = scores[token].let { if (it < 0) it * penalty else it / penalty }
        }
        var highest = 0
        for (i in scores.indices) {
            if (scores[i].isNaN() || scores[i] > scores[highest]) highest = i
            if (scores[i].isNaN()) break
        }
        check(scores[highest].isFinite()) { "the model's logits are broken: token $highest has ${scores[highest]}" }
        val greedy = options.temperature == 0.0 || !options.doSample
        val token = if (greedy) highest else draw(scores, scores[highest])
        if (penalized) seen += token
        return token
    }

    private fun draw(scores: DoubleArray, highest: Double): Int {
        val u = random.uniform()
        fun weight(token: Int) = exp((scores[token] - highest) / options.temperature)
        val floor = if (options.topK in 1 until scores.size) kthHighest(scores, options.topK) else Double.NEGATIVE_INFINITY
        var size = 0
        var total = 0.0
        for (i in scores.indices) {
            if (scores[i] < floor) continue
            size++
            total += weight(i)
        }
        val filtered = options.topP < 1 || options.minP > 0
        // The tokens that matter are few: put no more in order than the choice depends on.
        var count = 256
        while (true) {
            val everything = count >= size
            val least = if (everything) floor else kthHighest(scores, count)
            val top = scores.indices.filter { scores[it] >= least }
                .sortedWith { a, b -> scores[b].compareTo(scores[a]).let { if (it != 0) it else a - b } }
            val running = DoubleArray(top.size)
            var sum = 0.0
            var kept = top.size
            for (i in top.indices) {
                val weight = weight(top[i])
                if (options.topP < 1 && sum >= options.topP * total) kept = min(kept, i)
                if (options.minP > 0 && weight < options.minP) kept = min(kept, i)
                sum += weight
                running[i] = sum
            }
            // The kept total is known without a filter, or when the cut lies inside `top`.
            val target = u * (if (filtered || everything) running[kept - 1] else total)
            if (everything || (if (filtered) kept < top.size else sum > target)) {
                return top[running.indexOfFirst { it > target }]
            }
            count *= 16
        }
    }

    private fun kthHighest(scores: DoubleArray, k: Int): Double {
        val highest = PriorityQueue<Double>(k) // the lowest of them first
        for (score in scores) {
            if (highest.size < k) {
                highest += score
            } else if (score > highest.peek()) {
                highest.poll()
                highest += score
            }
        }
        return highest.peek()
    }
}
