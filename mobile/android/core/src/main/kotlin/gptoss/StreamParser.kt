package gptoss

/** A piece of a reply: whole characters of one message, and what they are. */
data class Event(
    /** `analysis`, `commentary`, `final`, or `call` on any channel. */
    val kind: String,
    val text: String,
    /** Pieces of one message have the same number, counted from 0 in a reply. */
    val message: Int,
    /** The tool that a call is for: `text` is of its arguments. */
    val recipient: String? = null,
)

/**
 * Reads a reply token by token, from behind `<|start|>assistant`.
 *
 * Models leave the format now and then, so no sequence of tokens is an error:
 *
 * - a header is read for what it holds, in any order ([Header]);
 * - a tool named without `to=` is called by a message that ends in `<|call|>`;
 * - arguments without `<|message|>` begin at the first brace; without any there is no call;
 * - text behind `<|channel|>` that names no channel is an answer only as the reply's last message;
 * - what is written in another's name is a message of theirs and no event.
 *
 * What cannot be told yet is held back until its message ends. `tools` are the names of those that
 * the model may call. Tokens of `stopIds` that are no marks of harmony's end the reply as its own do.
 */
class StreamParser(private val tokenizer: Tokenizer, private val tools: Set<String> = emptySet(), stopIds: Set<Int> = emptySet()) {
    /** Those completed so far. */
    val messages = ArrayList<Message>()
    private val stream = Utf8Stream()
    private val marks: Map<Int, String> = stopIds.associateWith { STOPS.first() } +
        (listOf("<|start|>", "<|end|>", CHANNEL, CONSTRAIN, MESSAGE) + STOPS)
            .filter(tokenizer::hasSpecial).associateBy(tokenizer::special)
    private var role = "assistant" // what the next message's author is known to be
    private var header: StringBuilder? = StringBuilder() // null while reading content
    private var heldHeader = false // beyond its longest
    private var open = Header.of("final")
    private val content = StringBuilder()
    private var told = 0 // how much of the content events told
    private var count = 0 // the assistant's messages
    private var answered = false

    /** What `token` completes: mostly one event or none. */
    fun feed(token: Int): List<Event> {
        val mark = marks[token] ?: return text(stream.feed(tokenizer.bytes(token)))
        val events = text(stream.finish())
        if (header != null && mark in setOf(CHANNEL, CONSTRAIN, MESSAGE)) return events + text(mark)
        if (mark == CONSTRAIN || mark == MESSAGE) return events // amid content they mean nothing
        val author = open.message.role
        val closed = close(mark)
        if (mark == CHANNEL) { // a message without an end before it: the same author goes on
            role = author
            header = StringBuilder(CHANNEL)
        }
        return events + closed
    }

    /** What is left when the stream ends. */
    fun finish(): List<Event> = text(stream.finish()) + close(null)

    private fun text(text: String): List<Event> {
        if (text.isEmpty()) return emptyList()
        val so = header ?: return say(text)
        val known = so.length
        so.append(text)
        // Also the mark spelled in letters, which models that lost their special tokens write.
        val end = so.indexOf(MESSAGE, maxOf(0, known - MESSAGE.length))
        if (end >= 0) {
            begin(read(so.substring(0, end)))
            return say(so.substring(end + MESSAGE.length))
        }
        val brace = so.indexOf("{")
        if (brace >= known) { // the first
            val found = read(so.substring(0, brace))
            if (found.clean && takesJson(found.message)) {
                begin(found)
                return say(so.substring(brace))
            }
            heldHeader = found.clean && found.tool != null
        }
        if (heldHeader || so.codePointCount(0, so.length) <= LONGEST_HEADER) return emptyList()
        val (channel, said) = Header.withoutContent("$so", role)
        if (channel == null || read("$so").message.recipient != null || byAnother("$so", false)) {
            heldHeader = true
            return emptyList()
        }
        begin(Header.of(channel.ifEmpty { "final" }))
        return say(said)
    }

    private fun read(header: String) = Header.read(header, role, tools)

