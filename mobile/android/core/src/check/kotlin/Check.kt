package gptoss.check

import gptoss.Device
import gptoss.Event
import gptoss.Finish
import gptoss.Harmony
import gptoss.Json
import gptoss.Manifest
import gptoss.Message
import gptoss.Model
import gptoss.Reply
import gptoss.Sampler
import gptoss.Sampling
import gptoss.SplitMix64
import gptoss.StreamParser
import gptoss.SystemPrompt
import gptoss.Tokenizer
import gptoss.UserError
import gptoss.Utf8Stream
import gptoss.child
import gptoss.children
import gptoss.text
import gptoss.whole
import java.io.File

/** Holds the core to tests/vectors: `Check VECTORS DEMO [PACKAGE]`. Exit 1 where one differs. */
fun main(arguments: Array<String>) {
    val check = Check(File(arguments[0]), File(arguments[1], "tokenizer.json").bufferedReader().use(::Tokenizer))
    check.tokenization()
    check.harmony()
    check.parsing()
    check.replies()
    check.manifests()
    check.sampling()
    if (arguments.size > 2) {
        check.answers(File(arguments[2]))
        check.sessions(File(arguments[2]))
        Turns(check).hold(File(arguments[2]))
    }
    println("${check.passed} passed, ${check.failed} failed")
    if (check.failed > 0) kotlin.system.exitProcess(1)
}

@Suppress("UNCHECKED_CAST")
class Check(private val folder: File, private val tokenizer: Tokenizer) {
    var passed = 0
    var failed = 0

    private fun read(name: String) = File(folder, name).bufferedReader().use(Json::read) as Map<String, Any?>

    fun equal(what: String, found: Any?, expected: Any?) {
        if (found == expected) passed++ else {
            failed++
            println("$what: $found instead of $expected")
        }
    }

    private fun ids(value: Any?) = (value as List<Number>).map { it.toInt() }

    fun tokenization() {
        val vectors = read("tokenization.json")
        for (case in vectors.children("encode")) equal("encode ${case["text"]}", tokenizer.encode(case.text("text")), ids(case["ids"]))
        for (case in vectors.children("decode")) {
            val tokens = ids(case["ids"])
            equal("decode $tokens", tokenizer.decode(tokens), case["text"])
            val stream = Utf8Stream()
            equal("pieces $tokens", tokens.map { stream.feed(tokenizer.bytes(it)) } + stream.finish(), case["pieces"])
        }
    }

    private fun message(map: Map<String, Any?>) = Message(
        map.text("role"),
        map.text("content"),
        map["channel"] as String?,
        map["recipient"] as String?,
        map["content_type"] as String?,
        map["recipient_in_role"] == true,
    )

    private fun tools(vectors: Map<String, Any?>) = (vectors["tools"] as List<String>).toSet()

    private fun stopIds(vectors: Map<String, Any?>) = ids(vectors["stop_ids"]).toSet()

    /** Cases with tools are left out: the app's core has none. */
    fun harmony() {
        for (case in read("harmony.json").children("render").filter { it.children("tools").isEmpty() }) {
            val system = (case["system"] as Map<String, Any?>?)?.let {
                fun text(name: String) = it[name] as String?
                SystemPrompt(text("date"), text("reasoning"), text("identity"), text("knowledge_cutoff"), it["channels"] as List<String>)
            }
            val found = Harmony(tokenizer).render(
                case.children("messages").map(::message),
                system,
                case["instructions"] as String?,
                case["auto_drop_analysis"] == true,
                case["reply"] == true,
            )
            equal("render ${case["name"]}", found, ids(case["ids"]))
        }
    }

