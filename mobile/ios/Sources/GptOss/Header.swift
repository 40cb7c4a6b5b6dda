import Foundation

/// A message's header as a model wrote it, and what it was understood to be.
///
/// `[role] [to=name] [<|channel|>name] [to=name] [<|constrain|>type]`, in any order, with words too
/// many or too few.
struct Header {
    /// Clean and without its content: no mark stays in a name as letters.
    var message: Message
    /// Named without `to=`: a call if the message ends as one.
    var tool: String?
    /// It has a channel that the format does not have.
    var unnamed = false
    /// Nothing else stands in it.
    var clean = true

    /// The header of text that has none.
    init(channel: String) {
        message = Message("assistant", "", channel: channel)
    }

    /// Reads `text`; `known` is its author where one is known, else empty, `tools` the known tools' names.
    init(_ text: String, _ known: String, _ tools: Set<String>) {
        // A channel whose mark is missing sticks to the role.
        var header = text
        if let stuck = stuckChannel(header) { header = "assistant\(channelMark)\(stuck.group)\(stuck.rest)" }
        header = header.replacingOccurrences(
            of: "\(space)*\(mark)\(space)*", with: " \(constrainMark)", options: .regularExpression)
        var role = known
        var channel: String?
        var recipient: String?
        var inRole = false
        var marked = false
        var more: [String] = []  // beyond role, channel and recipient
        var types: [String] = []  // behind <|constrain|>
        for word in words(replaced(header, channelMark, " \(channelMark) ")) {
            if word == channelMark {
                marked = true
            } else if word.begins(with: "to=") {
                let name = nameIn(String(word.unicodeScalars.dropFirst(3)))
                if !name.isEmpty { (recipient, inRole) = (name, !marked) }
            } else if word.begins(with: constrainMark) {
                if isType(word) { types.append(word) }
            } else if channels.contains(word) && !(marked && !more.isEmpty) {
                channel = channel ?? word
            } else if role.isEmpty && !marked {
                role = nameIn(word)
            } else if word != role {
                more.append(word)
            }
        }
        if role.isEmpty { role = "assistant" }
        let tool = recipient != nil ? nil : ([role] + more).map(nameIn).first { namesTool($0, tools) }
        more = more.filter { tool == nil || nameIn($0) != tool }
        let unnamed = channel == nil && marked && (!more.isEmpty || tool != nil)
        // Behind its mark, or the only word: several are text.
        var type = types.first ?? (more.count == 1 && !unnamed ? more[0] : nil)
        if let word = type, !isType(word) { type = nil }
        clean = more.allSatisfy { $0 == type }
        (self.tool, self.unnamed) = (tool, unnamed)
        message = Message(role, "", channel: channel, recipient: recipient, contentType: type)
        if message.isCall {  // not for the user to read
            message.channel = channel == nil || channel == "final" ? "commentary" : channel
            message.recipientInRole = inRole
        } else if role == "assistant" {
            (message.channel, message.recipient) = (channel ?? "final", nil)
        }
    }

    /// Of a header that no content followed: the channel it names, and what else it says. The channel
    /// is nil where it names one that the format does not have, "" where it names none.
    static func withoutContent(_ text: String, _ role: String) -> (channel: String?, said: String) {
        let named = namedChannel(text)
        let channel = named?.group ?? (parted(text, channelMark) == nil ? "" : nil)
        var said = named?.rest ?? text
        if role.isEmpty { said = assistant(said)?.rest ?? said }
        said = leadingType(said)?.rest ?? said
        return (channel, replaced(replaced(said, channelMark, ""), constrainMark, ""))
    }
}

/// Whether `word` is a tool's name: in the namespace of functions, or that of a known one.
func namesTool(_ word: String, _ tools: Set<String>) -> Bool {
    word.begins(with: functions) && word != functions || calledName(word, Array(tools)) != nil
}

func words(_ text: String) -> [String] {
    text.unicodeScalars.split { spaces.contains($0) }.map { String($0) }
}

/// What is before `mark` and behind it, searched for from the UTF-8 byte `start` on.
func parted(_ text: String, _ mark: String, from start: Int = 0) -> (before: String, behind: String)? {
    let (bytes, wanted) = (Array(text.utf8), Array(mark.utf8))
    var at = start
    while at + wanted.count <= bytes.count {
        if bytes[at..<(at + wanted.count)].elementsEqual(wanted) {
            return (
                String(decoding: bytes[..<at], as: UTF8.self),
                String(decoding: bytes[(at + wanted.count)...], as: UTF8.self)
            )
        }
        at += 1
    }
    return nil
}

extension String {
    /// By its code points: Swift's own takes a letter and an accent behind it for another letter.
    func begins(with start: String) -> Bool { utf8.starts(with: start.utf8) }
}

private func replaced(_ text: String, _ mark: String, _ by: String) -> String {
    text.replacingOccurrences(of: mark, with: by, options: .literal)
}

/// Without what sticks to a name: marks in letters, arguments.
private func nameIn(_ word: String) -> String {
    let name = parted(word, "<|")?.before ?? word
    return parted(name, "{")?.before ?? name
}

// White space and the ends of words as Python has them; ICU's \s and \b differ.
private let spaces = Set(
    "\t\n\u{B}\u{C}\r\u{1C}\u{1D}\u{1E}\u{1F} \u{85}\u{A0}\u{1680}\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}"
        .unicodeScalars
).union((0x2000...0x200A).compactMap(Unicode.Scalar.init))
private let space =
    "[\\t-\\r\\u001c-\\u0020\\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]"
private let wordEnd = "(?![\\p{L}\\p{N}_])"
private let mark = "<\\|constrain\\|>"
private let typeName = "(?:\(mark))?[A-Za-z0-9_.+/-]+"
private let names = "(\(channels.joined(separator: "|")))\(wordEnd)"
private let stuckChannel = pattern("^\(space)*assistant\(names)")
private let namedChannel = pattern("^[^<]*<\\|channel\\|>\(names)")
private let assistant = pattern("^\(space)*(assistant)\(wordEnd)")
// One that JSON follows, or one behind its mark.
private let leadingType = pattern("^\(space)*(\(mark)\(space)*\(typeName)|json(?=\(space)*\\{))")
private let wholeType = pattern("^(\(typeName))(?![\\s\\S])")

private func isType(_ word: String) -> Bool { wholeType(word) != nil }

/// What finds a pattern at a text's beginning: its first group, and the rest of the text.
private func pattern(_ text: String) -> (String) -> (group: String, rest: String)? {
    let pattern = try? NSRegularExpression(pattern: text)
    return { said in
        let string = said as NSString
        let whole = NSRange(location: 0, length: string.length)
        guard let match = pattern?.firstMatch(in: said, range: whole) else { return nil }
        let end = match.range.location + match.range.length
        return (string.substring(with: match.range(at: 1)), string.substring(from: end))
    }
}