    private fun begin(found: Header) {
        open = found
        header = null
        content.setLength(0)
        told = 0
    }

    private fun say(text: String): List<Event> {
        content.append(text)
        return if (open.tool != null || open.unnamed) emptyList() else tell(open.message)
    }

    private fun tell(message: Message): List<Event> {
        val text = content.substring(told)
        // Arguments that never come are no call: none begins before they do.
        val waits = message.isCall && told == 0 && isBlank(text)
        if (text.isEmpty() || waits || message.role != "assistant") return emptyList()
        told = content.length
        return listOf(Event(message.kind, text, count, message.recipient))
    }

    /** Completes the open message, by `mark` or where the reply was cut; expects a header. */
    private fun close(mark: String?): List<Event> {
        var events = header?.let { closeHeader(mark, "$it") } ?: emptyList()
        if (header == null) events = events + complete(mark)
        role = ""
        header = StringBuilder()
        heldHeader = false
        return events
    }

    /** Begins the message of a header that ended without `<|message|>`, if it says anything. */
    private fun closeHeader(mark: String?, so: String): List<Event> {
        val cut = mark == null
        val brace = so.indexOf('{')
        if (brace >= 0 && (mark == CALL || cut)) {
            val found = read(so.substring(0, brace))
            if (found.clean && found.tool != null) {
                begin(found)
                return say(so.substring(brace))
            }
        }
        // Without arguments there is no call.
        if (read(so).message.recipient != null || byAnother(so, cut)) return emptyList()
        val (named, said) = Header.withoutContent(so, role)
        val size = Header.words(said).size
        if (size == 0 || cut && named != "" && size == 1) return emptyList() // at most a header's beginning
        val answer = !answered && (mark in ANSWER_ENDS || cut && named == "")
        if (named == null && !answer && size == 1) return emptyList()
        begin(Header.of(if (!named.isNullOrEmpty()) named else if (answer) "final" else "analysis"))
        return say(said)
    }

    /** Whether a header without content begins with the name of another than the assistant. */
    private fun byAnother(so: String, cut: Boolean): Boolean {
        val first = Header.words(so.replace(CHANNEL, " ")).firstOrNull()
        if (role.isNotEmpty() || first == null) return false
        if (first in OTHERS || Header.namesTool(first, tools)) return true
        return cut && first != "assistant" && (OTHERS + "assistant").any { it.startsWith(first) }
    }

    private fun complete(mark: String?): List<Event> {
        var message = open.message.copy(content = "$content")
        // Where the reply was cut, it was on its way to be a call, unless a tool seems to speak.
        val called = mark == CALL || mark == null && message.role == "assistant"
        if (open.tool != null && called) {
            val channel = message.channel.takeIf { it != "final" } ?: "commentary"
            message = message.copy(role = "assistant", recipient = open.tool, channel = channel)
        } else if (open.unnamed && !message.isCall && message.role == "assistant") {
            message = message.copy(channel = if (mark in ANSWER_ENDS && !answered) "final" else "analysis")
        }
        if (message.isCall && isBlank(message.content)) return emptyList()
        val events = tell(message)
        messages += message
        if (message.role == "assistant") {
            count++
            answered = answered || message.channel == "final" && Header.words(message.content).isNotEmpty()
        }
        return events
    }

    private companion object {
        // Longer text that names the answer's or reasoning's channel, or none, is passed on as it
        // comes instead of being held back for ever. Characters.
        const val LONGEST_HEADER = 256
        const val CALL = "<|call|>"
        val ANSWER_ENDS = setOf("<|return|>", "<|endoftext|>")
        val OTHERS = setOf("user", "system", "developer", "tool")

        // Tools that take text as it stands, no JSON object.
        val TEXT_TOOLS = setOf("python")

        fun takesJson(message: Message) = message.isCall && message.recipient !in TEXT_TOOLS

        /** All of it JSON's white space. */
        fun isBlank(text: String) = text.all { it in " \t\n\r" }
    }
}