    fun parsing() {
        val vectors = read("stream_parse.json")
        for (reply in vectors.children("replies")) {
            val parser = StreamParser(tokenizer, tools(vectors), stopIds(vectors))
            val tokens = ids(reply["ids"])
            val events = tokens.map { parser.feed(it) } + listOf(parser.finish())
            equal("events ${reply["name"]}", events.map { it.map(::told) }, reply["events"])
            equal("messages ${reply["name"]}", parser.messages, reply.children("messages").map(::message))
            (reply["cuts"] as List<List<Map<String, Any?>>>?)?.forEachIndexed { count, messages ->
                val cut = StreamParser(tokenizer, tools(vectors), stopIds(vectors))
                tokens.take(count).forEach { cut.feed(it) }
                cut.finish()
                equal("cut $count ${reply["name"]}", cut.messages, messages.map(::message))
            }
        }
    }

    private fun told(event: Event) = listOf(event.kind, event.text, event.message.toLong()) + listOfNotNull(event.recipient)

    /** `arguments` are left out: the app's core makes no calls. */
    fun replies() {
        val vectors = read("reply.json")
        for (case in vectors.children("replies")) {
            val reply = Reply(tokenizer, tools(vectors), stopIds(vectors))
            ids(case["ids"]).forEach { reply.feed(it) }
            reply.finish(Finish.valueOf(case.text("reason").uppercase()))
            val name = case["name"]
            equal("text $name", reply.text, case["text"])
            equal("finish $name", reply.finish?.name?.lowercase(), case["finish_reason"])
            equal("cut in $name", reply.cutIn, case["cut_in"])
            equal("kept $name", reply.messages, case.children("messages").map(::message))
            val whole = case["finish_reason"] == "stop" && case.text("text").isNotEmpty()
            equal("remark $name", reply.remark == null, whole || case["finish_reason"] == "cancelled")
            val calls = case.children("calls").map { listOf(it["name"], it["arguments"], it["channel"]) }
            equal("calls $name", reply.calls.map { listOf(it.recipient, it.content, it.channel) }, calls)
            val next = listOf(Message("user", "Weather?")) + reply.messages + case.children("then").map(::message)
            equal("next $name", Harmony(tokenizer).render(next, null), ids(case["next_ids"]))
        }
    }

    fun sampling() {
        val vectors = read("sampling.json")
        for (case in vectors.children("splitmix64")) {
            val seed = case.text("seed").toULong()
            val one = SplitMix64(seed)
            equal("splitmix64 $seed", List(4) { one.next().toString(16).padStart(16, '0') }, case["next"])
            val other = SplitMix64(seed)
            equal("uniform $seed", List(4) { other.uniform() }, case["uniform"])
        }
        for (case in vectors.children("draws")) {
            val given = case.child("sampling")
            val sampling = sampling(given).copy(seed = given.text("seed").toULong())
            val logits = logits(case.child("logits"))
            val sampler = Sampler(sampling, ids(case["prompt"]))
            equal("draws $given", List(12) { sampler.next(logits) }, ids(case["tokens"]))
        }
    }

    private fun sampling(given: Map<String, Any?>): Sampling {
        fun number(name: String, default: Double) = (given[name] as Number?)?.toDouble() ?: default
        return Sampling(
            number("temperature", 1.0),
            number("top_k", 0.0).toInt(),
            number("top_p", 1.0),
            number("min_p", 0.0),
            number("repetition_penalty", 1.0),
            given["do_sample"] != false,
        )
    }

    /** The message of the UserError, which is one line; null where there is none. */
    fun refusal(read: () -> Unit): String? = try {
        read()
        null
    } catch (failure: UserError) {
        failure.message.orEmpty().also { check(it.isNotEmpty() && it.lines().size == 1) { it } }
    }

    private fun refusal(manifest: Any?) = refusal { Manifest.check(manifest as Map<String, Any?>) }

