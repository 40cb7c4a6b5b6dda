package gptoss

import java.io.Reader
import java.util.regex.Pattern

/**
 * Byte-level BPE from a package's tokenizer.json. Special tokens are written by id only: text that
 * looks like one is text.
 *
 * The package's tokenizer.onnx is not used: it needs onnxruntime-extensions 0.14, and 0.13.0 is
 * what is published for phones.
 */
class Tokenizer(input: Reader) {
    private val ids: Map<String, Int>
    private val pieces: Array<String?>
    private val special: Map<String, Int>
    private val specialIds: Set<Int>
    private val split: Pattern
    private val merges = HashMap<Long, Long>() // (left, right) -> (rank, merged)

    init {
        val content = Json.members(input)
        val model = content.child("model")
        ids = model.child("vocab").mapValues { (it.value as Number).toInt() }
        special = content.children("added_tokens").associate { it.text("content") to it.whole("id") }
        specialIds = special.values.toSet()
        pieces = arrayOfNulls((ids.values.maxOrNull() ?: -1) + 1)
        for ((piece, id) in ids) pieces[id] = piece
        val steps = content.child("pre_tokenizer").children("pretokenizers")
        val pattern = steps.firstOrNull() ?: throw UserError("the tokenizer does not split its text")
        split = Pattern.compile(portable(pattern.child("pattern").text("Regex")))
        fun id(piece: String) = ids[piece] ?: throw UserError("the tokenizer merges what is no token: $piece")
        (model["merges"] as? List<*>).orEmpty().forEachIndexed { rank, pair ->
            val (left, right) = (pair as? List<*> ?: "$pair".split(" ", limit = 2)).map { "$it" }
            merges[key(id(left), id(right))] = key(rank, id(left + right))
        }
    }

    /** Ids of ordinary text. */
    fun encode(text: String): List<Int> {
        val found = ArrayList<Int>()
        val matcher = split.matcher(whole(text))
        while (matcher.find()) if (matcher.end() > matcher.start()) merge(matcher.group(), found)
        return found
    }

    private fun merge(word: String, found: MutableList<Int>) {
        val parts = word.toByteArray().mapTo(ArrayList()) { ids.getValue("${ALPHABET[it.toInt() and 255]}") }
        while (parts.size > 1) {
            var best = Long.MAX_VALUE
            var place = -1
            for (i in 0 until parts.size - 1) {
                val merged = merges[key(parts[i], parts[i + 1])] ?: continue
                if (merged < best) {
                    best = merged
                    place = i
                }
            }
            if (place < 0) break
            parts[place] = best.toInt()
            parts.removeAt(place + 1)
        }
        found += parts
    }

    /** Id of the special token `name`; UserError when there is none. */
    fun special(name: String): Int =
        special[name] ?: throw UserError("cannot chat: the tokenizer has no special token $name")

    fun hasSpecial(name: String): Boolean = name in special

    /** Bytes of one token; none for special tokens and for ids beyond the vocabulary. */
    fun bytes(token: Int): ByteArray {
        val piece = if (token in specialIds) null else pieces.getOrNull(token)
        return piece?.let { text -> ByteArray(text.length) { BYTES.getValue(text[it]) } } ?: ByteArray(0)
    }

    /** Text of `tokens`; bytes that are no UTF-8 give U+FFFD. */
    fun decode(tokens: Iterable<Int>): String {
        val stream = Utf8Stream()
        return tokens.joinToString("") { stream.feed(bytes(it)) } + stream.finish()
    }

    private companion object {
        fun key(high: Int, low: Int): Long = (high.toLong() shl 32) or low.toLong()

        /** The characters byte-level BPE writes bytes as: printable ones are themselves (GPT-2). */
        val ALPHABET: CharArray = run {
            var shifted = 256
            CharArray(256) {
                val printable = it in 0x21..0x7e || it in 0xa1..0xac || it in 0xae..0xff
                if (printable) it.toChar() else (shifted++).toChar()
            }
        }
        val BYTES: Map<Char, Byte> = ALPHABET.indices.associate { ALPHABET[it] to it.toByte() }

        // White space as Unicode has it: \s differs between Java, Android's ICU and Rust.
        const val SPACES = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"

        /** The pattern with white space spelled out, in brackets and outside of them. */
        fun portable(pattern: String): String {
            val made = StringBuilder()
            var bracketed = false
            var i = 0
            while (i < pattern.length) {
                val part = if (pattern[i] == '\\') pattern.substring(i, i + 2) else "${pattern[i]}"
                i += part.length
                if (part == "[") bracketed = true
                if (part == "]") bracketed = false
                made.append(
                    when {
                        part == "\\s" -> if (bracketed) SPACES else "[$SPACES]"
                        part == "\\S" && !bracketed -> "[^$SPACES]"
                        else -> part
                    },
                )
            }
            return made.toString()
        }

        /** Half a surrogate pair is no character. */
        fun whole(text: String): String {
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
    }
}
