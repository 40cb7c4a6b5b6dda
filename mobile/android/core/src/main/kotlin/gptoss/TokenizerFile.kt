package gptoss

/** The characters byte-level BPE writes bytes as: printable ones are themselves (GPT-2). */
internal object ByteAlphabet {
    private val CHARS: CharArray = run {
        var shifted = 256
        CharArray(256) {
            val printable = it in 0x21..0x7e || it in 0xa1..0xac || it in 0xae..0xff
            if (printable) it.toChar() else (shifted++).toChar()
        }
    }
    private val BYTES: Map<Char, Byte> = CHARS.indices.associate { CHARS[it] to it.toByte() }

    fun write(bytes: ByteArray): String = String(CharArray(bytes.size) { CHARS[bytes[it].toInt() and 255] })

    /** The bytes that `piece` stands for; its own where a character stands for none. */
    fun read(piece: String): ByteArray =
        if (piece.all { it in BYTES }) ByteArray(piece.length) { BYTES.getValue(piece[it]) } else piece.toByteArray()
}

/** The id that a JSON value is, or null; more than any vocabulary has is none. */
internal fun tokenId(value: Any?): Int? = (value as? Long)?.takeIf { it in 0 until (1 shl 24) }?.toInt()

/** What a tokenizer.json holds. UserError where it is damaged, or asks for what this runtime has not. */
internal class TokenizerFile(content: Map<String, Any?>, vocabSize: Int) {
    val ids: Map<String, Int>
    val added: List<AddedToken> = AddedTokens.read(content["added_tokens"])
    val split = splitPattern(content["pre_tokenizer"])
    val wholePieces: Boolean
    val bpe: Bpe
    private val pieces: Array<String?>

    init {
        // Not kept: what was read takes several times the memory of what is made of it.
        val model = content["model"] as? Map<*, *> ?: throw UserError("model is no object")
        checkModel(model, content["normalizer"])
        ids = vocabulary(model["vocab"])
        wholePieces = model["ignore_merges"] == true
        checkAdded()
        pieces = arrayOfNulls(checkIds(vocabSize))
        for ((piece, id) in ids) pieces[id] = piece
        val single = IntArray(256) { ids[ByteAlphabet.write(byteArrayOf(it.toByte()))] ?: -1 }
        bpe = Bpe(single, merges(model["merges"]))
    }

    /** Bytes of a token of the vocabulary; none for other ids. */
    fun bytes(id: Int): ByteArray = pieces.getOrNull(id)?.let(ByteAlphabet::read) ?: ByteArray(0)

    private fun vocabulary(given: Any?): Map<String, Int> {
        if (given !is Map<*, *>) throw UserError("model.vocab is no object")
        val found = HashMap<String, Int>(2 * given.size)
        for ((piece, value) in given) {
            found["$piece"] = tokenId(value) ?: throw UserError("model.vocab has the id ${shown(value)}")
        }
        return found
    }

    private fun merges(given: Any?): Merges {
        if (given !is List<*>) throw UserError("model.merges is no list")
        val merges = Merges(given.size)
        given.forEachIndexed { rank, entry ->
            val pair = if (entry is String) entry.split(" ") else entry as? List<*>
            if (pair?.size != 2) throw UserError("model.merges[$rank] is no pair: ${shown(entry)}")
            val (left, right) = pair
            val made = ids["$left$right"].takeIf { left is String && right is String }
            val (first, second) = Pair(ids[left], ids[right])
            if (first == null || second == null || made == null) {
                throw UserError("model.merges[$rank] is of no tokens: ${shown("$left $right")}")
            }
            merges.add(first, second, made)
        }
        return merges
    }

    /** What else a tokenizer.json can ask for is refused: ids would be others. */
    private fun checkModel(model: Map<*, *>, normalizer: Any?) {
        val type = model["type"] ?: "BPE"
        if (type != "BPE") throw UserError("model.type is ${shown(type)}, not BPE")
        for (option in listOf("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")) {
            if (set(model[option])) throw UserError("model.$option is ${shown(model[option])}, which this runtime has not")
        }
        if (set(normalizer)) throw UserError("normalizer is set, which this runtime has not")
    }

    private fun checkAdded() {
        val byId = ids.entries.associate { (piece, id) -> id to piece }
        if (byId.size < ids.size) throw UserError("model.vocab has an id twice")
        for (token in added) {
            val bytes = token.content.toByteArray()
            val other = ids[ByteAlphabet.write(bytes)]
            val taken = other != token.id && byId[token.id]?.let { !ByteAlphabet.read(it).contentEquals(bytes) } == true
            if (taken || (other != null && other != token.id)) {
                throw UserError("added_tokens has ${shown(token.content)} or its id ${token.id} twice")
            }
        }
        for (twice in listOf(added.map { it.content }, added.map { it.id })) {
            val one = twice.groupingBy { it }.eachCount().entries.firstOrNull { it.value > 1 } ?: continue
            throw UserError("added_tokens has ${shown(one.key)} twice")
        }
    }

    /** Gives how many ids there are. */
    private fun checkIds(vocabSize: Int): Int {
        val known = ids.values.toHashSet().apply { addAll(added.map { it.id }) }
        val size = (known.maxOrNull() ?: -1) + 1
        if (known.size < size) {
            throw UserError("no token has the id ${(0 until size).first { it !in known }}, and others have higher ones")
        }
        if (size > vocabSize) throw UserError("a token has the id ${size - 1}: the model has $vocabSize ids")
        return size
    }
}
