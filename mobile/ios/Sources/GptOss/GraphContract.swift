import COnnxRuntime

/// UserError names the manifest's field that the graph contradicts: the KV cache is made by what the
/// manifest says.
func checkGraph(_ graph: Graph, _ manifest: Manifest) throws {
    func agree<T: Equatable>(_ field: String, _ said: T, _ found: T) throws {
        guard said != found else { return }
        throw UserError(
            "\(Manifest.file): \(field) is \(said), but \(manifest.graph) has \(found): get the package again")
    }
    func tensor(_ among: [String: TensorInfo], _ wanted: String) throws -> TensorInfo {
        if let found = among[wanted] { return found }
        throw UserError(
            "\(manifest.graph): has no \(wanted), it is no graph of a GPT-OSS package: export it again")
    }
    /// Of a tensor along a dimension; a graph may leave it open.
    func agree(_ field: String, _ said: Int, _ tensor: TensorInfo, _ dimension: Int) throws {
        guard dimension < tensor.shape.count else {
            throw UserError(
                "\(Manifest.file): \(field) is \(said), but \(manifest.graph) has \(tensor.shape.count) dimensions: "
                    + "get the package again")
        }
        if tensor.shape[dimension] >= 0 { try agree(field, said, tensor.shape[dimension]) }
    }

    let (inputs, outputs) = try (graph.inputs(), graph.outputs())
    for wanted in ["input_ids", "attention_mask"] { _ = try tensor(inputs, wanted) }
    let layers = inputs.keys.filter { $0.hasPrefix("past_key_values.") }.count / 2
    try agree("the number of kv.layers", manifest.windows.count, layers)
    try agree("vocab_size", manifest.vocabSize, tensor(outputs, "logits"), 2)
    for layer in manifest.windows.indices {
        for part in ["key", "value"] {
            _ = try tensor(outputs, "present.\(layer).\(part)")
            let past = try tensor(inputs, "past_key_values.\(layer).\(part)")
            try agree("kv.dtype", manifest.int8Kv ? "int8" : "float32", past.type)
            try agree("kv.num_kv_heads", manifest.kvHeads, past, 1)
            try agree("kv.head_dim", manifest.headDim, past, 3)
        }
    }
}
