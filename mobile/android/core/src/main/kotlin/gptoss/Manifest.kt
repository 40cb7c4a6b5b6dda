package gptoss

import java.io.File
import java.io.Reader
import java.security.MessageDigest

/** One layer's KV cache; `window` is null where it holds all tokens. */
data class KvLayer(val window: Int?)

/** A file of a package, by its name in the package's folder. */
data class PackageFile(val name: String, val size: Long, val sha256: String)

/** manifest.json, what an app needs of it: `content` is a valid one, `entry` what it says of the graph to run. */
class Manifest internal constructor(content: Map<String, Any?>, entry: Map<String, Any?>) {
    val name = content.text("name")
    val graph = entry.text("graph")
    val contextLength = content.whole("context_length")
    val vocabSize = content.whole("vocab_size")
    val kvHeads: Int
    val headDim: Int
    val int8Kv: Boolean
    val layers: List<KvLayer>
    val session: Map<String, String>
    val files: List<PackageFile>

    /** Of `files` those that an app reads: they gate loading, reports do not. */
    val reads: List<PackageFile>

    init {
        val kv = entry.child("kv")
        kvHeads = kv.whole("num_kv_heads")
        headDim = kv.whole("head_dim")
        int8Kv = kv.text("dtype") == "int8"
        layers = kv.children("layers").map { layer -> KvLayer(if (layer["windowed"] == true) layer.whole("window") else null) }
        session = (entry.child("session")["config"] as? Map<*, *>).orEmpty().entries.associate { "${it.key}" to "${it.value}" }
        files = content.child("files").map { (name, _) ->
            val file = content.child("files").child(name)
            PackageFile(name, (file["size"] as Number).toLong(), file.text("sha256"))
        }
        val links = if (graph.endsWith(".onnx")) content["links"] as? List<*> ?: emptyList<Any?>() else emptyList()
        reads = files.filter {
            val data = graph.endsWith(".onnx") && DATA.containsMatchIn(it.name)
            it.name == graph || it.name in TEXTS || it.name in links || data
        }
    }

    companion object {
        const val FILE = "manifest.json"

        /** Bytes of one: the published models' have 30 kB. */
        const val MOST_BYTES = 16 shl 20
        private val TEXTS = setOf("config.json", "generation_config.json", "tokenizer.json")
        private val DATA = Regex("\\.onnx\\.data(?:\\.[0-9]+)?(?![\\s\\S])") // how the exporter calls what graphs refer to

        private val schema by lazy {
            val stream = Manifest::class.java.getResourceAsStream("manifest.schema.json")
            Schema(checkNotNull(stream).reader().use(Json::members))
        }

        /** UserError where `text` is no valid manifest, or that of a package this app cannot run. */
        fun read(text: Reader): Manifest = naming(FILE) {
            val content = Json.members(text)
            check(content)
            Manifest(content, Device.here().choose(graphs(content)))
        }

        /** UserError where `folder` holds no package. */
        fun load(folder: File): Manifest {
            val file = File(folder, FILE)
            if (!file.isFile) throw UserError("$folder is not a package: it has no $FILE")
            if (file.length() > MOST_BYTES) throw UserError("$FILE: ${file.length()} bytes are too many for one")
            return file.bufferedReader().use(::read)
        }

        /** UserError names the first field that no runtime takes. */
        fun check(content: Map<String, Any?>) {
            val format = content["format"]
            if (format !is Number || format.toDouble() != 1.0) throw UserError("format ${shown(format)} is not known: update the app")
            val fault = schema.fault(content) ?: contradiction(content) ?: return
            throw UserError("$fault; the package is damaged or not to be trusted")
        }

        /** What a valid manifest says of each graph, the one its general fields describe first. */
        fun graphs(content: Map<String, Any?>): List<Map<String, Any?>> =
            if ("graphs" in content) content.children("graphs").ifEmpty { listOf(content) } else listOf(content)

        /** The first field that another one contradicts, in words. */
        private fun contradiction(content: Map<String, Any?>): String? {
            val listed = if ("graphs" in content) content.children("graphs") else emptyList()
            val names = HashSet<String>()
            for ((where, entry) in listOf("" to content) + listed.mapIndexed { i, entry -> "graphs[$i]." to entry }) {
                val name = entry.text("graph")
                if (name !in content.child("files")) return "${where}graph is $name: it must be among the files"
                if (where.isNotEmpty() && !names.add(name)) return "${where}graph is $name: it must be another than those before it"
                val place = entry.child("kv").children("layers").indexOfFirst { it["windowed"] == true && it["window"] == null }
                if (place >= 0) return "${where}kv.layers[$place].window is null: a windowed layer must have one"
            }
            return null
        }
    }
}

/** Where a package's file is; UserError where a link there leads out of `folder`. */
internal fun place(folder: File, name: String): File {
    val file = File(folder, name)
    if (!file.canonicalFile.startsWith(folder.canonicalFile)) throw UserError("$name is a link out of the package: get the package again")
    return file
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
