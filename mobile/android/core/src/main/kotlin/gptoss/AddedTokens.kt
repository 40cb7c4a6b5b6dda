package gptoss

/** A token that a tokenizer.json adds to its vocabulary. A special one is written by id only: in a text it is characters. */
internal class AddedToken(val id: Int, val content: String, private val flags: Set<String>) {
    val special = "special" in flags
    val normalized = "normalized" in flags
    val singleWord = "single_word" in flags
    val lstrip = "lstrip" in flags
    val rstrip = "rstrip" in flags
}

/** Splits a text at its added tokens, as the tokenizers library does. */
internal class AddedTokens(tokens: List<AddedToken>) {
    // Those that ask for normalized text are looked for in what the others leave. Special ones are
    // found too and stay text: no other token begins inside of them. Of several, the longest.
    private val passes = listOf(false, true)
        .map { after -> tokens.filter { it.normalized == after } }
        .filter { some -> some.any { !it.special } }
        .map { some -> some.sortedByDescending { it.content.length }.groupBy { it.content[0] } }

    /** Gives texts between tokens to `text`, and tokens to `token`, in their order. */
    fun split(whole: String, text: (String) -> Unit, token: (AddedToken) -> Unit) = split(0, whole, text, token)

    private fun split(pass: Int, whole: String, text: (String) -> Unit, token: (AddedToken) -> Unit) {
        val tokens = passes.getOrNull(pass) ?: return text(whole)
        fun between(from: Int, to: Int) {
            if (from < to) split(pass + 1, whole.substring(from, to), text, token)
        }
        var done = 0
        var at = 0
        while (at < whole.length) {
            val found = tokens[whole[at]]?.firstOrNull { whole.startsWith(it.content, at) }
            var start = at
            at += found?.content?.length ?: 1
            if (found == null || found.special) continue
            if (found.singleWord && (endsInWord(whole, start) || beginsInWord(whole, at))) continue
            if (found.lstrip) while (start > done && isSpace(whole[start - 1])) start--
            if (found.rstrip) while (at < whole.length && isSpace(whole[at])) at++
            between(done, start)
            token(found)
            done = at
        }
        between(done, whole.length)
    }

    companion object {
        private val FLAGS = listOf("special", "single_word", "lstrip", "rstrip", "normalized")

        /** The entries of `added_tokens`; UserError where one is not as tokenizers write them. */
        fun read(entries: Any?): List<AddedToken> {
            if (entries !is List<*>?) throw UserError("added_tokens is no list")
            return entries.orEmpty().mapIndexed { number, entry ->
                val members = entry as? Map<*, *>
                val content = members?.get("content") as? String
                if (content.isNullOrEmpty() || FLAGS.any { members[it] !is Boolean } || whole(content) != content) {
                    throw UserError("added_tokens[$number] is no token")
                }
                val id = tokenId(members["id"]) ?: throw UserError("added_tokens[$number] has the id ${shown(members["id"])}")
                AddedToken(id, content, FLAGS.filter { members[it] == true }.toSet())
            }
        }

        // Letters as Rust's regular expressions have them, and Unicode.
        private fun isWord(char: Int) = Character.isAlphabetic(char) || char == 0x200c || char == 0x200d ||
            when (Character.getType(char).toByte()) {
                Character.NON_SPACING_MARK, Character.ENCLOSING_MARK, Character.COMBINING_SPACING_MARK,
                Character.DECIMAL_DIGIT_NUMBER, Character.CONNECTOR_PUNCTUATION,
                -> true
                else -> false
            }

        private fun endsInWord(text: String, end: Int) = end > 0 && isWord(text.codePointBefore(end))
        private fun beginsInWord(text: String, start: Int) = start < text.length && isWord(text.codePointAt(start))
    }
}