    fun manifests() {
        val vectors = read("manifest.json")
        for (case in vectors.children("manifests")) {
            val told = refusal(changed(vectors, case))
            val right = case["refused"]?.let { told != null && "$it" in told } ?: (told == null)
            equal("manifest ${case["name"]}: $told", right, true)
        }
        for (case in vectors.children("texts")) {
            val text = case.text("text").repeat(case.whole("times"))
            equal("text ${case["name"]}", refusal { Manifest.read(text.reader()) } != null, true)
        }
        for ((kind, names) in vectors.child("paths")) for (name in names as List<String>) {
            val file = mapOf("size" to 1L, "sha256" to "0".repeat(64))
            val places = listOf(listOf("files", name) to file, listOf("links") to listOf(name), listOf("graph") to name)
            for ((at, value) in places.take(if (kind == "good") 2 else 3)) {
                val changes = mapOf("of" to "single", "changes" to listOf(mapOf("at" to at, "value" to value)))
                equal("$kind path $name at $at", refusal(changed(vectors, changes)) == null, kind == "good")
            }
        }
        for (case in vectors.children("choice")) choice(case, vectors.child("graphs"))
        for (case in vectors.children("reads")) {
            val content = changed(vectors, case) as Map<String, Any?>
            val entry = Manifest.graphs(content).first { it["graph"] == case["graph"] }
            equal("reads ${case["name"]}", Manifest(content, entry).reads.map { it.name }.sorted(), case["files"])
        }
    }

    private fun choice(case: Map<String, Any?>, graphs: Map<String, Any?>) {
        val runtime = case.child("runtime")
        fun words(name: String) = runtime[name] as List<String>
        val device = Device(runtime.text("version"), words("providers"), words("features").toSet(), words("kv"), runtime["appends"] == true)
        var chosen: Any? = null
        val told = refusal { chosen = device.choose((case["graphs"] as List<String>).map(graphs::child))["graph"] }
        equal("choice ${case["name"]}", chosen, case["chosen"])
        equal("why not ${case["name"]}: $told", (case["names"] as List<String>).all { it in told.orEmpty() }, true)
    }

    /** The manifest that a case is about. */
    private fun changed(vectors: Map<String, Any?>, case: Map<String, Any?>): Any? =
        case.children("changes").fold(vectors[case.text("of")]) { value, change -> changed(value, change["at"] as List<Any?>, change) }

    private fun changed(value: Any?, at: List<Any?>, change: Map<String, Any?>): Any? {
        val step = at.firstOrNull() ?: return change["value"]
        if (step is Long) {
            val items = value as List<Any?>
            return items.mapIndexed { i, item -> if (i.toLong() == step) changed(item, at.drop(1), change) else item }
        }
        val members = value as Map<String, Any?>
        if (at.size == 1 && "value" !in change) return members - "$step"
        return members + ("$step" to changed(members["$step"], at.drop(1), change))
    }

    private fun logits(given: Map<String, Any?>): FloatArray {
        (given["values"] as List<Number>?)?.let { values -> return FloatArray(values.size) { values[it].toFloat() } }
        val random = SplitMix64(given.text("seed").toULong())
        val scale = (given["scale"] as Number).toDouble()
        return FloatArray((given["size"] as Number).toInt()) { (kotlin.math.floor(random.uniform() * scale * 256) / 256).toFloat() }
    }

    fun sessions(folder: File) = Model.load(folder, threads = 1).use { model ->
        Sessions(this, model.manifest) { model.chat("2026-01-01", maxLength = it).session }
            .hold(read("session.json").children("sessions"))
    }

    /** Greedy replies of the package on ONNX Runtime's Java API; then two turns, and a cancelled one. */
    fun answers(folder: File) = Model.load(folder, threads = 1).use { model ->
        for (case in read("answers.json").children("answers")) {
            val turns = case.children("messages").map(::message)
            val date = case["date"] as String? ?: continue
            model.chat(date, case["instructions"] as String?, sampling = Sampling(temperature = 0.0)).use { chat ->
                chat.messages += turns.dropLast(1)
                val reply = chat.send(turns.last().content)
                equal("answer ${turns.last().content}", reply.tokens, ids(case["reply"]))
            }
        }
        model.chat("2026-01-01", sampling = Sampling(temperature = 0.0)).use { chat ->
            val ends = listOf(chat.send(QUESTION), chat.send(QUESTION) { chat.cancel() }, chat.send(QUESTION)).map { it.finish }
            equal("finish", ends, listOf(Finish.STOP, Finish.CANCELLED, Finish.STOP))
            equal("turns", chat.messages.count { it.role == "user" }, 3)
        }
    }
}
