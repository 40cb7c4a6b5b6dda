/// One message. A tool's result has the tool's name as role (`functions.weather`).
public struct Message: Equatable {
    public var role: String
    public var content: String
    public var channel: String?
    public var recipient: String?
    public var contentType: String?

    public init(
        _ role: String, _ content: String, channel: String? = nil, recipient: String? = nil,
        contentType: String? = nil
    ) {
        (self.role, self.content, self.channel) = (role, content, channel)
        (self.recipient, self.contentType) = (recipient, contentType)
    }
}

/// What the system message says. `date` is ISO 8601.
public struct SystemPrompt {
    public var date: String
    public var reasoning = "medium"
    public var identity = "You are ChatGPT, a large language model trained by OpenAI."
    public var knowledgeCutoff = "2024-06"

    public init(date: String) { self.date = date }

    var text: String {
        "\(identity)\nKnowledge cutoff: \(knowledgeCutoff)\nCurrent date: \(date)"
            + "\n\nReasoning: \(reasoning)\n\n# Valid channels: "
            + channels.joined(separator: ", ") + ". Channel must be included for every message."
    }
}

let channels = ["analysis", "commentary", "final"]
let channelMark = "<|channel|>"
let constrainMark = "<|constrain|>"
let messageMark = "<|message|>"
let stopMarks = ["<|return|>", "<|call|>", "<|endoftext|>"]

/// Conversations to token ids. What a user typed is text, and can never open a message.
public struct Harmony {
    private let tokenizer: Tokenizer

    public init(_ tokenizer: Tokenizer) { self.tokenizer = tokenizer }

    public var stopIds: Set<Int> { Set(stopMarks.compactMap { try? tokenizer.special($0) }) }

    /// Ids of a conversation, with the assistant's turn opened at the end when `reply`.
    public func render(
        _ messages: [Message], system: SystemPrompt?, instructions: String? = nil,
        reply: Bool = true
    ) throws -> [Int] {
        var head: [Message] = []
        if let system { head.append(Message("system", system.text)) }
        if let instructions {
            head.append(Message("developer", "# Instructions\n\n\(instructions)"))
        }
        let ids = try (head + withoutOldAnalysis(messages)).flatMap(render)
        return try reply ? ids + [tokenizer.special("<|start|>")] + tokenizer.encode("assistant") : ids
    }

    private func render(_ message: Message) throws -> [Int] {
        var ids = try [tokenizer.special("<|start|>")] + tokenizer.encode(message.role)
        if let recipient = message.recipient, recipient != "all" {
            ids += tokenizer.encode(" to=\(recipient)")
        }
        if let channel = message.channel {
            ids += try [tokenizer.special(channelMark)] + tokenizer.encode(channel)
        }
        if let type = message.contentType {
            if type.hasPrefix(constrainMark) {
                ids += try tokenizer.encode(" ") + [tokenizer.special(constrainMark)]
                ids += tokenizer.encode(String(type.dropFirst(constrainMark.count)))
            } else {
                ids += tokenizer.encode(" \(type)")
            }
        }
        ids += try [tokenizer.special(messageMark)] + tokenizer.encode(message.content)
        // History is what was said, not where sampling stopped: a stored <|return|> becomes <|end|>.
        let calls = message.role == "assistant" && message.recipient != nil
        return try ids + [tokenizer.special(calls ? "<|call|>" : "<|end|>")]
    }

    /// Drops the reasoning of answered turns; that of a turn still calling tools stays.
    private func withoutOldAnalysis(_ messages: [Message]) -> [Message] {
        let last = messages.lastIndex { $0.role == "assistant" && $0.channel == "final" } ?? -1
        return messages.enumerated()
            .filter { $0.offset > last || $0.element.channel != "analysis" }.map(\.element)
    }
}
