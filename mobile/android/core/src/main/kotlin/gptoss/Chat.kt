package gptoss

import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import java.io.File
import java.util.concurrent.atomic.AtomicBoolean
import java.util.concurrent.atomic.AtomicReference

/** A package that is loaded. Close it when the app no longer needs it. */
class Model private constructor(private val folder: File, val manifest: Manifest, open: () -> OrtSession) : AutoCloseable {
    val tokenizer: Tokenizer = File(folder, "tokenizer.json").readBy { Tokenizer(it, manifest.vocabSize) }
    val harmony = Harmony(tokenizer)
    private val configs = listOf("generation_config.json", "config.json").associateWith(::json)

    /** The package's own. */
    val sampling: Sampling = configs.entries.first().let { (name, config) -> naming(name) { GenerationConfig.sampling(config) } }

    /** Harmony's, and those that the package names: another tool's file may name a padding token alone. */
    val stopIds: Set<Int> = harmony.stopIds +
        configs.firstNotNullOfOrNull { (name, config) -> naming(name) { GenerationConfig.stopIds(config) } }.orEmpty()
    private val graph = open() // last: where the rest fails, no weights stay behind

    private fun json(name: String): Map<String, Any?> {
        val file = place(folder, name)
        return if (file.isFile) file.readBy(Json::members) else emptyMap()
    }

    /** A new conversation with room for `maxLength` tokens in all; UserError where the package has fewer. `date` is ISO 8601. */
    fun chat(
        date: String,
        instructions: String? = null,
        reasoning: String = "medium",
        maxLength: Int = minOf(4096, manifest.contextLength),
        sampling: Sampling = this.sampling,
    ): Chat = Chat(this, Session(graph, manifest, maxLength), SystemPrompt(date, reasoning), instructions, sampling)

    override fun close() = graph.close()

    companion object {
        /** Loads the package in `folder`, which takes seconds; UserError when it cannot be. */
        fun load(folder: File, threads: Int = Runtime.getRuntime().availableProcessors()): Model {
            val manifest = Manifest.load(folder)
            for (file in manifest.reads) {
                if (place(folder, file.name).length() != file.size) throw UserError("${file.name} is missing or cut short: get the package again")
            }
            val environment = OrtEnvironment.getEnvironment()
            return Model(folder, manifest) {
                OrtSession.SessionOptions().use { options ->
                    options.setIntraOpNumThreads(threads)
                    for ((name, value) in manifest.session) options.addConfigEntry(name, value)
                    val graph = try {
                        environment.createSession(File(folder, manifest.graph).path, options)
                    } catch (failure: OrtException) {
                        throw UserError("${manifest.graph}: ${failure.message?.lines()?.first()}: get the package again")
                    }
                    try {
                        graph.also { checkGraph(it, manifest) }
                    } catch (failure: UserError) {
                        graph.close()
                        throw failure
                    }
                }
            }
        }
    }
}

/** One conversation. One reply at a time, on a thread of the caller's that may wait. */
class Chat internal constructor(
    private val model: Model,
    internal val session: Session,
    private val system: SystemPrompt?,
    private val instructions: String?,
    private val sampling: Sampling,
) : AutoCloseable {
    /** What was said. */
    val messages = ArrayList<Message>()

    // Whether the turn under way is cancelled, a flag of its own: no cancel outlives its turn, and no
    // other `send` takes one back.
    private val turn = AtomicReference<AtomicBoolean>()
    private val cancelled get() = turn.get().get()

    /** Ends the reply under way, begun or not, after its present token; without one it does nothing. From any thread. */
    fun cancel() {
        turn.get()?.set(true)
    }

    /**
     * Says `text` and streams the reply to `onEvent`. When it fails, the history is as before. UserError
     * while another is under way.
     */
    fun send(text: String, onEvent: (Event) -> Unit = {}): Reply {
        if (!turn.compareAndSet(null, AtomicBoolean())) throw UserError("this chat is answering already: cancel that reply first")
        messages += Message("user", text)
        try {
            return answer(onEvent)
        } catch (failure: Throwable) {
            messages.removeAt(messages.lastIndex)
            throw failure
        } finally {
            turn.set(null)
        }
    }

    private fun answer(onEvent: (Event) -> Unit): Reply {
        val prompt = model.harmony.render(messages, system, instructions)
        if (prompt.size >= session.maxLength) throw UserError("the conversation is too long: start a new chat")
        val reply = Reply(model.tokenizer, stopIds = model.stopIds)
        val finish = generate(prompt) { reply.feed(it).forEach(onEvent) }
        reply.finish(finish).forEach(onEvent)
        messages += reply.messages
        return reply
    }

    private fun generate(prompt: List<Int>, onToken: (Int) -> Unit): Finish {
        val sampler = Sampler(sampling, prompt)
        var logits = FloatArray(0)
        for (chunk in prompt.drop(session.reuse(prompt)).chunked(CHUNK)) {
            if (cancelled) return Finish.CANCELLED
            logits = session.feed(chunk)
        }
        session.snapshot() // the next turn drops this reply's reasoning and comes back to here
        while (!cancelled) {
            val token = sampler.next(logits)
            onToken(token)
            if (token in model.stopIds) return Finish.STOP
            if (session.length >= session.maxLength) return Finish.LENGTH
            logits = session.feed(listOf(token))
        }
        return Finish.CANCELLED
    }

    override fun close() = session.close()
}
