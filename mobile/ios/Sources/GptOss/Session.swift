/// Prompt tokens that a run takes: the memory plan counts with as many.
package let chunkSize = 64

/// How many are kept; the memory plan counts with as many.
private let mostSnapshots = 4

/// A graph with its KV cache: the running state of one sequence of at most `maxLength` tokens, which is
/// allocated at once. Not for several threads at a time.
package final class Session {
    let maxLength: Int
    /// Tokens that the KV cache holds.
    package private(set) var tokens: [Int] = []
    private let graph: Graph
    private let manifest: Manifest
    private let buffers: [KvBuffer]
    private let windowed: [KvBuffer]
    /// The windowed layers' rows after `length` tokens; by length.
    private var snapshots: [(length: Int, rows: [[UInt8]])] = []

    /// For checks: called after the graph has run; what it throws is a run that failed half-way.
    package var ran: () throws -> Void = {}

    /// UserError where the package has no such length.
    init(_ graph: Graph, _ manifest: Manifest, maxLength: Int) throws {
        let most = manifest.contextLength
        guard maxLength > 1, maxLength <= most else {
            throw UserError("maxLength is \(maxLength): it must be from 2 to the package's context length, \(most)")
        }
        (self.graph, self.manifest, self.maxLength) = (graph, manifest, maxLength)
        buffers = try manifest.windows.enumerated().flatMap { layer, window in
            try ["key", "value"].map {
                try KvBuffer(graph.api, "\(layer).\($0)", window: window, maxLength: maxLength, manifest)
            }
        }
        windowed = buffers.filter { $0.window != nil }
    }

    /// Tokens at the start that windowed layers no longer have rows of.
    package var evicted: Int { windowed.first?.firstPosition(tokens.count) ?? 0 }

    /// Forgets everything; the buffers stay.
    package func reset() { cut(0) }

    /// Feeds tokens; the logits after the last. UserError beyond `maxLength`, for an id outside the
    /// vocabulary and for no token: nothing has changed then. When the run fails, what is left is the
    /// longest intact prefix.
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
        for buffer in buffers {
            inputs["past_key_values.\(buffer.name)"] = buffer.tensor
            outputs["present.\(buffer.name)"] = buffer.tensor
        }
        do {
            let logits = try graph.run(inputs, outputs, logits: manifest.vocabSize)
            try ran()
            tokens += more
            return logits
        } catch {
            // Nothing was lost unless a windowed layer may have moved its rows.
            if !sameRows(end, tokens.count) { restore(tokens.count) }
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

    /// Makes the present length one that `rewind` can come back to exactly.
    package func snapshot() {
        if windowed.isEmpty { return }
        if snapshots.count == mostSnapshots {  // those stay that spare most tokens from being fed again
            let lengths = [0] + snapshots.map(\.length)
            let spared = zip(lengths.dropFirst(), lengths).map { $0 - $1 }
            snapshots.remove(at: spared.indices.min { spared[$0] < spared[$1] } ?? 0)
        }
        snapshots.append((tokens.count, windowed.map { $0.read(tokens.count) }))
    }

    /// Goes back to `length` tokens, at most as many as there are, or as near below it as can be
    /// restored exactly; returns it.
    ///
    /// Full layers only need the count. A windowed layer's rows are right when none was evicted since,
    /// else they come from a snapshot; with neither, nothing is left.
    @discardableResult
    package func rewind(_ length: Int) -> Int {
        precondition((0...tokens.count).contains(length), "cannot rewind to \(length) of \(tokens.count) tokens")
        if sameRows(tokens.count, length) { cut(length) } else { restore(length) }
        return tokens.count
    }

    /// Whether the windowed rows after `length` tokens begin with those after `shorter`.
    private func sameRows(_ length: Int, _ shorter: Int) -> Bool {
        windowed.allSatisfy { $0.firstPosition(length) == $0.firstPosition(shorter) }
    }

    /// Restores the longest prefix of at most `length` tokens that a snapshot holds, or none.
    private func restore(_ length: Int) {
        // A later snapshot serves too when nothing was evicted between the two.
        let fit = snapshots.filter { $0.length <= length || sameRows($0.length, length) }
        let best = fit.max { min($0.length, length) < min($1.length, length) }
        for (buffer, rows) in zip(windowed, best?.rows ?? []) { buffer.write(rows) }
        cut(min(best?.length ?? 0, length))
    }

    private func cut(_ length: Int) {
        tokens.removeSubrange(length...)
        snapshots.removeAll { $0.length > length }
    }

    /// Keeps what the cache has in common with `prompt`; how many tokens need no feeding. At least one
    /// is left to feed: the logits after it are what a reply starts from. UserError as in `feed`.
    package func reuse(_ prompt: [Int]) throws -> Int {
        try check(prompt, "the prompt's tokens")
        return rewind(zip(tokens, prompt.dropLast()).prefix { $0 == $1 }.count)
    }
}
