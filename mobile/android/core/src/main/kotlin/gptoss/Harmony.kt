package gptoss

/** One message. A tool's result has the tool's name as role (`functions.weather`). */
data class Message(
    val role: String,
    val content: String,
    val channel: String? = null,
    val recipient: String? = null,
    val contentType: String? = null,
)

/** What the system message says. `date` is ISO 8601. */
data class SystemPrompt(
    val date: String,
    val reasoning: String = "medium",
    val identity: String = "You are ChatGPT, a large language model trained by OpenAI.",
    val knowledgeCutoff: String = "2024-06",
) {
    fun text(): String = "$identity\nKnowledge cutoff: $knowledgeCutoff\nCurrent date: $date" +
        "\n\nReasoning: $reasoning\n\n# Valid channels: ${CHANNELS.joinToString(", ")}." +
        " Channel must be included for every message."
}

internal val CHANNELS = listOf("analysis", "commentary", "final")
internal const val CHANNEL = "<|channel|>"
internal const val CONSTRAIN = "<|constrain|>"
internal const val MESSAGE = "<|message|>"
internal val STOPS = listOf("<|return|>", "<|call|>", "<|endoftext|>")

/** Conversations to token ids. What a user typed is text, and can never open a message. */
class Harmony(private val tokenizer: Tokenizer) {
    val stopIds: Set<Int> = STOPS.filter(tokenizer::hasSpecial).map(tokenizer::special).toSet()

    /** Ids of a conversation, with the assistant's turn opened at the end when `reply`. */
    fun render(
        messages: List<Message>,
        system: SystemPrompt?,
        instructions: String? = null,
        reply: Boolean = true,
    ): List<Int> {
        val head = listOfNotNull(
            system?.let { Message("system", it.text()) },
            instructions?.let { Message("developer", "# Instructions\n\n$it") },
        )
        val ids = (head + withoutOldAnalysis(messages)).flatMap(::render)
        return if (reply) ids + tokenizer.special("<|start|>") + tokenizer.encode("assistant") else ids
    }

    private fun render(message: Message): List<Int> = buildList {
        add(tokenizer.special("<|start|>"))
        addAll(tokenizer.encode(message.role))
        if (message.recipient != null && message.recipient != "all") addAll(tokenizer.encode(" to=${message.recipient}"))
        message.channel?.let {
            add(tokenizer.special(CHANNEL))
            addAll(tokenizer.encode(it))
        }
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

    /** Drops the reasoning of answered turns; that of a turn still calling tools stays. */
    private fun withoutOldAnalysis(messages: List<Message>): List<Message> {
        val last = messages.indexOfLast { it.role == "assistant" && it.channel == "final" }
        return messages.filterIndexed { i, message -> i > last || message.channel != "analysis" }
    }
}
