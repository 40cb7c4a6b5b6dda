import COnnxRuntime

/// Prompt tokens that a run takes: the memory plan counts with as many.
let chunkSize = 64

/// A graph with its KV cache, for one sequence of at most `maxLength` tokens.
///
/// Past and present are one buffer, so a run writes in place. A sliding layer's holds its window
/// and what a chunk adds.
final class Session {
    let maxLength: Int
    private let graph: Graph
    private let manifest: Manifest
    private var caches: [(name: String, windowed: Bool, tensor: Tensor)] = []
    private(set) var tokens: [Int] = []
    private var saved: (tokens: [Int], rows: [[UInt8]])?

    init(_ graph: Graph, _ manifest: Manifest, maxLength: Int) throws {
        (self.graph, self.manifest, self.maxLength) = (graph, manifest, maxLength)
        let type = manifest.int8Kv ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
        for (layer, window) in manifest.windows.enumerated() {
            for part in ["key", "value"] {
                let shape = [1, manifest.kvHeads, window.map { $0 + chunkSize - 1 } ?? maxLength, manifest.headDim]
                let buffer = Buffer(count: shape.reduce(manifest.int8Kv ? 1 : 4, *))
                let tensor = try Tensor(graph.api, buffer, type, shape)
                caches.append(("\(layer).\(part)", window != nil, tensor))
            }
        }
    }

    /// Feeds tokens; the logits after the last. UserError beyond `maxLength`.
    func feed(_ more: [Int]) throws -> [Float] {
        let end = tokens.count + more.count
        guard end <= maxLength else {
            throw UserError("\(end) tokens are more than the \(maxLength) there is room for: start a new chat")
        }
        var inputs = ["input_ids": try Tensor(graph.api, more)]
        inputs["attention_mask"] = try Tensor(graph.api, Array(repeating: 1, count: end))
        var outputs: [String: Tensor] = [:]
        for cache in caches {
            inputs["past_key_values.\(cache.name)"] = cache.tensor
            outputs["present.\(cache.name)"] = cache.tensor
        }
        let logits = try graph.run(inputs, outputs, logits: manifest.vocabSize)
        tokens += more
        return logits
    }

    /// Make the present length one that `reuse` can come back to.
    func snapshot() {
        saved = (tokens, caches.filter(\.windowed).map { Array($0.tensor.buffer.bytes) })
    }

    /// Keeps what the cache has in common with `prompt`; how many tokens need no feeding.
    func reuse(_ prompt: [Int]) -> Int {
        let fits = { (known: [Int]) in known.count < prompt.count && prompt.starts(with: known) }
        if !fits(tokens) {
            if let saved, fits(saved.tokens) {
                for (cache, rows) in zip(caches.filter(\.windowed), saved.rows) {
                    cache.tensor.buffer.bytes.copyBytes(from: rows)
                }
                tokens = saved.tokens
            } else {
                tokens = []
            }
        }
        return tokens.count
    }
}
