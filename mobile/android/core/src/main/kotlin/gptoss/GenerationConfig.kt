package gptoss

/**
 * generation_config.json as people have it: how a model wants its tokens chosen, where it stops.
 *
 * null is as if absent; a filter that the file does not name is off: its author sampled without it.
 * UserError names the field that cannot be followed.
 */
internal object GenerationConfig {
    /** Greedy unless the file says do_sample; topK -1 is off, as elsewhere. */
    fun sampling(content: Map<String, Any?>): Sampling {
        fun number(name: String, default: Double, wanted: String, right: (Double) -> Boolean): Double {
            val value = content[name] ?: return default
            val found = (value as? Number)?.toDouble()
            if (found == null || !found.isFinite() || !right(found)) throw refusal(name, value, wanted)
            return found
        }
        val sample = content["do_sample"] ?: false
        return Sampling(
            temperature = number("temperature", 1.0, "a number, 0 or more") { it >= 0 },
            topK = maxOf(0, number("top_k", 0.0, "a whole number; 0 and -1 are off") { isWhole(it) && it >= -1 }.toInt()),
            topP = number("top_p", 1.0, "a number above 0 and at most 1") { it > 0 && it <= 1 },
            minP = number("min_p", 0.0, "a number from 0 to 1") { it in 0.0..1.0 },
            repetitionPenalty = number("repetition_penalty", 1.0, "a number above 0") { it > 0 },
            doSample = sample as? Boolean ?: throw refusal("do_sample", sample, "true or false"),
        )
    }

    /** `eos_token_id`, one id or several; null where it is absent or null. */
    fun stopIds(content: Map<String, Any?>): Set<Int>? {
        val ids = content["eos_token_id"] ?: return null
        val found = ids as? List<*> ?: listOf(ids)
        val right = found.all { isWhole(it) && (it as Number).toDouble() in 0.0..Int.MAX_VALUE.toDouble() }
        if (found.isEmpty() || !right) throw refusal("eos_token_id", ids, "a token's id or a list of them")
        return found.map { (it as Number).toInt() }.toSet()
    }

    private fun refusal(name: String, value: Any?, wanted: String) =
        UserError("$name is ${shown(value)}: it must be $wanted; correct it there")
}
