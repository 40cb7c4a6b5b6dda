package gptoss.check

import gptoss.Chat
import gptoss.Finish
import gptoss.Message
import gptoss.Model
import gptoss.Sampling
import gptoss.Session
import gptoss.SystemPrompt
import gptoss.UserError
import java.io.File

const val QUESTION = "What does os.path.join do?"

/** Turns that fail, are cancelled or have ids that are none; compared by `check`. */
class Turns(private val check: Check) {
    fun hold(folder: File) = Model.load(folder, threads = 1).use { model ->
        fun <T> chat(use: (Chat) -> T): T = model.chat("2026-01-01", sampling = Sampling(temperature = 0.0)).use(use)
        val expected = chat { it.send(QUESTION).tokens }
        for (run in listOf(1, 2, 5)) chat { fails(it, run, expected) }
        reuses(model)
        chat(::cancels)
        chat { strangeIds(it.session, model.manifest.vocabSize) }
        val most = model.manifest.contextLength
        for (length in listOf(-1, 0, 1, most + 1)) {
            val told = "maxLength is $length: it must be from 2 to the package's context length, $most"
            check.equal("room for $length", check.refusal { model.chat("2026-01-01", maxLength = length) }, told)
        }
    }

    /** Whichever run of a turn failed, it was never said, and said again it has the reply of a new chat. */
    private fun fails(chat: Chat, run: Int, expected: List<Int>) {
        var runs = 0
        chat.session.ran = { if (++runs == run) throw UserError("made to fail") }
        check.equal("run $run fails", check.refusal { chat.send(QUESTION) }, "made to fail")
        chat.session.ran = {}
        check.equal("said after run $run failed", chat.messages, emptyList<Message>())
        check.equal("after run $run failed", chat.send(QUESTION).tokens, expected)
    }

    /** The next turn drops a reply's reasoning, and is fed from where that began. */
    private fun reuses(model: Model) {
        val (date, instructions) = "2026-01-01" to "Answer briefly. ".repeat(12)
        model.chat(date, instructions, sampling = Sampling(temperature = 0.0)).use { chat ->
            chat.send(QUESTION)
            check.equal("windows moved within the reply", chat.session.evicted > 0, true)
            val fed = ArrayList<Int>() // before each run
            chat.session.ran = { fed += chat.session.length }
            chat.send(QUESTION)
            val prompt = model.harmony.render(listOf(Message("user", QUESTION)), SystemPrompt(date), instructions)
            check.equal("where the second turn begins", fed[0], prompt.size)
        }
    }

    private fun cancels(chat: Chat) {
        chat.cancel()
        check.equal("cancelled between turns", chat.send(QUESTION).finish, Finish.STOP)
        chat.session.ran = { chat.cancel() }
        val reply = chat.send(QUESTION)
        chat.session.ran = {}
        check.equal("cancelled in the prompt", reply.finish, Finish.CANCELLED)
        check.equal("said before", reply.tokens, emptyList<Int>())
        var refused: String? = null
        val cancelled = chat.send(QUESTION) {
            chat.cancel()
            refused = check.refusal { chat.send(QUESTION) }
        }
        check.equal("a second turn", refused, "this chat is answering already: cancel that reply first")
        check.equal("cancelled before a second turn", cancelled.finish, Finish.CANCELLED)
        check.equal("after a cancel", chat.send(QUESTION).finish, Finish.STOP)
    }

    private fun strangeIds(session: Session, size: Int) {
        for (id in listOf(-1, size, Int.MAX_VALUE)) {
            val told = "have $id at position 1: the vocabulary has $size tokens, ids from 0 to ${size - 1}"
            check.equal("feed $id", check.refusal { session.feed(listOf(0, id)) }, "the tokens $told")
            check.equal("reuse $id", check.refusal { session.reuse(listOf(0, id, 0)) }, "the prompt's tokens $told")
        }
        check.equal("feed nothing", check.refusal { session.feed(emptyList()) }, "no token is fed: feed at least one")
        check.equal("fed", session.length, 0)
    }
}
