package gptoss

import java.io.File
import java.io.Reader

/**
 * A small JSON reader, so that the core needs neither Android's nor another library's.
 *
 * Objects are maps in their order, arrays lists, numbers Double or Long. Equal strings are one
 * string: a tokenizer's merges repeat its vocabulary. A file may come from a stranger: what is not
 * JSON to the letter, or nested deeper than a phone's stack, is a UserError.
 */
class Json private constructor(private val input: Reader) {
    private val known = HashMap<String, String>()
    private var next = input.read()
    private var depth = 0

    companion object {
        /** Bytes of a file: gpt-oss's tokenizer.json has 28 MB. */
        const val MOST_BYTES = 64 shl 20
        private const val DEEPEST = 512
        private val NUMBER = Regex("-?(?:0|[1-9][0-9]*)(?:\\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")

        /** UserError where the text is no JSON. */
        fun read(input: Reader): Any? {
            val json = Json(input)
            val value = json.value()
            json.space()
            if (json.next >= 0) json.fail()
            return value
        }

        /** The same where the text must be an object. */
        @Suppress("UNCHECKED_CAST")
        fun members(input: Reader): Map<String, Any?> =
            read(input) as? Map<String, Any?> ?: throw UserError("the JSON is no object")
    }

    private fun fail(): Nothing =
        throw UserError(if (next < 0) "the JSON ends too soon" else "not JSON: ${shown("${next.toChar()}")}")

    private fun take(): Char {
        if (next < 0) fail()
        return next.toChar().also { next = input.read() }
    }

    private fun space() {
        while (next == ' '.code || next == '\n'.code || next == '\r'.code || next == '\t'.code) {
            next = input.read()
        }
    }

    private fun expect(char: Char) {
        space()
        if (next != char.code) fail()
        take()
    }

    private fun value(): Any? {
        space()
        return when (if (next < 0) ' ' else next.toChar()) {
            '{' -> nested(::members)
            '[' -> nested(::elements)
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> number()
        }
    }

    private fun <T> nested(read: () -> T): T {
        if (++depth > DEEPEST) throw UserError("the JSON is nested deeper than $DEEPEST")
        return read().also { depth-- }
    }

    private fun word(text: String, value: Any?): Any? {
        for (char in text) if (take() != char) fail()
        return value
    }

    private fun number(): Any {
        val text = StringBuilder()
        while (next >= 0 && next.toChar() in "+-.0123456789eE") text.append(take())
        if (!NUMBER.matches(text)) fail()
        return text.toString().let { it.toLongOrNull() ?: it.toDouble() }
    }

    private fun members(): Map<String, Any?> {
        val found = LinkedHashMap<String, Any?>()
        expect('{')
        space()
        while (next != '}'.code) {
            if (found.isNotEmpty()) expect(',')
            space()
            val name = string()
            expect(':')
            found[name] = value()
            space()
        }
        take()
        return found
    }

    private fun elements(): List<Any?> {
        val found = ArrayList<Any?>()
        expect('[')
        space()
        while (next != ']'.code) {
            if (found.isNotEmpty()) expect(',')
            found.add(value())
            space()
        }
        take()
        return found
    }

    private fun string(): String {
        if (next != '"'.code) fail()
        take()
        val text = StringBuilder()
        while (next != '"'.code) {
            val char = take()
            if (char < ' ') throw UserError("not JSON: a control character in a string")
            text.append(if (char == '\\') escaped() else char)
        }
        take()
        val made = text.toString()
        return known.getOrPut(made) { made }
    }

    private fun escaped(): Char = when (val char = take()) {
        'n' -> '\n'
        't' -> '\t'
        'r' -> '\r'
        'b' -> '\b'
        'f' -> '\u000c'
        'u' -> (1..4).fold(0) { code, _ -> 16 * code + Character.digit(take(), 16).also { if (it < 0) fail() } }.toChar()
        '"', '\\', '/' -> char
        else -> fail()
    }
}

/** What `read` makes of a file; its UserError names the file. */
fun <T> File.readBy(read: (Reader) -> T): T = naming(name) {
    if (length() > Json.MOST_BYTES) throw UserError("${length()} bytes are too many for one")
    bufferedReader().use(read)
}

/** What `body` gives; its UserError names the file it is about. */
internal fun <T> naming(file: String, body: () -> T): T = try {
    body()
} catch (failure: UserError) {
    throw UserError("$file: ${failure.message}")
}

/** The member `name` as an object; UserError where it is none. */
@Suppress("UNCHECKED_CAST")
fun Map<String, Any?>.child(name: String): Map<String, Any?> =
    this[name] as? Map<String, Any?> ?: throw UserError("no $name in it")

@Suppress("UNCHECKED_CAST")
fun Map<String, Any?>.children(name: String): List<Map<String, Any?>> =
    (this[name] as? List<*>)?.takeIf { list -> list.all { it is Map<*, *> } } as List<Map<String, Any?>>?
        ?: throw UserError("no $name in it")

fun Map<String, Any?>.text(name: String): String =
    this[name] as? String ?: throw UserError("no $name in it")

fun Map<String, Any?>.whole(name: String): Int =
    (this[name] as? Number)?.toInt() ?: throw UserError("no $name in it")
