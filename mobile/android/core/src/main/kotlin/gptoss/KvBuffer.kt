package gptoss

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * A layer's keys or values [1, kvHeads, rows, headDim]: one tensor is past and present, so a run writes
 * in place. It holds `maxLength` tokens, or a layer's window and a quarter more: attention reads every
 * row at each step, while moving the window back to the start is paid once in rows - window + 1 tokens.
 */
internal class KvBuffer(val name: String, private val window: Int?, maxLength: Int, manifest: Manifest) : AutoCloseable {
    private val heads = manifest.kvHeads
    private val rows = window?.let { it * 5 / 4 } ?: maxLength
    private val rowBytes = manifest.headDim * if (manifest.int8Kv) 1 else 4
    private val bytes: ByteBuffer = ByteBuffer.allocateDirect(heads * rows * rowBytes).order(ByteOrder.nativeOrder())
    val windowed = window != null
    val tensor: OnnxTensor = OrtEnvironment.getEnvironment().let {
        val shape = longArrayOf(1, heads.toLong(), rows.toLong(), manifest.headDim.toLong())
        if (manifest.int8Kv) OnnxTensor.createTensor(it, bytes, shape, OnnxJavaType.INT8)
        else OnnxTensor.createTensor(it, bytes.asFloatBuffer(), shape)
    }

    /** Position that row 0 holds after `length` tokens. */
    fun firstPosition(length: Int): Int {
        if (window == null || length <= rows) return 0
        val evicted = rows - window + 1 // at a time
        return (length - rows + evicted - 1) / evicted * evicted
    }

    /** A copy of each head's rows [kvHeads, used, headDim] after `length` tokens. */
    fun read(length: Int): ByteArray {
        val used = (length - firstPosition(length)) * rowBytes
        val copy = ByteArray(heads * used)
        for (head in 0 until heads) at(head).get(copy, head * used, used)
        return copy
    }

    fun write(copy: ByteArray) {
        val used = copy.size / heads
        for (head in 0 until heads) at(head).put(copy, head * used, used)
    }

    private fun at(head: Int): ByteBuffer = bytes.duplicate().apply { position(head * rows * rowBytes) }

    override fun close() = tensor.close()
}
