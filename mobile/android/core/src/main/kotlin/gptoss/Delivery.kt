package gptoss

import java.io.File
import java.io.InputStream
import java.io.RandomAccessFile
import java.net.HttpURLConnection
import java.net.URL

/**
 * Brings a package into a folder of the app's own, file by file, each checked by its SHA-256.
 *
 * What is there already and right is kept, a download goes on where it stopped, and the manifest is
 * written last: a folder with a manifest is complete.
 */
class Delivery(private val folder: File) {
    @Volatile
    private var cancelled = false

    /** True when all files of the manifest are there, by size. */
    val complete: Boolean
        get() = File(folder, Manifest.FILE).isFile &&
            Manifest.load(folder).files.all { File(folder, it.name).length() == it.size }

    /** Stops after the block under way. */
    fun cancel() {
        cancelled = true
    }

    /** From a web server's folder; `progress` is told bytes done and bytes in all. */
    fun download(base: URL, progress: (Long, Long) -> Unit = { _, _ -> }) {
        bring(progress) { name, from ->
            val connection = URL(base, name).openConnection() as HttpURLConnection
            if (from > 0) connection.setRequestProperty("Range", "bytes=$from-")
            val status = connection.responseCode
            if (status != 200 && status != 206) throw UserError("$base: $name: the server answered $status")
            Part(connection.inputStream, status == 206)
        }
    }

    /** From files the app came with: `open` is the asset manager's. */
    fun unpack(open: (String) -> InputStream, progress: (Long, Long) -> Unit = { _, _ -> }) {
        bring(progress) { name, _ -> Part(open(name), false) }
    }

    private class Part(val stream: InputStream, val continues: Boolean)

    private fun bring(progress: (Long, Long) -> Unit, open: (String, Long) -> Part) {
        cancelled = false
        folder.mkdirs()
        val text = open(Manifest.FILE, 0).stream.use { it.readBytes() }
        @Suppress("UNCHECKED_CAST")
        val manifest = Manifest(Json.read(text.inputStream().reader()) as Map<String, Any?>)
        val total = manifest.files.sumOf { it.size }
        var done = 0L
        for (file in manifest.files) {
            val target = File(folder, file.name)
            if (!(target.length() == file.size && sha256(target) == file.sha256)) {
                copy(file, target, open) { progress(done + it, total) }
            }
            done += file.size
            progress(done, total)
        }
        File(folder, Manifest.FILE).writeBytes(text)
    }

    private fun copy(file: PackageFile, target: File, open: (String, Long) -> Part, progress: (Long) -> Unit) {
        target.parentFile?.mkdirs()
        val partial = File(target.path + ".partial")
        val from = partial.length().takeIf { it < file.size } ?: 0
        val part = open(file.name, from)
        part.stream.use { input ->
            RandomAccessFile(partial, "rw").use { output ->
                val start = if (part.continues) from else 0
                output.setLength(start)
                output.seek(start)
                val block = ByteArray(1 shl 18)
                while (true) {
                    if (cancelled) throw UserError("stopped; it goes on from here the next time")
                    val count = input.read(block)
                    if (count < 0) break
                    output.write(block, 0, count)
                    progress(output.filePointer)
                }
            }
        }
        if (sha256(partial) != file.sha256) {
            partial.delete()
            throw UserError("${file.name}: what came is not what the manifest says: try again")
        }
        if (!partial.renameTo(target)) throw UserError("${file.name}: cannot be written")
    }
}
