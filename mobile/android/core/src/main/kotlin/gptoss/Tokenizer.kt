package gptoss

import java.io.Reader

/**
 * Byte-level BPE from a package's tokenizer.json. Special tokens are written by id only: text that
 * looks like one is text. UserError says what is wrong with the file.
 *
 * The package's tokenizer.onnx is not used: it needs onnxruntime-extensions 0.14, and 0.13.0 is
 * what is published for phones.
 */
class Tokenizer(input: Reader, vocabSize: Int = Int.MAX_VALUE) {
    private val file = TokenizerFile(Json.members(input), vocabSize)
    private val added = AddedTokens(file.added)
    private val addedById = file.added.associateBy { it.id }
    private val special = file.added.filter { it.special }.associate { it.content to it.id }

    /** Ids of ordinary text. */
    fun encode(text: String): List<Int> {
        val ids = ArrayList<Int>()
        added.split(whole(text), { encodeText(it, ids) }, { ids += it.id })
        return ids
    }

    private fun encodeText(text: String, ids: MutableList<Int>) {
        var done = 0
        fun piece(end: Int) {
            if (done < end) encodePiece(text.substring(done, end).toByteArray(), ids)
            done = end
        }
        val matcher = file.split.matcher(text)
        while (matcher.find()) {
            piece(matcher.start())
            piece(matcher.end())
        }
        piece(text.length)
    }

    private fun encodePiece(bytes: ByteArray, ids: MutableList<Int>) {
        val whole = if (file.wholePieces) file.ids[ByteAlphabet.write(bytes)] else null
        if (whole != null) ids += whole else file.bpe.encode(bytes, ids)
    }

    /** Id of the special token `name`; UserError when there is none. */
    fun special(name: String): Int =
        special[name] ?: throw UserError("cannot chat: the tokenizer has no special token $name")

    fun hasSpecial(name: String): Boolean = name in special

    /** Bytes of one token; none for special tokens and for ids beyond the vocabulary. */
    fun bytes(token: Int): ByteArray {
        val added = addedById[token] ?: return file.bytes(token)
        return if (added.special) ByteArray(0) else added.content.toByteArray()
    }

    /** Text of `tokens`; bytes that are no UTF-8 give U+FFFD. */
    fun decode(tokens: Iterable<Int>): String {
        val stream = Utf8Stream()
        return tokens.joinToString("") { stream.feed(bytes(it)) } + stream.finish()
    }
}

/** Half a surrogate pair is no character. */
internal fun whole(text: String): String {
    val made = StringBuilder(text)
    for (i in made.indices) {
        val char = made[i]
        val paired = when {
            char.isHighSurrogate() -> i + 1 < made.length && made[i + 1].isLowSurrogate()
            char.isLowSurrogate() -> i > 0 && made[i - 1].isHighSurrogate()
            else -> true
        }
        if (!paired) made[i] = '\ufffd'
    }
    return made.toString()
}
