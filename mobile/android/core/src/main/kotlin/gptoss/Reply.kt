package gptoss

enum class Finish { STOP, TOOL_CALL, LENGTH, CANCELLED }

/** What a model answers: fed tokens it tells events, and all else is whole after `finish`. */
class Reply(tokenizer: Tokenizer, tools: Set<String> = emptySet(), stopIds: Set<Int> = emptySet()) {
    private val parser = StreamParser(tokenizer, tools, stopIds)
    private val answer = StringBuilder()
    private var last: Int? = null // the last message in `answer`
    private val fed = ArrayList<Int>()

    /** The answer: what the final channel says. */
    val text: String get() = "$answer"
    val tokens: List<Int> get() = fed

    /** Why it ended; null before. A call that is complete has no other to answer it than the app. */
    var finish: Finish? = null
        private set

    /** What `token` completes. */
    fun feed(token: Int): List<Event> {
        fed += token
        return tell(parser.feed(token))
    }

    /** What was held back; `reason` is why no more tokens come. */
    fun finish(reason: Finish): List<Event> {
        if (finish != null) return emptyList()
        finish = reason
        val events = tell(parser.finish())
        if (calls.isNotEmpty()) finish = Finish.TOOL_CALL
        return events
    }

    private fun tell(events: List<Event>): List<Event> {
        for (event in events.filter { it.kind == "final" }) {
            if (last != null && last != event.message) answer.append("\n\n")
            answer.append(event.text)
            last = event.message
        }
        return events
    }

    // A model that left the format may speak for others: that is no part of its reply.
    private val said get() = parser.messages.filter { it.role == "assistant" }
    private val complete get() = finish == Finish.STOP || finish == Finish.TOOL_CALL

    /**
     * What to add to the history. Of a reply that was cut, what a reader saw: its reasoning and calls
     * are dropped, so that the next turn starts from a conversation the model knows the form of.
     */
    val messages: List<Message>
        get() = if (complete) said else said.filter {
            it.kind in setOf("commentary", "final") && Header.words(it.content).isNotEmpty()
        }

    /** The calls of a complete reply, in order: `recipient` is the tool, `content` its arguments as the model wrote them. */
    val calls: List<Message> get() = if (complete) said.filter { it.isCall } else emptyList()

    /** Of a reply that was cut: the kind of message it was in, `analysis` while still thinking. Null of a complete one. */
    val cutIn: String? get() = if (complete || finish == null) null else said.lastOrNull()?.kind ?: "analysis"

    /** What a reader must know of a reply that is no whole answer, in one line; null where it is one. */
    val remark: String?
        get() = when {
            finish == Finish.TOOL_CALL -> "the model asked for ${calls.first().recipient}: this app has no tools"
            finish == Finish.LENGTH && cutIn == "analysis" -> "cut while the model was still thinking: start a new chat"
            finish == Finish.LENGTH -> "cut where the chat is full: start a new chat"
            finish == Finish.STOP && text.isEmpty() -> "the model ended without an answer: ask again"
            else -> null
        }
}
