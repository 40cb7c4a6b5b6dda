package gptoss

import java.util.PriorityQueue

private const val NONE = -1

/** Merges of two tokens to a third in flat arrays: as objects, gpt-oss's 446,000 fill a phone's heap. */
internal class Merges(count: Int) {
    private val pairs = LongArray(Integer.highestOneBit(count + 1) shl 2) { NONE.toLong() }
    private val ranks = IntArray(pairs.size) { NONE }
    private val results = IntArray(count)
    private var size = 0

    fun add(left: Int, right: Int, result: Int) {
        val at = find(left, right)
        pairs[at] = pair(left, right)
        ranks[at] = size
        results[size++] = result
    }

    /** The rank of a merge, lower ones first, or -1. */
    fun rank(left: Int, right: Int): Int = ranks[find(left, right)]

    fun result(rank: Int): Int = results[rank]

    /** Where the pair is, or would be. */
    private fun find(left: Int, right: Int): Int {
        val pair = pair(left, right)
        val mixed = pair * -0x61c8864680b583ebL // 2^64 / golden ratio
        var at = (mixed ushr 32).toInt() and (pairs.size - 1)
        while (pairs[at] != pair && pairs[at] >= 0) at = (at + 1) and (pairs.size - 1)
        return at
    }
}

private fun pair(high: Int, low: Int): Long = (high.toLong() shl 32) or low.toLong()

/** Byte pair encoding of one piece of text, in n log n. `tokens` are the ids of the 256 bytes, or -1. */
internal class Bpe(private val tokens: IntArray, private val merges: Merges) {
    /** Append the ids of `bytes`: the earliest merge first, of equal ones the leftmost. */
    fun encode(bytes: ByteArray, ids: MutableList<Int>) {
        val parts = IntArray(bytes.size) { tokens[bytes[it].toInt() and 255] }.filter { it >= 0 }.toIntArray()
        val count = parts.size
        val next = IntArray(count) { it + 1 }
        val previous = IntArray(count) { it - 1 }
        val offers = PriorityQueue<Long>()
        fun offer(place: Int) {
            if (place < 0 || next[place] >= count) return
            val rank = merges.rank(parts[place], parts[next[place]])
            if (rank >= 0) offers += pair(rank, place)
        }
        for (place in 0 until count) offer(place)
        while (true) {
            val least = offers.poll() ?: break
            val (rank, place) = Pair((least shr 32).toInt(), least.toInt())
            val right = next[place]
            // A pair that has merged with a neighbour since is another pair.
            if (parts[place] == NONE || right >= count || merges.rank(parts[place], parts[right]) != rank) continue
            parts[place] = merges.result(rank)
            parts[right] = NONE
            next[place] = next[right]
            if (next[right] < count) previous[next[right]] = place
            offer(place)
            offer(previous[place])
        }
        var place = 0
        while (place < count) {
            ids += parts[place]
            place = next[place]
        }
    }
}
