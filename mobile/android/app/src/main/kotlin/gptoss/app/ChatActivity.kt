package gptoss.app

import android.app.Activity
import android.os.Bundle
import android.system.Os
import android.view.ViewGroup.LayoutParams.MATCH_PARENT
import android.view.ViewGroup.LayoutParams.WRAP_CONTENT
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView
import gptoss.Chat
import gptoss.Delivery
import gptoss.Model
import gptoss.UserError
import java.io.File
import java.net.URL
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.concurrent.ExecutorService
import java.util.concurrent.Executors

/** A chat screen: brings the package, loads it, streams answers. Views of the platform only. */
class ChatActivity : Activity() {
    private lateinit var said: TextView
    private lateinit var scroll: ScrollView
    private lateinit var question: EditText
    private lateinit var button: Button
    private lateinit var delivery: Delivery
    private var model: Model? = null

    @Volatile
    private var chat: Chat? = null
    private var answering = false

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        Os.setenv("ORT_DISABLE_TELEMETRY", "1", true) // before ONNX Runtime starts
        show()
        val folder = File(filesDir, "package")
        delivery = Delivery(folder)
        work {
            if (!delivery.complete) bring()
            say(getString(R.string.loading))
            val loaded = Model.load(folder)
            model = loaded
            chat = loaded.chat(SimpleDateFormat("yyyy-MM-dd", Locale.ROOT).format(Date()))
            runOnUiThread {
                said.text = ""
                button.isEnabled = true
            }
        }
    }

    private fun show() {
        said = TextView(this)
        said.setTextIsSelectable(true)
        scroll = ScrollView(this)
        scroll.addView(said)
        question = EditText(this)
        question.hint = getString(R.string.ask)
        button = Button(this)
        button.text = getString(R.string.send)
        button.isEnabled = false
        button.setOnClickListener { if (answering) chat?.cancel() else ask() }
        val row = LinearLayout(this)
        row.addView(question, LinearLayout.LayoutParams(0, WRAP_CONTENT, 1f))
        row.addView(button)
        val screen = LinearLayout(this)
        screen.orientation = LinearLayout.VERTICAL
        screen.addView(scroll, LinearLayout.LayoutParams(MATCH_PARENT, 0, 1f))
        screen.addView(row)
        setContentView(screen)
    }

    /** From BuildConfig.PACKAGE_URL, else from the assets the app came with. */
    private fun bring() {
        val progress = { done: Long, all: Long -> say(getString(R.string.getting, done * 100 / maxOf(all, 1))) }
        val url = BuildConfig.PACKAGE_URL
        if (url.isNotEmpty()) delivery.download(URL(url), progress)
        else delivery.unpack({ assets.open("package/$it") }, progress)
    }

    private fun ask() {
        val text = question.text.toString().trim()
        val open = chat
        if (text.isEmpty() || open == null) return
        question.setText("")
        said.append("\n\n> $text\n\n")
        answer(true)
        work {
            try {
                var last: Int? = null // the message that was added to
                val reply = open.send(text) {
                    if (it.kind == "final") {
                        val apart = if (last == null || last == it.message) "" else "\n\n"
                        last = it.message
                        runOnUiThread { add(apart + it.text) }
                    }
                }
                reply.remark?.let { runOnUiThread { add("\n[$it]") } }
            } finally {
                runOnUiThread { answer(false) }
            }
        }
    }

    private fun answer(under: Boolean) {
        answering = under
        button.text = getString(if (under) R.string.stop else R.string.send)
    }

    private fun add(text: String) {
        said.append(text)
        scroll.fullScroll(ScrollView.FOCUS_DOWN)
    }

    private fun say(text: String) = runOnUiThread { said.text = text }

    private fun work(task: () -> Unit) {
        worker.execute {
            try {
                task()
            } catch (error: UserError) {
                runOnUiThread { said.append("\n${error.message}") }
            } catch (error: Exception) {
                runOnUiThread { said.append("\n$error") }
            } catch (_: OutOfMemoryError) {
                runOnUiThread { said.append("\n${getString(R.string.memory)}") }
            }
        }
    }

    override fun onDestroy() {
        delivery.cancel()
        chat?.cancel()
        worker.execute {
            chat?.close()
            model?.close()
        }
        super.onDestroy()
    }

    private companion object {
        /** One for all: what an activity that goes still holds is let go before the next one loads. */
        val worker: ExecutorService = Executors.newSingleThreadExecutor()
    }
}
