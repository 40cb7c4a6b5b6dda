package gptoss

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.LongBuffer

/** Prompt tokens that a run takes: the memory plan counts with as many. */
const val CHUNK = 64

/** How many are kept; the memory plan counts with as many. */
private const val SNAPSHOTS = 4

/** The windowed layers' rows after `length` tokens. */
private class Snapshot(val length: Int, val rows: List<ByteArray>)

/**
 * A graph with its KV cache: the running state of one sequence of at most `maxLength` tokens, which is
 * allocated at once. UserError where the package has no such length. Not for several threads at a time.
 */
class Session(private val graph: OrtSession, private val manifest: Manifest, val maxLength: Int) : AutoCloseable {
    init {
        val most = manifest.contextLength
        if (maxLength !in 2..most) throw UserError("maxLength is $maxLength: it must be from 2 to the package's context length, $most")
    }

    private val environment = OrtEnvironment.getEnvironment()
    private val buffers = manifest.layers.flatMapIndexed { layer, kv ->
        listOf("key", "value").map { KvBuffer("$layer.$it", kv.window, maxLength, manifest) }
    }
    private val windowed = buffers.filter { it.windowed }
    private val fed = ArrayList<Int>()
    private val snapshots = ArrayList<Snapshot>() // by length

    /** For checks: called after the graph has run; what it throws is a run that failed half-way. */
    internal var ran: () -> Unit = {}

    /** Tokens that the KV cache holds. */
    val tokens: List<Int> get() = fed

    /** How many they are. */
    val length: Int get() = fed.size

    /** Tokens at the start that windowed layers no longer have rows of. */
    val evicted: Int get() = windowed.firstOrNull()?.firstPosition(length) ?: 0

    /** Forgets everything; the buffers stay. */
    fun reset() = cut(0)

    /**
     * Feeds tokens; the logits after the last. UserError beyond `maxLength`, for an id outside the
     * vocabulary and for no token: nothing has changed then. When the run fails, what is left is the
     * longest intact prefix.
     */
    fun feed(tokens: List<Int>): FloatArray {
        check(tokens, "the tokens")
        if (tokens.isEmpty()) throw UserError("no token is fed: feed at least one")
        val end = length + tokens.size
        if (end > maxLength) throw UserError("$end tokens are more than the $maxLength there is room for: start a new chat")
        val ids = longs(tokens.size) { tokens[it].toLong() }
        val mask = longs(end) { 1 }
        ids.use {
            mask.use {
                val inputs = HashMap<String, OnnxTensor>()
                inputs["input_ids"] = ids
                inputs["attention_mask"] = mask
                for (buffer in buffers) inputs["past_key_values.${buffer.name}"] = buffer.tensor
                val presents = buffers.associate { "present.${it.name}" to it.tensor }
                try {
                    graph.run(inputs, setOf("logits"), presents).use { result ->
                        ran()
                        val logits = (result.first { it.key == "logits" }.value as OnnxTensor).floatBuffer
                        return FloatArray(manifest.vocabSize).also {
                            logits.position(logits.limit() - it.size)
                            logits.get(it)
                            fed += tokens
                        }
                    }
                } catch (failure: Throwable) {
                    // Nothing was lost unless a windowed layer may have moved its rows.
                    if (!sameRows(end, length)) restore(length)
                    throw failure
                }
            }
        }
    }

    private fun check(ids: List<Int>, what: String) {
        val size = manifest.vocabSize
        val place = ids.indexOfFirst { it !in 0 until size }
        if (place < 0) return
        throw UserError("$what have ${ids[place]} at position $place: the vocabulary has $size tokens, ids from 0 to ${size - 1}")
    }

    private fun longs(size: Int, value: (Int) -> Long): OnnxTensor {
        val buffer: LongBuffer = ByteBuffer.allocateDirect(8 * size).order(ByteOrder.nativeOrder()).asLongBuffer()
        for (i in 0 until size) buffer.put(i, value(i))
        return OnnxTensor.createTensor(environment, buffer, longArrayOf(1, size.toLong()))
    }

    /** Makes the present length one that `rewind` can come back to exactly. */
    fun snapshot() {
        if (windowed.isEmpty()) return
        if (snapshots.size == SNAPSHOTS) { // those stay that spare most tokens from being fed again
            val spared = snapshots.mapIndexed { i, it -> it.length - (snapshots.getOrNull(i - 1)?.length ?: 0) }
            snapshots.removeAt(spared.indexOf(spared.min()))
        }
        snapshots += Snapshot(length, windowed.map { it.read(length) })
    }

    /**
     * Goes back to `length` tokens, or as near below it as can be restored exactly; returns it.
     *
     * Full layers only need the count. A windowed layer's rows are right when none was evicted since,
     * else they come from a snapshot; with neither, nothing is left.
     */
    fun rewind(length: Int): Int {
        require(length in 0..this.length) { "cannot rewind to $length of ${this.length} tokens" }
        if (sameRows(this.length, length)) cut(length) else restore(length)
        return this.length
    }

    /** Whether the windowed rows after `length` tokens begin with those after `shorter`. */
    private fun sameRows(length: Int, shorter: Int) = windowed.all { it.firstPosition(length) == it.firstPosition(shorter) }

    /** Restores the longest prefix of at most `length` tokens that a snapshot holds, or none. */
    private fun restore(length: Int) {
        // A later snapshot serves too when nothing was evicted between the two.
        val fit = snapshots.filter { it.length <= length || sameRows(it.length, length) }
        val best = fit.maxByOrNull { minOf(it.length, length) }
        best?.rows?.zip(windowed) { rows, buffer -> buffer.write(rows) }
        cut(minOf(best?.length ?: 0, length))
    }

    private fun cut(length: Int) {
        fed.subList(length, fed.size).clear()
        snapshots.removeAll { it.length > length }
    }

    /**
     * Keeps what the cache has in common with `prompt`; how many tokens need no feeding. At least one is
     * left to feed: the logits after it are what a reply starts from. UserError as in `feed`.
     */
    fun reuse(prompt: List<Int>): Int {
        check(prompt, "the prompt's tokens")
        return rewind(fed.zip(prompt.dropLast(1)).takeWhile { (cached, new) -> cached == new }.size)
    }

    override fun close() = buffers.forEach { it.close() }
}
