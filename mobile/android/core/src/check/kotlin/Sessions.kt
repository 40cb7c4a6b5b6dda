package gptoss.check

import gptoss.Manifest
import gptoss.Session
import gptoss.UserError
import gptoss.children
import gptoss.child
import gptoss.text
import gptoss.whole
import kotlin.math.abs

/** Sessions are left as session.json says, and go on as one that was never anywhere else. */
@Suppress("UNCHECKED_CAST")
class Sessions(private val check: Check, private val manifest: Manifest, private val open: (maxLength: Int) -> Session) {
    fun hold(cases: List<Map<String, Any?>>) {
        // A session without `max_length` grows elsewhere; here its room is there at once.
        for (case in cases) open((case["max_length"] as Long?)?.toInt() ?: manifest.contextLength).use { session ->
            case.children("steps").forEachIndexed { number, step -> hold("$number of ${case["name"]}", session, step) }
        }
    }

    private fun hold(name: String, session: Session, step: Map<String, Any?>) {
        val logits = perform(name, session, step)
        val left = step.child("left")
        val kept = tokens(left["kept"])
        check.equal("kept after step $name", session.tokens, kept)
        check.equal("evicted after step $name", session.evicted, left.whole("evicted"))
        if (logits != null) {
            val expected = open(maxOf(kept.size, 2)).use { it.feed(kept) }
            val most = logits.indices.maxOf { abs(logits[it] - expected[it]) }
            check.equal("logits after step $name: $most", most < TOLERANCE, true)
        }
    }

    /** What a feed gives. */
    private fun perform(name: String, session: Session, step: Map<String, Any?>): FloatArray? {
        when (step.text("do")) {
            "feed" -> return session.feed(tokens(step["tokens"]))
            "fail" -> {
                session.ran = { throw UserError("made to fail") } // the worst of failures: all is written
                check.equal("step $name", check.refusal { session.feed(tokens(step["tokens"])) }, "made to fail")
                session.ran = {}
            }
            "refuse" -> {
                val ids = (step["ids"] as List<Long>).map { it.toInt() }
                check.equal("step $name", check.refusal { session.feed(ids) } != null, true)
            }
            "reuse" -> session.reuse(tokens(step["tokens"])).let { check.equal("step $name", it, session.length) }
            "rewind" -> session.rewind(step.whole("length")).let { check.equal("step $name", it, session.length) }
            "snapshot" -> session.snapshot()
            "reset" -> session.reset()
            else -> error("$step")
        }
        return null
    }

    private fun tokens(pieces: Any?): List<Int> = (pieces as List<List<Long>>).flatMap { (text, from, to) ->
        (from until to).map { ((7919 * it + 104729 * text + 13) % 4000).toInt() }
    }

    private companion object {
        /**
         * None differed on x86-64; chunks of another size may, where a kernel adds up in another
         * order. With wrong rows of a window the most was 0.3 to 14, of logits with a standard
         * deviation of 3.
         */
        const val TOLERANCE = 0.1f
    }
}
