/// A token that a tokenizer.json adds to its vocabulary. A special one is written by id only: in a text
/// it is characters.
struct AddedToken {
    let id: Int
    let content: [Unicode.Scalar]
    let bytes: [UInt8]
    let special: Bool
    let singleWord: Bool
    let lstrip: Bool
    let rstrip: Bool
    let normalized: Bool

    /// An entry of `added_tokens`; UserError where it is not as tokenizers write them.
    init(_ entry: Any, _ number: Int) throws {
        let members = entry as? [String: Any] ?? [:]
        func on(_ name: String) throws -> Bool {
            guard let value = members[name].flatMap(flag) else { throw UserError("added_tokens[\(number)] is no token") }
            return value
        }
        special = try on("special")
        singleWord = try on("single_word")
        lstrip = try on("lstrip")
        rstrip = try on("rstrip")
        normalized = try on("normalized")
        guard let text = members["content"] as? String, !text.isEmpty else {
            throw UserError("added_tokens[\(number)] is no token")
        }
        content = Array(text.unicodeScalars)
        bytes = Array(text.utf8)
        guard let id = members["id"].flatMap(tokenId) else {
            throw UserError("added_tokens[\(number)] has the id \(shown(members["id"] ?? "none"))")
        }
        self.id = id
    }
}

/// Splits a text at its added tokens, as the tokenizers library does.
struct AddedTokens {
    // Those that ask for normalized text are looked for in what the others leave. Special ones are
    // found too and stay text: no other token begins inside of them. Of several, the longest.
    private let passes: [[Unicode.Scalar: [AddedToken]]]

    init(_ tokens: [AddedToken]) {
        passes = [false, true].map { after in tokens.filter { $0.normalized == after } }
            .filter { some in some.contains { !$0.special } }
            .map { some in
                let longest = some.sorted { $0.content.count > $1.content.count }
                return Dictionary(grouping: longest) { $0.content[0] }
            }
    }

    /// Gives texts between tokens to `text`, and the ids of tokens to `token`, in their order.
    func split(_ whole: String, text: (String) -> Void, token: (Int) -> Void) {
        if passes.isEmpty { text(whole) } else { split(0, Array(whole.unicodeScalars)[...], text, token) }
    }

    private func split(
        _ pass: Int, _ whole: ArraySlice<Unicode.Scalar>, _ text: (String) -> Void, _ token: (Int) -> Void
    ) {
        if whole.isEmpty { return }
        guard pass < passes.count else {
            var scalars = String.UnicodeScalarView()
            scalars.append(contentsOf: whole)
            return text(String(scalars))
        }
        var done = whole.startIndex
        var at = done
        while at < whole.endIndex {
            let found = passes[pass][whole[at]]?.first { whole[at...].starts(with: $0.content) }
            var start = at
            at += found?.content.count ?? 1
            guard let found, !found.special else { continue }
            if found.singleWord, isWord(whole[..<start].last) || isWord(whole[at...].first) { continue }
            if found.lstrip { while start > done, isSpace(whole[start - 1]) { start -= 1 } }
            if found.rstrip { while at < whole.endIndex, isSpace(whole[at]) { at += 1 } }
            split(pass + 1, whole[done..<start], text, token)
            token(found.id)
            done = at
        }
        split(pass + 1, whole[done...], text, token)
    }
}

/// Letters as Rust's regular expressions have them, and Unicode.
private func isWord(_ scalar: Unicode.Scalar?) -> Bool {
    guard let properties = scalar?.properties else { return false }
    if properties.isAlphabetic || properties.isJoinControl { return true }
    switch properties.generalCategory {
    case .nonspacingMark, .enclosingMark, .spacingMark, .decimalNumber, .connectorPunctuation: return true
    default: return false
    }
}
