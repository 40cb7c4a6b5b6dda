package gptoss

import java.io.ByteArrayOutputStream
import java.io.File
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import java.io.RandomAccessFile
import java.net.HttpURLConnection
import java.net.URI
import java.net.URL

/**
 * Brings a package into a folder of the app's own, file by file, each checked by its SHA-256.
 *
 * What is there already and right is kept, a download goes on where it stopped, and the manifest is
 * written last: a folder with a manifest is complete. `timeout` is how many milliseconds a server
 * may keep silent. Whatever fails is a UserError.
 */
class Delivery(private val folder: File, private val timeout: Int = 30_000) {
    @Volatile
    private var cancelled = false

    /** True when all files that an app reads are there, by size. */
    val complete: Boolean
        get() = try {
            Manifest.load(folder).reads.all { place(folder, it.name).length() == it.size }
        } catch (_: UserError) {
            false
        }

    /** Stops after the block under way, for good. From any thread. */
    fun cancel() {
        cancelled = true
    }

    /** From a web server's folder; `progress` is told bytes done and bytes in all. */
    fun download(base: URL, progress: (Long, Long) -> Unit = { _, _ -> }) {
        val root = URI(if (base.path.endsWith("/")) "$base" else "$base/")
        bring(progress) { name, from ->
            val address = root.resolve(URI(null, null, "./$name", null)).toURL()
            val connection = address.openConnection() as? HttpURLConnection ?: throw UserError("$base is no web address")
            connection.connectTimeout = timeout
            connection.readTimeout = timeout
            if (from > 0) connection.setRequestProperty("Range", "bytes=$from-")
            val status = connection.responseCode
            if (status != 200 && status != 206) throw UserError("$base: $name: the server answered $status")
            Part(connection.inputStream, status == 206)
        }
    }

    /** From files the app came with: `open` is the asset manager's. */
    fun unpack(open: (String) -> InputStream, progress: (Long, Long) -> Unit = { _, _ -> }) {
        bring(progress) { name, _ ->
            try {
                Part(open(name), false)
            } catch (_: FileNotFoundException) {
                throw UserError("$name did not come with the app: build it with the package, or with its address")
            }
        }
    }

    private class Part(val stream: InputStream, val continues: Boolean)

    private fun bring(progress: (Long, Long) -> Unit, open: (String, Long) -> Part) {
        try {
            val text = open(Manifest.FILE, 0).stream.use(::manifest)
            val manifest = Manifest.read(text.inputStream().reader())
            folder.mkdirs()
            val wanted = manifest.files.filterNot(::isHere)
            val missing = wanted.sumOf { it.size - partial(it).length() }
            val free = folder.usableSpace
            if (missing > free) throw UserError("the package needs ${missing shr 20} MiB, ${free shr 20} are free: make room for it")
            // Until all of the new files are here, the folder is no package, nor the one it was.
            if (wanted.isNotEmpty()) File(folder, Manifest.FILE).delete()
            val total = manifest.files.sumOf { it.size }
            var done = total - wanted.sumOf { it.size }
            for (file in wanted) {
                copy(file, open) { progress(done + it, total) }
                done += file.size
                progress(done, total)
            }
            val whole = File(folder, "${Manifest.FILE}.partial")
            whole.writeBytes(text)
            rename(whole, Manifest.FILE)
        } catch (failure: IOException) {
            throw UserError("the package did not come: ${failure.message ?: failure}")
        }
    }

    /** A server's answer may never end. */
    private fun manifest(stream: InputStream): ByteArray {
        val text = ByteArrayOutputStream()
        val block = ByteArray(1 shl 14)
        while (text.size() <= Manifest.MOST_BYTES) {
            goOn()
            val count = stream.read(block)
            if (count < 0) return text.toByteArray()
            text.write(block, 0, count)
        }
        throw UserError("${Manifest.FILE}: more than ${Manifest.MOST_BYTES} bytes are too many for one")
    }

    private fun partial(file: PackageFile) = place(folder, "${file.name}.partial")

    private fun isHere(file: PackageFile): Boolean {
        val target = place(folder, file.name)
        return target.isFile && target.length() == file.size && sha256(target) { goOn() } == file.sha256
    }

    private fun goOn() {
        if (cancelled) throw UserError("stopped; it goes on from here the next time")
    }

    private fun copy(file: PackageFile, open: (String, Long) -> Part, progress: (Long) -> Unit) {
        val partial = partial(file)
        partial.parentFile?.mkdirs()
        if (partial.length() != file.size) fetch(file, partial, open, progress)
        if (partial.length() < file.size) throw IOException("${file.name} was cut short; it goes on from here the next time")
        if (sha256(partial) { goOn() } != file.sha256) {
            partial.delete()
            throw UserError("${file.name}: what came is not what the manifest says: try again")
        }
        rename(partial, file.name)
    }

    private fun fetch(file: PackageFile, partial: File, open: (String, Long) -> Part, progress: (Long) -> Unit) {
        val from = partial.length().takeIf { it < file.size } ?: 0
        val part = open(file.name, from)
        part.stream.use { input ->
            RandomAccessFile(partial, "rw").use { output ->
                val start = if (part.continues) from else 0
                output.setLength(start)
                output.seek(start)
                val block = ByteArray(1 shl 18)
                while (output.filePointer <= file.size) { // one that is too long is wrong already
                    goOn()
                    val count = input.read(block)
                    if (count < 0) break
                    output.write(block, 0, count)
                    progress(minOf(output.filePointer, file.size))
                }
            }
        }
    }

    private fun rename(whole: File, name: String) {
        if (!whole.renameTo(place(folder, name))) throw IOException("$name cannot be written")
    }
}
