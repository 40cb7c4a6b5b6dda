import Foundation

/// Byte-level BPE from a package's tokenizer.json. Special tokens are written by id only: text that
/// looks like one is text.
///
/// The package's tokenizer.onnx is not used: it needs onnxruntime-extensions 0.14, and 0.13.0 is
/// what is published for phones.
public final class Tokenizer {
    private struct Pair: Hashable {
        let left: Int32
        let right: Int32
    }

    private struct Merge {
        let rank: Int
        let id: Int32
    }

    private let special: [String: Int]
    private let specialIds: Set<Int>
    private let split: NSRegularExpression
    private var bytesOf: [[UInt8]]
    private var idOfByte = [Int32](repeating: 0, count: 256)
    private var merges: [Pair: Merge] = [:]

    public init(contentsOf file: URL) throws {
        let content = try Json(contentsOf: file)
        let model = try content.child("model")
        guard let ids = try model.child("vocab").members as? [String: Int],
            let pairs = model.members["merges"] as? [Any]
        else { throw UserError("\(file.lastPathComponent): no BPE model") }
        let added = try content.children("added_tokens").map { try ($0.text("content"), $0.whole("id")) }
        special = Dictionary(added) { $1 }
        specialIds = Set(special.values)
        bytesOf = Array(repeating: [], count: (ids.values.max() ?? -1) + 1)
        for (piece, id) in ids {
            bytesOf[id] = piece.unicodeScalars.compactMap { Tokenizer.byteOf[$0] }
            if bytesOf[id].count == 1 { idOfByte[Int(bytesOf[id][0])] = Int32(id) }
        }
        let steps = try content.child("pre_tokenizer").children("pretokenizers")
        let pattern = try steps.first?.child("pattern").text("Regex") ?? ""
        split = try NSRegularExpression(pattern: Tokenizer.portable(pattern))
        for (rank, entry) in pairs.enumerated() {
            let pair = entry as? [String] ?? (entry as? String ?? "").components(separatedBy: " ")
            guard pair.count == 2, let left = ids[pair[0]], let right = ids[pair[1]],
                let id = ids[pair[0] + pair[1]]
            else { throw UserError("merge \(rank) of the tokenizer is of no tokens") }
            merges[Pair(left: Int32(left), right: Int32(right))] = Merge(rank: rank, id: Int32(id))
        }
    }

    /// Ids of ordinary text.
    public func encode(_ text: String) -> [Int] {
        let string = text as NSString
        var found: [Int] = []
        for match in split.matches(in: text, range: NSRange(location: 0, length: string.length))
        where match.range.length > 0 {
            merge(Array(string.substring(with: match.range).utf8), into: &found)
        }
        return found
    }

    private func merge(_ word: [UInt8], into found: inout [Int]) {
        var parts = word.map { idOfByte[Int($0)] }
        while parts.count > 1 {
            var best: (place: Int, merge: Merge)?
            for place in 0..<(parts.count - 1) {
                if let merge = merges[Pair(left: parts[place], right: parts[place + 1])],
                    merge.rank < best?.merge.rank ?? Int.max
                {
                    best = (place, merge)
                }
            }
            guard let (place, merge) = best else { break }
            parts[place] = merge.id
            parts.remove(at: place + 1)
        }
        found += parts.map(Int.init)
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
        specialIds.contains(token) || !bytesOf.indices.contains(token) ? [] : bytesOf[token]
    }

    /// Text of `tokens`; bytes that are no UTF-8 give U+FFFD.
    public func decode(_ tokens: [Int]) -> String {
        String(decoding: tokens.flatMap(bytes), as: UTF8.self)
    }

    /// The characters byte-level BPE writes bytes as: printable ones are themselves (GPT-2).
    private static let byteOf: [Unicode.Scalar: UInt8] = {
        var found: [Unicode.Scalar: UInt8] = [:]
        var shifted: UInt32 = 256
        for byte in UInt8.min...UInt8.max {
            let printable =
                (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || byte >= 0xAE
            let scalar = printable ? Unicode.Scalar(UInt32(byte)) : Unicode.Scalar(shifted)
            if !printable { shifted += 1 }
            if let scalar { found[scalar] = byte }
        }
        return found
    }()

    // White space as Unicode has it: ICU's \s differs.
    private static let spaces =
        "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"

    /// The pattern with white space spelled out, in brackets and outside of them.
    private static func portable(_ pattern: String) -> String {
        var made = ""
        var bracketed = false
        var rest = pattern.unicodeScalars[...]
        while let first = rest.popFirst() {
            var part = String(first)
            if first == "\\", let escaped = rest.popFirst() { part.unicodeScalars.append(escaped) }
            if part == "[" { bracketed = true }
            if part == "]" { bracketed = false }
            switch part {
            case "\\s": made += bracketed ? spaces : "[\(spaces)]"
            case "\\S" where !bracketed: made += "[^\(spaces)]"
            default: made += part
            }
        }
        return made
    }
}
