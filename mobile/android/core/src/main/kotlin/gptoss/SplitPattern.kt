package gptoss

import java.util.regex.Pattern
import java.util.regex.PatternSyntaxException

// White space as Unicode has it: \s differs between Java, Android's ICU and Rust.
private const val SPACES = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"

internal fun isSpace(char: Char): Boolean = char in '\t'..'\r' || char in '\u2000'..'\u200a' ||
    char in " \u0085\u00a0\u1680\u2028\u2029\u202f\u205f\u3000"

/** The pattern of a `pre_tokenizer` that splits by one and then writes bytes as characters. */
internal fun splitPattern(given: Any?): Pattern {
    val members = given as? Map<*, *>
    val steps = (members?.get("pretokenizers") as? List<*>).orEmpty().map { it as? Map<*, *> }
    val (split, bytes) = List(2) { steps.getOrNull(it).orEmpty() }
    val pattern = (split["pattern"] as? Map<*, *>)?.get("Regex") as? String
    val plain = split["type"] == "Split" && split["behavior"] == "Isolated" && !set(split["invert"])
    val level = bytes["type"] == "ByteLevel" && !set(bytes["add_prefix_space"]) && bytes["use_regex"] == false
    if (members?.get("type") != "Sequence" || pattern == null || !plain || !level || steps.size != 2) {
        throw UserError("pre_tokenizer is not Split by a Regex (Isolated) and ByteLevel, all this runtime has")
    }
    return try {
        Pattern.compile(portable(pattern))
    } catch (failure: PatternSyntaxException) {
        throw UserError("pre_tokenizer's Regex is none: ${shown(failure.description)}")
    }
}

/** Whether an option asks for something. */
internal fun set(option: Any?): Boolean = option !in listOf(null, false, "", 0L, 0.0)

// In order: a group's begin, an escaped character, any other.
private val PART = Regex("\\(\\?i:|\\\\.|.", RegexOption.DOT_MATCHES_ALL)

/** The pattern with white space, and letters of either case, spelled out. */
private fun portable(pattern: String): String {
    var bracketed = false
    var anyCase = 0 // how many groups deep
    return PART.findAll(pattern).joinToString("") { match ->
        val part = match.value
        val opens = part == "(?i:" || (anyCase > 0 && part == "(" && !bracketed)
        if (opens) anyCase++
        if (part == ")" && anyCase > 0 && !bracketed) anyCase--
        if (part == "[") bracketed = true
        if (part == "]") bracketed = false
        when {
            opens -> if (part == "(") part else "(?:"
            part == "\\s" -> if (bracketed) SPACES else "[$SPACES]"
            part == "\\S" && !bracketed -> "[^$SPACES]"
            anyCase > 0 && !bracketed -> eitherCase(part)
            else -> part
        }
    }
}

/** A letter as the reference takes it where case does not matter: ſ is an s, the Kelvin sign a k. */
private fun eitherCase(part: String): String {
    val letter = part.singleOrNull()
    if (letter == null || letter !in 'a'..'z' && letter !in 'A'..'Z') return part
    val more = when (letter.lowercaseChar()) {
        's' -> "\\u017f"
        'k' -> "\\u212a"
        else -> ""
    }
    return "[${letter.lowercaseChar()}${letter.uppercaseChar()}$more]"
}
