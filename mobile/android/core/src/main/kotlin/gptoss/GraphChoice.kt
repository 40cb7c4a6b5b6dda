package gptoss

import ai.onnxruntime.OrtEnvironment

/** What there is to run a graph with. */
data class Device(
    /** ONNX Runtime's. */
    val version: String,
    /** ONNX Runtime's names; the one whose graphs suit it best first. */
    val providers: List<String>,
    /** As WebGPU names them. */
    val features: Set<String>,
    /** Element types of the KV caches it keeps. */
    val kv: List<String>,
    /** Runs graphs that make the present anew (`in_place` false). */
    val appends: Boolean,
) {
    /** Why a graph cannot run here; null where it can. */
    private fun refusal(entry: Map<String, Any?>): String? {
        val needed = entry.text("min_runtime")
        if (older(version, needed)) return "needs ONNX Runtime $needed or newer, the app has $version: update the app"
        val made = entry.child("session")["providers"] as List<*>
        if (made.none { it in providers }) return "is made for ${made.joinToString(", ")}: export it with --target android"
        val missing = requires(entry).filter { it !in features }
        if (missing.isNotEmpty()) return "needs ${missing.joinToString(", ")}, which this device lacks"
        val cache = entry.child("kv")
        if (cache["dtype"] !in kv) return "has a KV cache of ${cache["dtype"]}, not ${kv.joinToString(" or ")}: export it with --target android"
        if (!appends && cache["in_place"] == false) return "makes its KV cache anew at every run (in_place is false): export it with --target android"
        return null
    }

    /**
     * The graph to run, out of at least one: of those that can run here, the one made for the provider
     * ranked highest; of those the one that asks most of the device; of those the first. UserError says
     * why the first cannot where none can.
     */
    fun choose(entries: List<Map<String, Any?>>): Map<String, Any?> {
        val fit = entries.filter { refusal(it) == null }
        // What is made for another provider, but runs, comes behind all that is made for this one.
        fun place(entry: Map<String, Any?>): Int =
            providers.indexOf((entry.child("session")["providers"] as List<*>).first()).let { if (it < 0) providers.size else it }
        return fit.minWithOrNull(compareBy(::place, { -requires(it).size }))
            ?: throw UserError("${entries[0].text("graph")} ${refusal(entries[0])}")
    }

    companion object {
        /** This app's ONNX Runtime, on the CPU. */
        fun here(): Device {
            val environment = OrtEnvironment.getEnvironment()
            environment.setTelemetry(false) // nothing leaves the phone
            return Device(environment.version, listOf("CPUExecutionProvider"), emptySet(), listOf("float32", "int8"), false)
        }

        private fun requires(entry: Map<String, Any?>) = entry["requires"] as? List<*> ?: emptyList<Any?>()

        private fun older(version: String, wanted: String): Boolean {
            val (have, need) = release(version) to release(wanted)
            val differs = have.indices.firstOrNull { have[it] != need[it] } ?: return false
            return have[differs] < need[differs]
        }

        /** Leading numbers of a version: 1.32.0.dev1 and 1.32.0-dev.1 are 1, 32, 0, 0. */
        private fun release(version: String): List<Int> {
            val numbers = version.split("-", "+").first().split(".").map { part ->
                part.takeIf { it.isNotEmpty() && it.all { digit -> digit in '0'..'9' } }?.toIntOrNull()
            }
            return (numbers.takeWhile { it != null }.filterNotNull() + listOf(0, 0, 0, 0)).take(4)
        }
    }
}
