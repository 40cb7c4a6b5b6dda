package gptoss.check

import gptoss.Delivery
import gptoss.Json
import gptoss.Manifest
import gptoss.Model
import gptoss.UserError
import java.io.File
import java.net.URL
import kotlin.concurrent.thread
import kotlin.system.exitProcess

/**
 * What an app does before it talks, for tests to look at: `Bring URL FOLDER [BYTES]` downloads a
 * package, from a folder unpacks it, and stops after BYTES; `Bring FOLDER` loads one; `Bring manifests
 * FILE` says of each line whether it is a manifest. A UserError is printed, exit 2.
 */
fun main(arguments: Array<String>) {
    try {
        when {
            arguments.size == 1 -> Model.load(File(arguments[0]), threads = 1).close()
            arguments[0] == "manifests" -> File(arguments[1]).forEachLine { println(verdict(it)) }
            else -> bring(arguments)
        }
        println("done")
    } catch (error: UserError) {
        println(error.message)
        exitProcess(2)
    }
}

private fun verdict(text: String): String {
    val verdicts = listOf({ Manifest.check(Json.members(text.reader())) }, { Manifest.read(text.reader()) }).map { read ->
        try {
            read()
            "taken"
        } catch (error: UserError) {
            "refused: ${error.message}"
        }
    }
    return verdicts[0] // the second, whether it is for a phone, has only to end in no other way
}

private fun bring(arguments: Array<String>) {
    val delivery = Delivery(File(arguments[1]), timeout = 1000)
    val most = arguments.getOrNull(2)?.toLong() ?: Long.MAX_VALUE
    println("complete: ${delivery.complete}")
    try {
        val progress = { done: Long, all: Long ->
            check(done <= all) { "$done of $all" }
            if (done >= most) thread { delivery.cancel() }.join() // another thread's, as an app's is
        }
        if (arguments[0].startsWith("http")) delivery.download(URL(arguments[0]), progress)
        else delivery.unpack({ File(arguments[0], it).inputStream() }, progress)
    } finally {
        println("complete: ${delivery.complete}")
    }
}
