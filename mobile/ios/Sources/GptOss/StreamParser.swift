import Foundation

/// A piece of a reply: whole characters of one channel.
public struct Event: Equatable {
    public let channel: String
    public let text: String
}

/// Reads a reply token by token, from behind `<|start|>assistant`.
///
/// Models leave the format now and then, so no sequence of tokens is an error: a header is read for
/// what it holds, in any order, and text that never becomes a header is content.
public final class StreamParser {
    /// Those completed so far.
    public private(set) var messages: [Message] = []
    private let tokenizer: Tokenizer
    private let marks: [Int: String]
    private var stream = Utf8Stream()
    private var role = "assistant"  // what the next message's author is known to be
    private var header: String? = ""  // nil while reading content
    private var open = Message("assistant", "")

    public init(_ tokenizer: Tokenizer) {
        self.tokenizer = tokenizer
        let names = ["<|start|>", "<|end|>", channelMark, constrainMark, messageMark] + stopMarks
        let found = names.compactMap { name in (try? tokenizer.special(name)).map { ($0, name) } }
        marks = Dictionary(found) { $1 }
    }

    /// What `token` completes: mostly one event or none.
    public func feed(_ token: Int) -> [Event] {
        guard let mark = marks[token] else { return text(stream.feed(tokenizer.bytes(token))) }
        var events = text(stream.finish())
        if header != nil && [channelMark, constrainMark, messageMark].contains(mark) {
            return events + text(mark)
        }
        if mark == constrainMark || mark == messageMark { return events }  // nothing amid content
        let author = open.role
        events += close()
        if mark == channelMark {  // a message without an end before it: the same author goes on
            (role, header) = (author, channelMark)
        }
        return events
    }

    /// What is left when the stream ends.
    public func finish() -> [Event] { text(stream.finish()) + close() }

    private func text(_ text: String) -> [Event] {
        if text.isEmpty { return [] }
        guard let before = header else {
            open.content += text
            return [Event(channel: open.channel ?? "final", text: text)]
        }
        let said = before + text
        header = said
        // Also the mark spelled in letters, which models that lost their special tokens write.
        if let (front, back) = parted(said, messageMark) {
            begin(parseHeader(role, front))
            return self.text(back)
        }
        return said.unicodeScalars.count > 256 ? giveUpHeader() : []
    }

    private func begin(_ message: Message) { (open, header) = (message, nil) }

    /// The model left the format: what looked like a header is what it said.
    private func giveUpHeader() -> [Event] {
        let so = header ?? ""
        let named = firstMatch("^[^<]*\\Q\(channelMark)\\E(\(names))\\b", so)
        // A channel that was named still holds: reasoning must not turn into an answer.
        begin(Message("assistant", "", channel: named?.group ?? "final"))
        let said = named?.rest ?? so
        return text(replaced(replaced(said, channelMark, ""), constrainMark, ""))
    }

    /// Complete the open message and expect the next one's header.
    private func close() -> [Event] {
        var events: [Event] = []
        if let so = header {
            let said = words(so).joined(separator: " ")
            let message = parseHeader(role, so)
            // Without its content a header still says what it says, but more words are an answer.
            let named = parted(said, channelMark).map { words($0.1).count < 2 } ?? false
            if message.recipient != nil || named {
                begin(message)
            } else if !said.isEmpty && (!role.isEmpty || !"assistant".utf8.starts(with: said.utf8)) {
                events = giveUpHeader()
            }
        }
        if header == nil { messages.append(open) }
        (role, header) = ("", "")
        return events
    }
}

private let names = channels.joined(separator: "|")
private let spaces = Set(
    "\t\n\u{B}\u{C}\r\u{1C}\u{1D}\u{1E}\u{1F} \u{85}\u{A0}\u{1680}\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}"
        .unicodeScalars
).union((0x2000...0x200A).compactMap(Unicode.Scalar.init))
private let spaceClass =
    "[\\t-\\r\\u001c-\\u001f \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]"

private func words(_ text: String) -> [String] {
    text.unicodeScalars.split { spaces.contains($0) }.map { String($0) }
}

private func parted(_ text: String, _ mark: String) -> (String, String)? {
    guard let range = text.range(of: mark, options: .literal) else { return nil }
    return (String(text[..<range.lowerBound]), String(text[range.upperBound...]))
}

private func replaced(_ text: String, _ mark: String, _ by: String) -> String {
    text.replacingOccurrences(of: mark, with: by, options: .literal)
}

private func firstMatch(_ pattern: String, _ text: String) -> (group: String, rest: String)? {
    let string = text as NSString
    let whole = NSRange(location: 0, length: string.length)
    guard let match = try? NSRegularExpression(pattern: pattern).firstMatch(in: text, range: whole)
    else { return nil }
    return (
        string.substring(with: match.range(at: 1)),
        string.substring(from: match.range.location + match.range.length)
    )
}

/// `[role] [to=name] [<|channel|>name] [to=name] [<|constrain|>type]`; `known` is the role.
private func parseHeader(_ known: String, _ text: String) -> Message {
    var header = text
    // A channel whose mark is missing sticks to the role.
    if let stuck = firstMatch("^\(spaceClass)*assistant(\(names))\\b", header) {
        header = "assistant\(channelMark)\(stuck.group)\(stuck.rest)"
    }
    header = header.replacingOccurrences(
        of: "\(spaceClass)*\\Q\(constrainMark)\\E\(spaceClass)*", with: " \(constrainMark)",
        options: .regularExpression)
    var role = known
    var channel: String?
    var recipient: String?
    var marked = false
    var types: [String] = []
    for word in words(replaced(header, channelMark, " \(channelMark) ")) {
        if word == channelMark {
            marked = true
        } else if word.utf8.starts(with: "to=".utf8) {
            let name = String(decoding: word.utf8.dropFirst(3), as: UTF8.self)
            recipient = name.isEmpty ? recipient : name
        } else if channel == nil && (marked || channels.contains(word))
            && !word.utf8.starts(with: constrainMark.utf8)
        {
            channel = word
        } else if role.isEmpty && !marked {
            role = word
        } else if word != role {
            types.append(word)
        }
    }
    if role.isEmpty { role = "assistant" }
    // A call is not for the user to read, so without a channel it takes the calls' own.
    if channel == nil && role == "assistant" { channel = recipient == nil ? "final" : "commentary" }
    let type = types.isEmpty ? nil : types.joined(separator: " ")
    return Message(role, "", channel: channel, recipient: recipient, contentType: type)
}
