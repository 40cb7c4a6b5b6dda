package gptoss

/**
 * A message's header as a model wrote it, and what it was understood to be.
 *
 * `[role] [to=name] [<|channel|>name] [to=name] [<|constrain|>type]`, in any order, with words too
 * many or too few. `message` is clean and without its content: no mark stays in a name as letters.
 * `tool` is named without `to=`: a call if the message ends as one. `unnamed` is a channel that the
 * format does not have. `clean`: nothing else stands in the header.
 */
internal class Header(val message: Message, val tool: String? = null, val unnamed: Boolean = false, val clean: Boolean = true) {
    companion object {
        /** Reads `text`; `known` is its author where one is known, else empty, `tools` the known tools' names. */
        fun read(text: String, known: String, tools: Collection<String>): Header {
            // A channel whose mark is missing sticks to the role.
            val header = STUCK_CHANNEL.replace(text) { "assistant$CHANNEL${it.groupValues[1]}" }
                .replace(SPACED_CONSTRAIN, Regex.escapeReplacement(" $CONSTRAIN"))
            var role = known
            var channel: String? = null
            var recipient: String? = null
            var inRole = false
            var marked = false
            var more = ArrayList<String>() // beyond role, channel and recipient
            val types = ArrayList<String>() // behind <|constrain|>
            for (word in words(header.replace(CHANNEL, " $CHANNEL "))) {
                when {
                    word == CHANNEL -> marked = true
                    word.startsWith("to=") -> nameIn(word.removePrefix("to=")).let {
                        if (it.isNotEmpty()) {
                            recipient = it
                            inRole = !marked
                        }
                    }
                    word.startsWith(CONSTRAIN) -> if (TYPE.matches(word)) types += word
                    word in CHANNELS && !(marked && more.isNotEmpty()) -> channel = channel ?: word
                    role.isEmpty() && !marked -> role = nameIn(word)
                    word != role -> more += word
                }
            }
            role = role.ifEmpty { "assistant" }
            val tool = if (recipient != null) null else (listOf(role) + more).map(::nameIn).firstOrNull { namesTool(it, tools) }
            more = more.filterTo(ArrayList()) { tool == null || nameIn(it) != tool }
            val unnamed = channel == null && marked && (more.isNotEmpty() || tool != null)
            // Behind its mark, or the only word: several are text.
            val type = (types.firstOrNull() ?: more.singleOrNull()?.takeUnless { unnamed })?.takeIf(TYPE::matches)
            val clean = more.all { it == type }
            var message = Message(role, "", channel, recipient, type)
            if (message.isCall) { // not for the user to read
                message = message.copy(channel = channel.takeIf { it != "final" } ?: "commentary", recipientInRole = inRole)
            } else if (role == "assistant") {
                message = message.copy(channel = channel ?: "final", recipient = null)
            }
            return Header(message, tool, unnamed, clean)
        }

        /** The header of text that has none. */
        fun of(channel: String) = Header(Message("assistant", "", channel))

        /**
         * Of a header that no content followed: the channel it names, and what else it says. The
         * channel is null where it names one that the format does not have, "" where it names none.
         */
        fun withoutContent(text: String, role: String): Pair<String?, String> {
            val named = NAMED_CHANNEL.find(text)
            val channel = if (named != null) named.groupValues[1] else if (CHANNEL in text) null else ""
            var said = if (named != null) text.substring(named.range.last + 1) else text
            if (role.isEmpty()) said = said.replaceFirst(ROLE, "")
            said = said.replaceFirst(LEADING_TYPE, "")
            return channel to said.replace(CHANNEL, "").replace(CONSTRAIN, "")
        }

        /** Whether `word` is a tool's name: in the namespace of functions, or that of a known one. */
        fun namesTool(word: String, tools: Collection<String>): Boolean =
            word.startsWith(FUNCTIONS) && word != FUNCTIONS || calledName(word, tools) != null

        fun words(text: String): List<String> = text.split(BETWEEN_WORDS).filter(String::isNotEmpty)

        /** Without what sticks to a name: marks in letters, arguments. */
        private fun nameIn(word: String) = word.substringBefore("<|").substringBefore("{")

        // White space and the ends of words as Python has them; \s and \b differ between Java, Android and Swift.
        private const val SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]"
        private val BETWEEN_WORDS = Regex("$SPACE+")
        private const val WORD_END = "(?![\\p{L}\\p{N}_])"
        private const val MARK = "<\\|constrain\\|>"
        private const val TYPE_NAME = "(?:$MARK)?[A-Za-z0-9_.+/-]+"
        private val NAMES = "(${CHANNELS.joinToString("|")})$WORD_END"
        private val TYPE = Regex(TYPE_NAME)
        private val STUCK_CHANNEL = Regex("^$SPACE*assistant$NAMES")
        private val SPACED_CONSTRAIN = Regex("$SPACE*$MARK$SPACE*")
        private val NAMED_CHANNEL = Regex("^[^<]*<\\|channel\\|>$NAMES")
        private val ROLE = Regex("^$SPACE*assistant$WORD_END")
        // One that JSON follows, or one behind its mark.
        private val LEADING_TYPE = Regex("^$SPACE*(?:$MARK$SPACE*$TYPE_NAME|json(?=$SPACE*\\{))")
    }
}
