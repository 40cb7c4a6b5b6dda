package gptoss.check

import gptoss.Json
import gptoss.Tokenizer
import gptoss.UserError
import gptoss.Utf8Stream
import gptoss.children
import gptoss.readBy
import gptoss.text
import gptoss.whole
import java.io.File

/**
 * Holds a tokenizer.json to ids: `Tokens TOKENIZER FILE`, of tokenizer_files.json or of a list of
 * `cases`, each a text, its ids and what they decode to. Prints what differs.
 */
fun main(arguments: Array<String>) {
    val content = File(arguments[1]).readBy(Json::members)
    val check = Tokens(File(arguments[0]), content)
    if ("cases" in content) check.cases() else check.files()
    println("${check.passed} passed")
}

private class Tokens(private val file: File, private val content: Map<String, Any?>) {
    var passed = 0

    private fun equal(what: String, found: Any?, expected: Any?) {
        if (found == expected) passed++ else println("$what: $found instead of $expected".take(500))
    }

    @Suppress("UNCHECKED_CAST")
    private fun ids(case: Map<String, Any?>) = (case["ids"] as List<Number>).map { it.toInt() }

    private fun read(file: File) = file.readBy { Tokenizer(it, content.whole("vocab_size")) }

    fun cases() {
        val tokenizer = read(file)
        for (case in content.children("cases")) {
            equal("encode ${case["text"]}", tokenizer.encode(case.text("text")), ids(case))
            equal("decode ${case["text"]}", tokenizer.decode(ids(case)), case["decoded"])
        }
    }

    fun files() {
        val text = file.readText()
        val changed = File.createTempFile("tokenizer", ".json").apply { deleteOnExit() }
        fun changed(case: Map<String, Any?>): Tokenizer {
            check(case.text("find") in text)
            changed.writeText(text.replaceFirst(case.text("find"), case.text("replace")))
            return read(changed)
        }
        for (case in content.children("read")) reads(changed(case), case)
        for (case in content.children("damaged")) {
            val told = try {
                changed(case)
                "nothing"
            } catch (failure: UserError) {
                failure.message.orEmpty()
            }
            equal("${case["name"]}: $told", told.startsWith("${changed.name}: ") && told.lines().size == 1, true)
        }
    }

    private fun reads(tokenizer: Tokenizer, expected: Map<String, Any?>) {
        for (case in expected.children("encode")) equal("encode ${case["text"]}", tokenizer.encode(case.text("text")), ids(case))
        for (case in expected.children("decode")) {
            equal("decode ${case["ids"]}", tokenizer.decode(ids(case)), case["text"])
            val stream = Utf8Stream()
            val pieces = ids(case).map { stream.feed(tokenizer.bytes(it)) } + stream.finish()
            equal("pieces ${case["ids"]}", pieces, case["pieces"])
        }
    }
}
