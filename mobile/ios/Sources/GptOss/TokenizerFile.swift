import Foundation

/// The characters byte-level BPE writes bytes as: printable ones are themselves (GPT-2).
private let byteOf: [Unicode.Scalar: UInt8] = {
    var found: [Unicode.Scalar: UInt8] = [:]
    var shifted: UInt32 = 256
    for byte in UInt8.min...UInt8.max {
        let printable = (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || byte >= 0xAE
        let scalar = printable ? Unicode.Scalar(UInt32(byte)) : Unicode.Scalar(shifted)
        if !printable { shifted += 1 }
        if let scalar { found[scalar] = byte }
    }
    return found
}()

/// The bytes that `piece` stands for; nil where a character stands for none.
private func read(_ piece: String) -> [UInt8]? {
    var bytes: [UInt8] = []
    for scalar in piece.unicodeScalars {
        guard let byte = byteOf[scalar] else { return nil }
        bytes.append(byte)
    }
    return bytes
}

/// The id that a JSON value is, or nil; more than any vocabulary has is none.
func tokenId(_ value: Any) -> Int? {
    guard let number = number(value), number >= 0, number < Double(1 << 24) else { return nil }
    return Int(exactly: number)
}

/// What a tokenizer.json holds. UserError where it is damaged, or asks for what this runtime has not.
struct TokenizerFile {
    let added: [AddedToken]
    let split: NSRegularExpression
    let wholePieces: Bool
    /// By their bytes.
    let ids: [[UInt8]: Int]
    /// Of tokens of the vocabulary, by id.
    let bytes: [[UInt8]]
    let bpe: Bpe

    init(_ content: Json, vocabSize: Int) throws {
        guard let model = content.members["model"] as? [String: Any] else { throw UserError("model is no object") }
        try checkModel(model, content.members["normalizer"])
        guard let vocabulary = model["vocab"] as? [String: Any] else { throw UserError("model.vocab is no object") }
        let entries = content.present("added_tokens") ?? [Any]()
        guard let entries = entries as? [Any] else { throw UserError("added_tokens is no list") }
        added = try entries.enumerated().map { try AddedToken($1, $0) }
        split = try splitPattern(Json(content.members["pre_tokenizer"] as? [String: Any] ?? [:]))
        wholePieces = model["ignore_merges"].flatMap(flag) ?? false
        var (ids, byId): ([[UInt8]: Int], [Int: [UInt8]]) = ([:], [:])
        for (piece, value) in vocabulary {
            guard let id = tokenId(value) else { throw UserError("model.vocab has the id \(shown(value))") }
            let known = read(piece)
            if let known { ids[known] = id }
            guard byId.updateValue(known ?? Array(piece.utf8), forKey: id) == nil else {
                throw UserError("model.vocab has the id \(id) twice")
            }
        }
        try checkAdded(added, ids, byId)
        let size = try checkIds(Set(byId.keys).union(added.map(\.id)), vocabSize)
        bytes = (0..<size).map { byId[$0] ?? [] }
        self.ids = ids
        bpe = try merges(model["merges"], ids)
    }
}

private func merges(_ given: Any?, _ ids: [[UInt8]: Int]) throws -> Bpe {
    guard let entries = given as? [Any] else { throw UserError("model.merges is no list") }
    let single = (UInt8.min...UInt8.max).map { Int32(ids[[$0]] ?? -1) }
    var bpe = Bpe(tokens: single, merges: entries.count)
    for (rank, entry) in entries.enumerated() {
        let pair = (entry as? String)?.components(separatedBy: " ") ?? entry as? [String] ?? []
        guard pair.count == 2 else { throw UserError("model.merges[\(rank)] is no pair: \(shown(entry))") }
        guard let left = read(pair[0]), let right = read(pair[1]), let first = ids[left], let second = ids[right],
            let made = ids[left + right]
        else { throw UserError("model.merges[\(rank)] is of no tokens: \(shown("\(pair[0]) \(pair[1])"))") }
        bpe.add(first, second, made)
    }
    return bpe
}

/// What else a tokenizer.json can ask for is refused: ids would be others.
private func checkModel(_ model: [String: Any], _ normalizer: Any?) throws {
    if let type = Json(model).present("type"), type as? String != "BPE" {
        throw UserError("model.type is \(shown(type)), not BPE")
    }
    let options = ["dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"]
    for name in options where isSet(model[name]) {
        throw UserError("model.\(name) is \(shown(model[name] ?? "")), which this runtime has not")
    }
    if isSet(normalizer) { throw UserError("normalizer is set, which this runtime has not") }
}

private func checkAdded(_ added: [AddedToken], _ ids: [[UInt8]: Int], _ byId: [Int: [UInt8]]) throws {
    var (contents, numbers): (Set<[UInt8]>, Set<Int>) = ([], [])
    for token in added {
        let other = ids[token.bytes] ?? token.id
        let taken = byId[token.id].map { $0 != token.bytes } ?? false
        if taken || other != token.id || !contents.insert(token.bytes).inserted || !numbers.insert(token.id).inserted {
            let text = String(decoding: token.bytes, as: UTF8.self)
            throw UserError("added_tokens has \(shown(text)) or its id \(token.id) twice")
        }
    }
}

/// Gives how many ids there are.
private func checkIds(_ known: Set<Int>, _ vocabSize: Int) throws -> Int {
    let size = (known.max() ?? -1) + 1
    if known.count < size, let hole = (0..<size).first(where: { !known.contains($0) }) {
        throw UserError("no token has the id \(hole), and others have higher ones")
    }
    if size > vocabSize { throw UserError("a token has the id \(size - 1): the model has \(vocabSize) ids") }
    return size
}
