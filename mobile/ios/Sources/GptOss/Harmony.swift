/// One message. A tool's result has the tool's name as role (`functions.weather`). A call names its
/// tool behind the channel, as models write it, or before it: `recipientInRole`.
public struct Message: Equatable {
    public var role: String
    public var content: String
    public var channel: String?
    public var recipient: String?
    public var contentType: String?
    public var recipientInRole: Bool

    public init(
        _ role: String, _ content: String, channel: String? = nil, recipient: String? = nil,
        contentType: String? = nil, recipientInRole: Bool = false
    ) {
        (self.role, self.content, self.channel) = (role, content, channel)
        (self.recipient, self.contentType) = (recipient, contentType)
        self.recipientInRole = recipientInRole
    }

    public var isCall: Bool { role == "assistant" && !noTools.contains(recipient) }

    /// `analysis`, `commentary`, `final`, or `call` on any channel.
    public var kind: String { isCall ? "call" : channel ?? "final" }
}

/// What the system message says; nil leaves that line out. `date` is ISO 8601.
public struct SystemPrompt {
    public var date: String?
    public var reasoning: String? = "medium"
    public var identity: String? = "You are ChatGPT, a large language model trained by OpenAI."
    public var knowledgeCutoff: String? = "2024-06"
    public var channels = GptOss.channels

    public init(date: String?) { self.date = date }

    var text: String {
        let top = [identity, knowledgeCutoff.map { "Knowledge cutoff: \($0)" }, date.map { "Current date: \($0)" }]
        let said = top.compactMap { $0 }
        let must =
            "# Valid channels: \(channels.joined(separator: ", ")). Channel must be included for every message."
        let sections = [
            said.isEmpty ? nil : said.joined(separator: "\n"), reasoning.map { "Reasoning: \($0)" },
            channels.isEmpty ? nil : must,
        ]
        return sections.compactMap { $0 }.joined(separator: "\n\n")
    }
}

let channels = ["analysis", "commentary", "final"]
let channelMark = "<|channel|>"
let constrainMark = "<|constrain|>"
let messageMark = "<|message|>"
let stopMarks = ["<|return|>", "<|call|>", "<|endoftext|>"]
/// The namespace of an application's own tools.
let functions = "functions."
// Those a message can be meant for without being a call.
private let noTools: [String?] = [nil, "all", "assistant", "user"]
private let speakers = ["system", "developer", "user", "assistant"]  // every other role is a tool

/// Which of the names in `called` is meant by `name`: itself, or with or without `functions.`
func calledName(_ name: String, _ called: [String]) -> String? {
    let bare = name.begins(with: functions) ? String(name.unicodeScalars.dropFirst(functions.count)) : name
    return [name, functions + name, bare].first(where: called.contains)
}

/// Conversations to token ids. What a user typed is text, and can never open a message.
public struct Harmony {
    private let tokenizer: Tokenizer

    public init(_ tokenizer: Tokenizer) { self.tokenizer = tokenizer }

    public var stopIds: Set<Int> { Set(stopMarks.compactMap { try? tokenizer.special($0) }) }

    /// Ids of a conversation, with the assistant's turn opened at the end when `reply`.
    /// `autoDropAnalysis`: the reasoning of answered turns is left out, as the format says.
    public func render(
        _ messages: [Message], system: SystemPrompt?, instructions: String? = nil,
        autoDropAnalysis: Bool = true, reply: Bool = true
    ) throws -> [Int] {
        var head: [Message] = []
        if let system { head.append(Message("system", system.text)) }
        if let instructions {
            head.append(Message("developer", "# Instructions\n\n\(instructions)"))
        }
        let ids = try (head + shown(messages, autoDropAnalysis)).flatMap(render)
        return try reply ? ids + [tokenizer.special("<|start|>")] + tokenizer.encode("assistant") : ids
    }

    private func render(_ message: Message) throws -> [Int] {
        var ids = try [tokenizer.special("<|start|>")] + tokenizer.encode(message.role)
        var recipient: [Int] = []
        if let name = message.recipient, name != "all" { recipient = tokenizer.encode(" to=\(name)") }
        let inRole = message.channel == nil || message.role != "assistant" || message.recipientInRole
        if inRole { ids += recipient }
        if let channel = message.channel {
            ids += try [tokenizer.special(channelMark)] + tokenizer.encode(channel)
        }
        if !inRole { ids += recipient }
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

    /// What of a history the model is shown, with no call or result that lacks the other.
    ///
    /// The reasoning of answered turns is dropped if `autoDropAnalysis`, that of a turn still calling
    /// tools stays. Calls stay with their results, on any channel; a call that had none when the user
    /// spoke again is dropped. A result takes the name its call was made by.
    private func shown(_ messages: [Message], _ autoDropAnalysis: Bool) -> [Message] {
        let answer = messages.lastIndex { $0.role == "assistant" && $0.channel == "final" && !$0.isCall }
        let last = autoDropAnalysis ? answer ?? -1 : -1
        var shown: [Message] = []
        var waiting: [(place: Int, tool: String)] = []  // calls without a result
        var dropped: Set<Int> = []
        for (place, message) in messages.enumerated() {
            if message.role == "assistant" && message.kind == "analysis" && place < last { continue }
            var said = message
            if message.isCall {
                waiting.append((shown.count, message.recipient ?? ""))
            } else if message.role == "user" {
                dropped.formUnion(waiting.map(\.place))
                waiting = []
            } else if !speakers.contains(message.role), let name = calledName(message.role, waiting.map(\.tool)) {
                waiting.remove(at: waiting.firstIndex { $0.tool == name } ?? 0)
                said.role = name
            }
            shown.append(said)
        }
        return shown.enumerated().filter { !dropped.contains($0.offset) }.map(\.element)
    }
}
