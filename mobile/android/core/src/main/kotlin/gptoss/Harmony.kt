package gptoss

/**
 * One message. A tool's result has the tool's name as role (`functions.weather`). A call names its
 * tool behind the channel, as models write it, or before it: `recipientInRole`.
 */
data class Message(
    val role: String,
    val content: String,
    val channel: String? = null,
    val recipient: String? = null,
    val contentType: String? = null,
    val recipientInRole: Boolean = false,
) {
    val isCall: Boolean get() = role == "assistant" && recipient !in NO_TOOLS

    /** `analysis`, `commentary`, `final`, or `call` on any channel. */
    val kind: String get() = if (isCall) "call" else channel ?: "final"
}

internal val CHANNELS = listOf("analysis", "commentary", "final")

/** What the system message says; null leaves that line out. `date` is ISO 8601. */
data class SystemPrompt(
    val date: String?,
    val reasoning: String? = "medium",
    val identity: String? = "You are ChatGPT, a large language model trained by OpenAI.",
    val knowledgeCutoff: String? = "2024-06",
    val channels: List<String> = CHANNELS,
) {
    fun text(): String {
        val top = listOfNotNull(identity, knowledgeCutoff?.let { "Knowledge cutoff: $it" }, date?.let { "Current date: $it" })
        val must = "# Valid channels: ${channels.joinToString(", ")}. Channel must be included for every message."
        val head = if (top.isEmpty()) null else top.joinToString("\n")
        return listOfNotNull(head, reasoning?.let { "Reasoning: $it" }, must.takeIf { channels.isNotEmpty() }).joinToString("\n\n")
    }
}

internal const val CHANNEL = "<|channel|>"
internal const val CONSTRAIN = "<|constrain|>"
internal const val MESSAGE = "<|message|>"
internal val STOPS = listOf("<|return|>", "<|call|>", "<|endoftext|>")

/** The namespace of an application's own tools. */
internal const val FUNCTIONS = "functions."

// Those a message can be meant for without being a call.
private val NO_TOOLS = setOf(null, "all", "assistant", "user")
private val SPEAKERS = setOf("system", "developer", "user", "assistant") // every other role is a tool

/** Which of the names in `called` is meant by `name`: itself, or with or without `functions.` */
internal fun calledName(name: String, called: Collection<String>): String? =
    listOf(name, FUNCTIONS + name, name.removePrefix(FUNCTIONS)).firstOrNull { it in called }

/** Conversations to token ids. What a user typed is text, and can never open a message. */
class Harmony(private val tokenizer: Tokenizer) {
    val stopIds: Set<Int> = STOPS.filter(tokenizer::hasSpecial).map(tokenizer::special).toSet()

    /**
     * Ids of a conversation, with the assistant's turn opened at the end when `reply`.
     * `autoDropAnalysis`: the reasoning of answered turns is left out, as the format says.
     */
    fun render(
        messages: List<Message>,
        system: SystemPrompt?,
        instructions: String? = null,
        autoDropAnalysis: Boolean = true,
        reply: Boolean = true,
    ): List<Int> {
        val head = listOfNotNull(
            system?.let { Message("system", it.text()) },
            instructions?.let { Message("developer", "# Instructions\n\n$it") },
        )
        val ids = (head + shown(messages, autoDropAnalysis)).flatMap(::render)
        return if (reply) ids + tokenizer.special("<|start|>") + tokenizer.encode("assistant") else ids
    }

    private fun render(message: Message): List<Int> = buildList {
        add(tokenizer.special("<|start|>"))
        addAll(tokenizer.encode(message.role))
        val named = message.recipient != null && message.recipient != "all"
        val recipient = if (named) tokenizer.encode(" to=${message.recipient}") else emptyList()
        val inRole = message.channel == null || message.role != "assistant" || message.recipientInRole
        if (inRole) addAll(recipient)
        message.channel?.let {
            add(tokenizer.special(CHANNEL))
            addAll(tokenizer.encode(it))
        }
        if (!inRole) addAll(recipient)
        message.contentType?.let {
            if (it.startsWith(CONSTRAIN)) {
                addAll(tokenizer.encode(" "))
                add(tokenizer.special(CONSTRAIN))
                addAll(tokenizer.encode(it.removePrefix(CONSTRAIN)))
            } else {
                addAll(tokenizer.encode(" $it"))
            }
        }
        add(tokenizer.special(MESSAGE))
        addAll(tokenizer.encode(message.content))
        // History is what was said, not where sampling stopped: a stored <|return|> becomes <|end|>.
        val calls = message.role == "assistant" && message.recipient != null
        add(tokenizer.special(if (calls) "<|call|>" else "<|end|>"))
    }

    /**
     * What of a history the model is shown, with no call or result that lacks the other.
     *
     * The reasoning of answered turns is dropped if `autoDropAnalysis`, that of a turn still calling
     * tools stays. Calls stay with their results, on any channel; a call that had none when the user
     * spoke again is dropped. A result takes the name its call was made by.
     */
    private fun shown(messages: List<Message>, autoDropAnalysis: Boolean): List<Message> {
        val last = if (!autoDropAnalysis) -1 else messages.indexOfLast { it.role == "assistant" && it.channel == "final" && !it.isCall }
        val shown = ArrayList<Message>()
        val waiting = ArrayList<Pair<Int, String>>() // calls without a result: place in `shown`, tool's name
        val dropped = HashSet<Int>()
        for ((place, message) in messages.withIndex()) {
            if (message.role == "assistant" && message.kind == "analysis" && place < last) continue
            var said = message
            if (message.isCall) {
                waiting += shown.size to message.recipient.orEmpty()
            } else if (message.role == "user") {
                dropped += waiting.map { it.first }
                waiting.clear()
            } else if (message.role !in SPEAKERS) {
                calledName(message.role, waiting.map { it.second })?.let { name ->
                    waiting.removeAt(waiting.indexOfFirst { it.second == name })
                    said = message.copy(role = name)
                }
            }
            shown += said
        }
        return shown.filterIndexed { place, _ -> place !in dropped }
    }
}
