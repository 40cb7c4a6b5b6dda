package gptoss

import ai.onnxruntime.NodeInfo
import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo

private val NAMES = mapOf(OnnxJavaType.INT8 to "int8", OnnxJavaType.FLOAT to "float32")

/** UserError names the manifest's field that the graph contradicts: the KV cache is made by what the manifest says. */
internal fun checkGraph(graph: OrtSession, manifest: Manifest) {
    val name = manifest.graph
    fun agree(field: String, said: Any, found: Any) {
        if (said != found) throw UserError("${Manifest.FILE}: $field is $said, but $name has $found: get the package again")
    }
    fun Map<String, NodeInfo>.tensor(wanted: String): TensorInfo = this[wanted]?.info as? TensorInfo
        ?: throw UserError("$name: has no $wanted, it is no graph of a GPT-OSS package: export it again")
    /** Of a tensor along a dimension; a graph may leave it open. */
    fun TensorInfo.agree(field: String, said: Int, dimension: Int) =
        agree(field, said, shape.getOrNull(dimension)?.let { if (it < 0) said else it.toInt() } ?: "${shape.size} dimensions")

    val (inputs, outputs) = graph.inputInfo to graph.outputInfo
    for (wanted in listOf("input_ids", "attention_mask")) inputs.tensor(wanted)
    agree("the number of kv.layers", manifest.layers.size, inputs.keys.count { it.startsWith("past_key_values.") } / 2)
    outputs.tensor("logits").agree("vocab_size", manifest.vocabSize, 2)
    for (layer in manifest.layers.indices) for (part in listOf("key", "value")) {
        outputs.tensor("present.$layer.$part")
        val past = inputs.tensor("past_key_values.$layer.$part")
        agree("kv.dtype", if (manifest.int8Kv) "int8" else "float32", NAMES[past.type] ?: past.type)
        past.agree("kv.num_kv_heads", manifest.kvHeads, 1)
        past.agree("kv.head_dim", manifest.headDim, 3)
    }
}
