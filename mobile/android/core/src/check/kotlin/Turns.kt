package gptoss.check

import gptoss.CHUNK
import gptoss.Chat
import gptoss.Finish
import gptoss.Model
import gptoss.Sampling
import gptoss.Session
import gptoss.SplitMix64
import gptoss.UserError
import java.io.File

const val QUESTION = "What does os.path.join do?"

/** Turns that fail, are cancelled or have ids that are none; compared by `check`. */
class Turns(private val check: Check) {
    /** Whatever became of a turn, the next one's reply is a new session's. */
    fun hold(folder: File) = Model.load(folder, threads = 1).use { model ->
        fun <T> chat(use: (Chat) -> T): T = model.chat("2026-01-01", sampling = Sampling(temperature = 0.0)).use(use)
        val random = SplitMix64(1u)
        fun ids(count: Int) = List(count) { (random.uniform() * model.manifest.vocabSize).toInt() }
        // So long that sliding layers move their rows in either; ids at random, as the demo says of
        // what it knows the same in spite of wrong rows.
        val first = ids(210)
        val (second, other) = first + ids(90) to ids(150)
        val expected = chat { reply(it.session, second) }
        for (run in 1..8) chat { chat ->
            fail(chat.session, run, second)
            check.equal("after run $run failed", reply(chat.session, second), expected)
        }
        for (run in 1..5) chat { chat ->
            reply(chat.session, first)
            fail(chat.session, run, second)
            check.equal("after a turn and run $run failed", reply(chat.session, second), expected)
        }
        chat { chat ->
            reply(chat.session, first)
            fail(chat.session, 3, other)
            check.equal("after another prompt failed", reply(chat.session, second), expected)
        }
        chat(::cancels)
        chat { strangeIds(it.session, model.manifest.vocabSize) }
    }

    /** Greedy, fed as a chat does. */
    private fun reply(session: Session, prompt: List<Int>): List<Int> {
        var logits = FloatArray(0)
        for (chunk in prompt.drop(session.reuse(prompt)).chunked(CHUNK)) logits = session.feed(chunk)
        session.snapshot()
        return List(8) {
            val token = logits.indices.maxBy { logits[it] }
            logits = session.feed(listOf(token))
            token
        }
    }

    private fun fail(session: Session, run: Int, prompt: List<Int>) {
        var runs = 0
        session.ran = { if (++runs == run) throw UserError("made to fail") }
        check.equal("run $run fails", check.refusal { reply(session, prompt) }, "made to fail")
        session.ran = {}
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
