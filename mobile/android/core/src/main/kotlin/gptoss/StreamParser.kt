package gptoss

/** A piece of a reply: whole characters of one channel. */
data class Event(val channel: String, val text: String)

/**
 * Reads a reply token by token, from behind `<|start|>assistant`.
 *
 * Models leave the format now and then, so no sequence of tokens is an error: a header is read for
 * what it holds, in any order, and text that never becomes a header is content.
 */
class StreamParser(private val tokenizer: Tokenizer) {
    /** Those completed so far. */
    val messages = ArrayList<Message>()
    private val stream = Utf8Stream()
    private val marks: Map<Int, String> =
        (listOf("<|start|>", "<|end|>", CHANNEL, CONSTRAIN, MESSAGE) + STOPS)
            .filter(tokenizer::hasSpecial).associateBy(tokenizer::special)
    private var role = "assistant" // what the next message's author is known to be
    private var header: String? = "" // null while reading content
    private var open = Message("assistant", "")
    private val content = StringBuilder()

    /** What `token` completes: mostly one event or none. */
    fun feed(token: Int): List<Event> {
        val mark = marks[token] ?: return text(stream.feed(tokenizer.bytes(token)))
        var events = text(stream.finish())
        if (header != null && mark in setOf(CHANNEL, CONSTRAIN, MESSAGE)) return events + text(mark)
        if (mark == CONSTRAIN || mark == MESSAGE) return events // amid content they mean nothing
        val author = open.role
        events = events + close()
        if (mark == CHANNEL) { // a message without an end before it: the same author goes on
            role = author
            header = CHANNEL
        }
        return events
    }

    /** What is left when the stream ends. */
    fun finish(): List<Event> = text(stream.finish()) + close()

    private fun text(text: String): List<Event> {
        if (text.isEmpty()) return emptyList()
        if (header == null) {
            content.append(text)
            return listOf(Event(open.channel ?: "final", text))
        }
        val so = header + text
        header = so
        // Also the mark spelled in letters, which models that lost their special tokens write.
        val at = so.indexOf(MESSAGE)
        if (at >= 0) {
            begin(parseHeader(role, so.substring(0, at)))
            return text(so.substring(at + MESSAGE.length))
        }
        return if (so.codePointCount(0, so.length) > LONGEST_HEADER) giveUpHeader() else emptyList()
    }

    private fun begin(message: Message) {
        open = message
        header = null
        content.setLength(0)
    }

    /** The model left the format: what looked like a header is what it said. */
    private fun giveUpHeader(): List<Event> {
        val so = header ?: ""
        val named = NAMED.find(so)
        // A channel that was named still holds: reasoning must not turn into an answer.
        begin(Message("assistant", "", named?.groupValues?.get(1) ?: "final"))
        val said = named?.let { so.substring(it.range.last + 1) } ?: so
        return text(said.replace(CHANNEL, "").replace(CONSTRAIN, ""))
    }

    /** Complete the open message and expect the next one's header. */
    private fun close(): List<Event> {
        var events = emptyList<Event>()
        header?.let { so ->
            val words = so.trim { it in SPACE }
            val message = parseHeader(role, so)
            val at = words.indexOf(CHANNEL)
            // Without its content a header still says what it says, but more words are an answer.
            val named = at >= 0 && words(words.substring(at + CHANNEL.length)).size < 2
            if (message.recipient != null || named) {
                begin(message)
            } else if (words.isNotEmpty() && (role.isNotEmpty() || !"assistant".startsWith(words))) {
                events = giveUpHeader()
            }
        }
        if (header == null) messages += open.copy(content = content.toString())
        role = ""
        header = ""
        return events
    }

    private companion object {
        /** Characters; longer text is a model that left the format. */
        const val LONGEST_HEADER = 256
        val NAMES = CHANNELS.joinToString("|")
        val NAMED = Regex("^[^<]*${Regex.escape(CHANNEL)}($NAMES)\\b")
        const val SPACE = "\t\n\u000b\u000c\r\u001c\u001d\u001e\u001f \u0085\u00a0\u1680\u2000\u2001\u2002" +
            "\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
        val STUCK = Regex("^[$SPACE]*assistant($NAMES)\\b")
        val SPACED = Regex("[$SPACE]*${Regex.escape(CONSTRAIN)}[$SPACE]*")

        fun words(text: String): List<String> = text.split(*SPACE.toCharArray()).filter(String::isNotEmpty)

        /** `[role] [to=name] [<|channel|>name] [to=name] [<|constrain|>type]`; `known` is the role. */
        fun parseHeader(known: String, text: String): Message {
            // A channel whose mark is missing sticks to the role.
            val header = text
                .replace(STUCK) { "assistant$CHANNEL${it.groupValues[1]}" }
                .replace(SPACED, Regex.escapeReplacement(" $CONSTRAIN"))
            var role = known
            var channel: String? = null
            var recipient: String? = null
            var marked = false
            val types = ArrayList<String>()
            for (word in words(header.replace(CHANNEL, " $CHANNEL "))) {
                when {
                    word == CHANNEL -> marked = true
                    word.startsWith("to=") -> recipient = word.removePrefix("to=").ifEmpty { recipient }
                    channel == null && (marked || word in CHANNELS) && !word.startsWith(CONSTRAIN) -> channel = word
                    role.isEmpty() && !marked -> role = word
                    word != role -> types += word
                }
            }
            role = role.ifEmpty { "assistant" }
            // A call is not for the user to read, so without a channel it takes the calls' own.
            if (channel == null && role == "assistant") channel = if (recipient == null) "final" else "commentary"
            return Message(role, "", channel, recipient, types.joinToString(" ").ifEmpty { null })
        }
    }
}
