/// A piece of a reply: whole characters of one message, and what they are.
public struct Event: Equatable {
    /// `analysis`, `commentary`, `final`, or `call` on any channel.
    public let kind: String
    public let text: String
    /// Pieces of one message have the same number, counted from 0 in a reply.
    public let message: Int
    /// The tool that a call is for: `text` is of its arguments.
    public let recipient: String?
}

private let callMark = "<|call|>"
private let answerEnds: Set<String?> = ["<|return|>", "<|endoftext|>"]
private let others = ["user", "system", "developer", "tool"]
/// Longer text that names the answer's or reasoning's channel, or none, is passed on as it comes
/// instead of being held back for ever. Characters.
private let longestHeader = 256
/// Tools that take text as it stands, no JSON object.
private let textTools = ["python"]

/// Reads a reply token by token, from behind `<|start|>assistant`.
///
/// Models leave the format now and then, so no sequence of tokens is an error:
///
/// - a header is read for what it holds, in any order (`Header`);
/// - a tool named without `to=` is called by a message that ends in `<|call|>`;
/// - arguments without `<|message|>` begin at the first brace; without any there is no call;
/// - text behind `<|channel|>` that names no channel is an answer only as the reply's last message;
/// - what is written in another's name is a message of theirs and no event.
///
/// What cannot be told yet is held back until its message ends.
public final class StreamParser {
    /// Those completed so far.
    public private(set) var messages: [Message] = []
    private let tokenizer: Tokenizer
    private let tools: Set<String>
    private let marks: [Int: String]
    private var stream = Utf8Stream()
    private var role = "assistant"  // what the next message's author is known to be
    private var header: String? = ""  // nil while reading content
    private var heldHeader = false  // beyond its longest
    private var open = Header(channel: "final")
    private var content = ""
    private var unsaid = ""  // of it, what no event told yet
    private var told = false  // whether one told any
    private var count = 0  // the assistant's messages
    private var answered = false

    /// `tools` are the names of those that the model may call. Tokens of `stopIds` that are no marks
    /// of harmony's end the reply as its own do.
    public init(_ tokenizer: Tokenizer, tools: Set<String> = [], stopIds: Set<Int> = []) {
        (self.tokenizer, self.tools) = (tokenizer, tools)
        let names = ["<|start|>", "<|end|>", channelMark, constrainMark, messageMark] + stopMarks
        let found = names.compactMap { name in (try? tokenizer.special(name)).map { ($0, name) } }
        marks = Dictionary(stopIds.map { ($0, stopMarks[0]) } + found) { $1 }
    }

    /// What `token` completes: mostly one event or none.
    public func feed(_ token: Int) -> [Event] {
        guard let mark = marks[token] else { return text(stream.feed(tokenizer.bytes(token))) }
        let events = text(stream.finish())
        if header != nil && [channelMark, constrainMark, messageMark].contains(mark) {
            return events + text(mark)
        }
        if mark == constrainMark || mark == messageMark { return events }  // nothing amid content
        let author = open.message.role
        let closed = close(mark)
        if mark == channelMark {  // a message without an end before it: the same author goes on
            (role, header) = (author, channelMark)
        }
        return events + closed
    }

    /// What is left when the stream ends.
    public func finish() -> [Event] { text(stream.finish()) + close(nil) }

    private func text(_ text: String) -> [Event] {
        if text.isEmpty { return [] }
        guard let before = header else { return say(text) }
        let so = before + text
        header = so
        // Also the mark spelled in letters, which models that lost their special tokens write.
        let start = max(0, before.utf8.count - messageMark.utf8.count)
        if let (front, back) = parted(so, messageMark, from: start) {
            begin(read(front))
            return say(back)
        }
        let brace = UInt8(ascii: "{")
        if text.utf8.contains(brace), !before.utf8.contains(brace), let (front, back) = parted(so, "{") {
            let found = read(front)
            if found.clean && takesJson(found.message) {
                begin(found)
                return say("{" + back)
            }
            heldHeader = found.clean && found.tool != nil
        }
        if heldHeader || so.unicodeScalars.count <= longestHeader { return [] }
        let (channel, said) = Header.withoutContent(so, role)
        guard let channel, read(so).message.recipient == nil, !byAnother(so, cut: false) else {
            heldHeader = true
            return []
        }
        begin(Header(channel: channel.isEmpty ? "final" : channel))
        return say(said)
    }

