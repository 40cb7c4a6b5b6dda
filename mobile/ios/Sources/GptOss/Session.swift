import COnnxRuntime

/// Prompt tokens that a run takes: the memory plan counts with as many.
package let chunkSize = 64

/// A graph with its KV cache, for one sequence of at most `maxLength` tokens.
///
/// Past and present are one buffer, so a run writes in place. A sliding layer's holds its window
/// and what a chunk adds.
package final class Session {
    let maxLength: Int
    private let graph: Graph
    private let manifest: Manifest
    private var caches: [(name: String, windowed: Bool, rows: Int, tensor: Tensor)] = []
    package private(set) var tokens: [Int] = []
    private var saved: (tokens: [Int], rows: [[UInt8]])?  // of the first of `tokens`, always

    /// For checks: called after the graph has run; what it throws is a run that failed half-way.
    package var ran: () throws -> Void = {}

    init(_ graph: Graph, _ manifest: Manifest, maxLength: Int) throws {
        (self.graph, self.manifest, self.maxLength) = (graph, manifest, maxLength)
        let type = manifest.int8Kv ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
        for (layer, window) in manifest.windows.enumerated() {
            for part in ["key", "value"] {
                let rows = window.map { $0 + chunkSize - 1 } ?? maxLength
                let shape = [1, manifest.kvHeads, rows, manifest.headDim]
                let buffer = Buffer(count: shape.reduce(manifest.int8Kv ? 1 : 4, *))
                let tensor = try Tensor(graph.api, buffer, type, shape)
                caches.append(("\(layer).\(part)", window != nil, rows, tensor))
            }
        }
    }

    /// Feeds tokens; the logits after the last. UserError beyond `maxLength`, for an id outside the
    /// vocabulary and for no token: nothing has changed then. A run that fails leaves `tokens`.
    package func feed(_ more: [Int]) throws -> [Float] {
        try check(more, "the tokens")
        guard !more.isEmpty else { throw UserError("no token is fed: feed at least one") }
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
        do {
            let logits = try graph.run(inputs, outputs, logits: manifest.vocabSize)
            try ran()
            tokens += more
            return logits
        } catch {
            // A sliding layer that had no room for them may have moved its rows.
            if caches.contains(where: { $0.windowed && end > $0.rows }) { restore() }
            throw error
        }
    }

    private func check(_ ids: [Int], _ what: String) throws {
        let size = manifest.vocabSize
        guard let place = ids.firstIndex(where: { !(0..<size).contains($0) }) else { return }
        throw UserError(
            "\(what) have \(ids[place]) at position \(place): the vocabulary has \(size) tokens, "
                + "ids from 0 to \(size - 1)")
    }

    /// Make the present length one that `reuse` can come back to.
    package func snapshot() {
        saved = (tokens, caches.filter(\.windowed).map { Array($0.tensor.buffer.bytes) })
    }

    /// Back to the snapshot, or to nothing.
    private func restore() {
        for (cache, rows) in zip(caches.filter(\.windowed), saved?.rows ?? []) {
            cache.tensor.buffer.bytes.copyBytes(from: rows)
        }
        tokens = saved?.tokens ?? []
    }

    /// Keeps what the cache has in common with `prompt`; how many tokens need no feeding. UserError as in `feed`.
    package func reuse(_ prompt: [Int]) throws -> Int {
        try check(prompt, "the prompt's tokens")
        let fits = { (known: [Int]) in known.count < prompt.count && prompt.starts(with: known) }
        if !fits(tokens) {
            if let kept = saved, !fits(kept.tokens) { saved = nil }  // full layers' rows are written over
            restore()
        }
        return tokens.count
    }
}
