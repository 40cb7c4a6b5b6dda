import Foundation

/// Byte-level BPE from a package's tokenizer.json. Special tokens are written by id only: text that
/// looks like one is text.
///
/// The package's tokenizer.onnx is not used: it needs onnxruntime-extensions 0.14, and 0.13.0 is
/// what is published for phones.
public final class Tokenizer {
    private let file: TokenizerFile
    private let added: AddedTokens
    private let addedById: [Int: AddedToken]
    private let special: [String: Int]

    /// UserError says what is wrong with the file.
    public init(contentsOf file: URL, vocabSize: Int = .max) throws {
        let content = try Json(contentsOf: file)
        self.file = try naming(file.lastPathComponent) { try TokenizerFile(content, vocabSize: vocabSize) }
        let tokens = self.file.added
        added = AddedTokens(tokens)
        addedById = Dictionary(tokens.map { ($0.id, $0) }) { $1 }
        special = Dictionary(tokens.filter(\.special).map { (String(decoding: $0.bytes, as: UTF8.self), $0.id) }) { $1 }
    }

    /// Ids of ordinary text.
    public func encode(_ text: String) -> [Int] {
        var ids: [Int] = []
        added.split(text, text: { encode($0, into: &ids) }, token: { ids.append($0) })
        return ids
    }

    private func encode(_ text: String, into ids: inout [Int]) {
        let string = text as NSString
        var done = 0
        func piece(_ end: Int) {
            guard done < end else { return }
            let bytes = Array(string.substring(with: NSRange(location: done, length: end - done)).utf8)
            if file.wholePieces, let id = file.ids[bytes] { ids.append(id) } else { file.bpe.encode(bytes, into: &ids) }
            done = end
        }
        for match in file.split.matches(in: text, range: NSRange(location: 0, length: string.length)) {
            piece(match.range.location)
            piece(match.range.location + match.range.length)
        }
        piece(string.length)
    }

    /// Id of the special token `name`; UserError when there is none.
    public func special(_ name: String) throws -> Int {
        guard let id = special[name] else {
            throw UserError("cannot chat: the tokenizer has no special token \(name)")
        }
        return id
    }

    public func hasSpecial(_ name: String) -> Bool { special[name] != nil }

    /// Bytes of one token; none for special tokens and for ids beyond the vocabulary.
    public func bytes(_ token: Int) -> [UInt8] {
        if let added = addedById[token] { return added.special ? [] : added.bytes }
        return file.bytes.indices.contains(token) ? file.bytes[token] : []
    }

    /// Text of `tokens`; bytes that are no UTF-8 give U+FFFD.
    public func decode(_ tokens: [Int]) -> String {
        String(decoding: tokens.flatMap(bytes), as: UTF8.self)
    }
}