    private func read(_ header: String) -> Header { Header(header, role, tools) }

    private func begin(_ found: Header) {
        (open, header) = (found, nil)
        (content, unsaid, told) = ("", "", false)
    }

    private func say(_ text: String) -> [Event] {
        content += text
        unsaid += text
        return open.tool != nil || open.unnamed ? [] : tell(open.message)
    }

    private func tell(_ message: Message) -> [Event] {
        let text = unsaid
        // Arguments that never come are no call: none begins before they do.
        let waits = message.isCall && !told && isBlank(text)
        if text.isEmpty || waits || message.role != "assistant" { return [] }
        (unsaid, told) = ("", true)
        return [Event(kind: message.kind, text: text, message: count, recipient: message.recipient)]
    }

    /// Completes the open message, by `mark` or where the reply was cut; expects a header.
    private func close(_ mark: String?) -> [Event] {
        var events = header.map { closeHeader(mark, $0) } ?? []
        if header == nil { events += complete(mark) }
        (role, header, heldHeader) = ("", "", false)
        return events
    }

    /// Begins the message of a header that ended without `<|message|>`, if it says anything.
    private func closeHeader(_ mark: String?, _ so: String) -> [Event] {
        let cut = mark == nil
        if mark == callMark || cut, let (front, back) = parted(so, "{") {
            let found = read(front)
            if found.clean && found.tool != nil {
                begin(found)
                return say("{" + back)
            }
        }
        // Without arguments there is no call.
        if read(so).message.recipient != nil || byAnother(so, cut: cut) { return [] }
        let (named, said) = Header.withoutContent(so, role)
        let size = words(said).count
        if size == 0 || cut && named != "" && size == 1 { return [] }  // at most a header's beginning
        let answer = !answered && (answerEnds.contains(mark) || cut && named == "")
        if named == nil && !answer && size == 1 { return [] }
        let channel = named ?? ""
        begin(Header(channel: !channel.isEmpty ? channel : answer ? "final" : "analysis"))
        return say(said)
    }

    /// Whether a header without content begins with the name of another than the assistant.
    private func byAnother(_ so: String, cut: Bool) -> Bool {
        let first = words(so.replacingOccurrences(of: channelMark, with: " ", options: .literal)).first
        guard role.isEmpty, let first else { return false }
        if others.contains(first) || namesTool(first, tools) { return true }
        return cut && first != "assistant" && (others + ["assistant"]).contains { $0.begins(with: first) }
    }

    private func complete(_ mark: String?) -> [Event] {
        var message = open.message
        message.content = content
        // Where the reply was cut, it was on its way to be a call, unless a tool seems to speak.
        let called = mark == callMark || mark == nil && message.role == "assistant"
        if let tool = open.tool, called {
            (message.role, message.recipient) = ("assistant", tool)
            if message.channel == nil || message.channel == "final" { message.channel = "commentary" }
        } else if open.unnamed && !message.isCall && message.role == "assistant" {
            message.channel = answerEnds.contains(mark) && !answered ? "final" : "analysis"
        }
        if message.isCall && isBlank(message.content) { return [] }
        let events = tell(message)
        messages.append(message)
        if message.role == "assistant" {
            count += 1
            answered = answered || message.channel == "final" && !words(message.content).isEmpty
        }
        return events
    }
}

private func takesJson(_ message: Message) -> Bool {
    message.isCall && !textTools.contains(message.recipient ?? "")
}

/// All of it JSON's white space.
private func isBlank(_ text: String) -> Bool {
    text.unicodeScalars.allSatisfy { " \t\n\r".unicodeScalars.contains($0) }
}
