package gptoss

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.LongBuffer

/** Prompt tokens that a run takes: the memory plan counts with as many. */
const val CHUNK = 64

/**
 * A graph with its KV cache, for one sequence of at most `maxLength` tokens.
 *
 * Past and present are one buffer, so a run writes in place. A sliding layer's holds its window and
 * what a chunk adds.
 */
class Session(private val graph: OrtSession, private val manifest: Manifest, val maxLength: Int) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val caches = manifest.layers.flatMapIndexed { layer, kv ->
        listOf("key", "value").map { Cache("$layer.$it", kv.window?.let { w -> w + CHUNK - 1 } ?: maxLength, kv.window != null) }
    }
    private val fed = ArrayList<Int>()
    private var saved: Pair<List<Int>, List<ByteArray>>? = null // of the first of the tokens in `fed`, always

    /** For checks: called after the graph has run; what it throws is a run that failed half-way. */
    internal var ran: () -> Unit = {}

    private inner class Cache(val name: String, val rows: Int, val windowed: Boolean) {
        private val shape = longArrayOf(1, manifest.kvHeads.toLong(), rows.toLong(), manifest.headDim.toLong())
        val bytes: ByteBuffer = ByteBuffer
            .allocateDirect(manifest.kvHeads * rows * manifest.headDim * if (manifest.int8Kv) 1 else 4)
            .order(ByteOrder.nativeOrder())
        val tensor: OnnxTensor =
            if (manifest.int8Kv) OnnxTensor.createTensor(environment, bytes, shape, OnnxJavaType.INT8)
            else OnnxTensor.createTensor(environment, bytes.asFloatBuffer(), shape)

        fun read() = ByteArray(bytes.capacity()).also { bytes.duplicate().apply { rewind() }.get(it) }

        fun write(saved: ByteArray) {
            bytes.duplicate().apply { rewind() }.put(saved)
        }
    }

    /** Tokens in the cache. */
    val length: Int get() = fed.size

    /**
     * Feeds tokens; the logits after the last. UserError beyond `maxLength`, for an id outside the
     * vocabulary and for no token: nothing has changed then. A run that fails leaves `length` tokens.
     */
    fun feed(tokens: List<Int>): FloatArray {
        check(tokens, "the tokens")
        if (tokens.isEmpty()) throw UserError("no token is fed: feed at least one")
        val end = fed.size + tokens.size
        if (end > maxLength) throw UserError("$end tokens are more than the $maxLength there is room for: start a new chat")
        val ids = longs(tokens.size) { tokens[it].toLong() }
        val mask = longs(end) { 1 }
        ids.use {
            mask.use {
                val inputs = HashMap<String, OnnxTensor>()
                inputs["input_ids"] = ids
                inputs["attention_mask"] = mask
                for (cache in caches) inputs["past_key_values.${cache.name}"] = cache.tensor
                val presents = caches.associate { "present.${it.name}" to it.tensor }
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
                    // A sliding layer that had no room for them may have moved its rows.
                    if (caches.any { it.windowed && end > it.rows }) restore()
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

    /** Make the present length one that `reuse` can come back to. */
    fun snapshot() {
        saved = ArrayList(fed) to caches.filter { it.windowed }.map { it.read() }
    }

    /** Back to the snapshot, or to nothing. */
    private fun restore() {
        val (tokens, rows) = saved ?: Pair(emptyList(), emptyList())
        caches.filter { it.windowed }.zip(rows) { cache, bytes -> cache.write(bytes) }
        fed.clear()
        fed += tokens
    }

    /** Keeps what the cache has in common with `prompt`; how many tokens need no feeding. UserError as in `feed`. */
    fun reuse(prompt: List<Int>): Int {
        check(prompt, "the prompt's tokens")
        val most = prompt.size - 1
        fun begins(tokens: List<Int>) = tokens.size <= most && tokens == prompt.subList(0, tokens.size)
        if (!begins(fed)) {
            saved = saved?.takeIf { begins(it.first) } // else full layers' rows are written over
            restore()
        }
        return fed.size
    }

    override fun close() = caches.forEach { it.tensor.close() }
}
