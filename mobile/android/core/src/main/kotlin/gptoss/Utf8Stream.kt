package gptoss

import java.nio.ByteBuffer
import java.nio.CharBuffer
import java.nio.charset.CodingErrorAction

/** Bytes to text as they come, holding back those of an unfinished character. */
class Utf8Stream {
    private val decoder = Charsets.UTF_8.newDecoder()
        .onMalformedInput(CodingErrorAction.REPLACE)
        .onUnmappableCharacter(CodingErrorAction.REPLACE)
    private var held = ByteArray(0)

    /** The whole characters that `bytes` complete. */
    fun feed(bytes: ByteArray): String = decode(bytes, false)

    /** What is left: U+FFFD for an unfinished character. The stream can be used again. */
    fun finish(): String = decode(ByteArray(0), true)

    private fun decode(bytes: ByteArray, end: Boolean): String {
        val input = ByteBuffer.wrap(held + bytes)
        val output = CharBuffer.allocate(input.remaining() + 1)
        decoder.reset()
        decoder.decode(input, output, end)
        if (end) decoder.flush(output)
        held = ByteArray(input.remaining()).also { input.get(it) }
        output.flip()
        return output.toString()
    }
}
