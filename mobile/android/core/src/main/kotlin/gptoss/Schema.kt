package gptoss

/**
 * Values held to a JSON Schema, by the few keywords that manifest.schema.json is written in.
 *
 * The same few lines in every language (runtimes/schema.py), so that each finds the same first fault
 * and names its field in the same way.
 */
internal class Schema(private val root: Map<String, Any?>) {
    /** The first thing in `value` that is forbidden, as a line that begins with its field; null where there is none. */
    fun fault(value: Any?): String? = fault(value, root, "")

    private fun fault(value: Any?, schema: Map<String, Any?>, where: String): String? {
        if (schema.isEmpty()) return null
        val parts = listOfNotNull((schema["\$ref"] as String?)?.let(::referred)) + schema.listed("allOf").map(::schema)
        parts.firstNotNullOfOrNull { fault(value, it, where) }?.let { return it }
        wanted(value, schema)?.let { return "$where is ${shown(value)}: it must be $it" }
        return when (value) {
            is List<*> -> counted(value.size, schema, "Items", where)
                ?: value.withIndex().firstNotNullOfOrNull { (i, item) -> fault(item, schema(schema["items"]), "$where[$i]") }
            is Map<*, *> -> counted(value.size, schema, "Properties", where) ?: faultOfMembers(value, schema, where)
            else -> null
        }
    }

    private fun referred(pointer: String): Map<String, Any?> =
        pointer.removePrefix("#/").split("/").fold(root) { found, part -> found.child(part) }

    private fun faultOfMembers(value: Map<*, *>, schema: Map<String, Any?>, where: String): String? {
        schema.listed("required").firstOrNull { it !in value }?.let { return "${joined(where, "$it")} is missing" }
        val known = schema(schema["properties"])
        for ((name, member) in value) {
            fault(name, schema(schema["propertyNames"]), "a name")?.let { return "$where: $it" }
            val field = joined(where, "$name")
            if (name !in known && schema["additionalProperties"] == false) {
                return "$field is not known: ${known.keys.joinToString(", ")} may be there and nothing else"
            }
            val rule = if (name in known) known["$name"] else schema["additionalProperties"]
            fault(member, schema(rule), field)?.let { return it }
        }
        return null
    }

    private companion object {
        val PLAIN = Regex("[A-Za-z0-9_.+-]{1,128}")
        val TYPES: Map<String, Pair<String, (Any?) -> Boolean>> = mapOf(
            "null" to Pair("null") { it == null },
            "boolean" to Pair("true or false") { it is Boolean },
            "integer" to Pair("a whole number", ::isWhole),
            "number" to Pair("a number") { it is Number },
            "string" to Pair("a string") { it is String },
            "array" to Pair("a list") { it is List<*> },
            "object" to Pair("an object") { it is Map<*, *> },
        )

        @Suppress("UNCHECKED_CAST")
        fun schema(value: Any?): Map<String, Any?> = value as? Map<String, Any?> ?: emptyMap()

        fun Map<String, Any?>.listed(name: String) = this[name] as? List<*> ?: emptyList<Any?>()

        /** What the value itself must be and is not, in words. */
        fun wanted(value: Any?, schema: Map<String, Any?>): String? {
            val kinds = schema["type"]?.let { type -> (type as? List<*> ?: listOf(type)).map { TYPES.getValue("$it") } }
            if (kinds != null && kinds.none { it.second(value) }) return kinds.joinToString(" or ") { it.first }
            val allowed = if ("const" in schema) listOf(schema["const"]) else schema["enum"] as? List<*>
            if (allowed != null && allowed.none { same(it, value) }) return allowed.joinToString(" or ", transform = ::shown)
            if (value is Number) {
                val (least, most) = listOf("minimum", "maximum").map { schema[it] as? Number }
                if (least != null && value.toDouble() < least.toDouble()) return "at least $least"
                if (most != null && value.toDouble() > most.toDouble()) return "at most $most"
            }
            if (value is String) {
                val (least, most) = listOf("minLength", "maxLength").map { (schema[it] as? Number)?.toInt() }
                val count = value.codePointCount(0, value.length)
                if (count < (least ?: 0) || count > (most ?: count)) return "of ${least ?: 0} to ${most ?: "any"} letters"
                val pattern = schema["pattern"] as String?
                if (pattern != null && !Regex(pattern).containsMatchIn(value)) return "of the form ${schema["title"]}"
            }
            return null
        }

        fun counted(count: Int, schema: Map<String, Any?>, what: String, where: String): String? {
            val (least, most) = listOf("min$what", "max$what").map { (schema[it] as? Number)?.toInt() }
            val right = count >= (least ?: 0) && count <= (most ?: count)
            return if (right) null else "$where holds $count: it must hold ${least ?: 0} to ${most ?: "any"}"
        }

        fun same(one: Any?, other: Any?) =
            if (one is Number && other is Number) one.toDouble() == other.toDouble() else one == other

        fun joined(where: String, name: String): String {
            val part = if (PLAIN.matches(name)) name else shown(name)
            return if (where.isEmpty()) part else "$where.$part"
        }
    }
}

/** A whole number as JSON may write it, 4096.0 too. */
internal fun isWhole(value: Any?): Boolean = value is Long || value is Double && value % 1.0 == 0.0

/** A value on one line, cut short. */
internal fun shown(value: Any?): String = when (value) {
    is List<*> -> "a list"
    is Map<*, *> -> "an object"
    is String -> value.take(60).map { if (it in ' '..'~' && it != '"') "$it" else "\\u%04x".format(it.code) }
        .joinToString("", "\"", if (value.length > 60) "...\"" else "\"")
    else -> "$value"
}
