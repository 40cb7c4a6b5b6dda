public enum Finish: String { case stop, toolCall = "tool_call", length, cancelled }

/// What a model answers: fed tokens it tells events, and all else is whole after `finish`.
public final class Reply {
    /// The answer: what the final channel says.
    public private(set) var text = ""
    public private(set) var tokens: [Int] = []
    /// Why it ended; nil before. A call that is complete has no other to answer it than the app.
    public private(set) var finish: Finish?
    private let parser: StreamParser
    private var last: Int?  // the last message in `text`

    public init(_ tokenizer: Tokenizer, tools: Set<String> = [], stopIds: Set<Int> = []) {
        parser = StreamParser(tokenizer, tools: tools, stopIds: stopIds)
    }

    /// What `token` completes.
    public func feed(_ token: Int) -> [Event] {
        tokens.append(token)
        return tell(parser.feed(token))
    }

    /// What was held back; `reason` is why no more tokens come.
    public func finish(_ reason: Finish) -> [Event] {
        if finish != nil { return [] }
        finish = reason
        let events = tell(parser.finish())
        if !calls.isEmpty { finish = .toolCall }
        return events
    }

    private func tell(_ events: [Event]) -> [Event] {
        for event in events where event.kind == "final" {
            if let last, last != event.message { text += "\n\n" }
            text += event.text
            last = event.message
        }
        return events
    }

    // A model that left the format may speak for others: that is no part of its reply.
    private var said: [Message] { parser.messages.filter { $0.role == "assistant" } }
    private var complete: Bool { finish == .stop || finish == .toolCall }

    /// What to add to the history. Of a reply that was cut, what a reader saw: its reasoning and calls
    /// are dropped, so that the next turn starts from a conversation the model knows the form of.
    public var messages: [Message] {
        complete ? said : said.filter { ["commentary", "final"].contains($0.kind) && !words($0.content).isEmpty }
    }

    /// The calls of a complete reply, in order: `recipient` is the tool, `content` its arguments as
    /// the model wrote them.
    public var calls: [Message] { complete ? said.filter(\.isCall) : [] }

    /// Of a reply that was cut: the kind of message it was in, `analysis` while still thinking. Nil of
    /// a complete one.
    public var cutIn: String? { complete || finish == nil ? nil : said.last?.kind ?? "analysis" }

    /// What a reader must know of a reply that is no whole answer, in one line; nil where it is one.
    public var remark: String? {
        switch finish {
        case .toolCall: "the model asked for \(calls.first?.recipient ?? ""): this app has no tools"
        case .length where cutIn == "analysis": "cut while the model was still thinking: start a new chat"
        case .length: "cut where the chat is full: start a new chat"
        case .stop where text.isEmpty: "the model ended without an answer: ask again"
        default: nil
        }
    }
}
