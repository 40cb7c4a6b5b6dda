package gptoss

import java.io.File
import java.io.Reader
import java.security.MessageDigest

/** One layer's KV cache; `window` is null where it holds all tokens. */
data class KvLayer(val window: Int?)

/** A file of a package, by its name in the package's folder. */
data class PackageFile(val name: String, val size: Long, val sha256: String)

/** manifest.json, what an app needs of it. */
class Manifest(content: Map<String, Any?>) {
    val name = content.text("name")
    val graph: String
    val minRuntime: String
    val contextLength = content.whole("context_length")
    val vocabSize = content.whole("vocab_size")
    val kvHeads: Int
    val headDim: Int
    val int8Kv: Boolean
    val layers: List<KvLayer>
    val session: Map<String, String>
    val files: List<PackageFile>

    init {
        if (content.whole("format") != 1) throw UserError("the package's format is not known: update the app")
        // Of several graphs, the first that a CPU runs.
        val graphs = (content["graphs"] as? List<*>).orEmpty().filterIsInstance<Map<String, Any?>>()
        val chosen = (graphs.ifEmpty { listOf(content) })
            .firstOrNull { (it["requires"] as? List<*>).isNullOrEmpty() && CPU in providers(it) }
            ?: throw UserError("the package is not for a phone: export it with --target android")
        graph = chosen.text("graph")
        minRuntime = chosen.text("min_runtime")
        val kv = chosen.child("kv")
        kvHeads = kv.whole("num_kv_heads")
        headDim = kv.whole("head_dim")
        int8Kv = kv.text("dtype") == "int8"
        if (!int8Kv && kv.text("dtype") != "float32" || kv["in_place"] == false) {
            throw UserError("the package's KV cache is not a phone's: export it with --target android")
        }
        layers = kv.children("layers").map { layer -> KvLayer(if (layer["windowed"] == true) layer.whole("window") else null) }
        session = chosen.child("session").child("config").mapValues { "${it.value}" }
        files = content.child("files").map { (name, entry) ->
            if (name == FILE || name.split("/").any { it in setOf("", ".", "..") }) throw UserError("$name: no name of a package's file")
            val size = (entry as? Map<*, *>)?.get("size") as? Number ?: throw UserError("$name has no size")
            PackageFile(name, size.toLong(), entry["sha256"] as? String ?: throw UserError("$name has no sha256"))
        }
        if (files.none { it.name == graph }) throw UserError("the package lacks its graph $graph")
    }

    companion object {
        const val FILE = "manifest.json"
        private const val CPU = "CPUExecutionProvider"

        private fun providers(graph: Map<String, Any?>) = graph.child("session")["providers"] as? List<*> ?: emptyList<Any>()

        /** UserError where `text` is no manifest, or that of a package no phone can run. */
        fun read(text: Reader): Manifest = try {
            Manifest(Json.members(text))
        } catch (failure: UserError) {
            throw UserError("$FILE: ${failure.message}")
        }

        /** UserError where `folder` holds no package. */
        fun load(folder: File): Manifest {
            val file = File(folder, FILE)
            if (!file.isFile) throw UserError("$folder is not a package: it has no $FILE")
            return file.bufferedReader().use(::read)
        }
    }
}

/** SHA-256 of a file, in hexadecimal; `progress` is told the bytes read. */
fun sha256(file: File, progress: (Long) -> Unit = {}): String {
    val digest = MessageDigest.getInstance("SHA-256")
    file.inputStream().use { input ->
        val block = ByteArray(1 shl 20)
        while (true) {
            val count = input.read(block)
            if (count < 0) break
            digest.update(block, 0, count)
            progress(count.toLong())
        }
    }
    return digest.digest().joinToString("") { "%02x".format(it) }
}
