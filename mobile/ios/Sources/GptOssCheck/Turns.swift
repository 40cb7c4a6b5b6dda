import Foundation
import GptOss

let question = "What does os.path.join do?"

/// Whatever became of a turn, the next one's reply is a new session's.
func turns(_ folder: URL) throws {
    let model = try Model(folder: folder, threads: 1)
    func chat() throws -> Chat { try model.chat(system: SystemPrompt(date: "2026-01-01"), sampling: .greedy) }
    var random = SplitMix64(1)
    func ids(_ count: Int) -> [Int] {
        (0..<count).map { _ in Int(random.uniform() * Double(model.manifest.vocabSize)) }
    }
    // So long that sliding layers move their rows in either; ids at random, as the demo says of what
    // it knows the same in spite of wrong rows.
    let first = ids(210)
    let (second, other) = (first + ids(90), ids(150))
    let expected = try reply(chat().session, second)
    for run in 1...8 {
        let session = try chat().session
        try fail(session, run, second)
        equal("after run \(run) failed", try reply(session, second), expected)
    }
    for run in 1...5 {
        let session = try chat().session
        _ = try reply(session, first)
        try fail(session, run, second)
        equal("after a turn and run \(run) failed", try reply(session, second), expected)
    }
    let session = try chat().session
    _ = try reply(session, first)
    try fail(session, 3, other)
    equal("after another prompt failed", try reply(session, second), expected)
    try cancels(chat())
    try strangeIds(chat().session, model.manifest.vocabSize)
}

/// Greedy, fed as a chat does.
func reply(_ session: Session, _ prompt: [Int]) throws -> [Int] {
    var logits: [Float] = []
    var at = try session.reuse(prompt)
    while at < prompt.count {
        let end = min(at + chunkSize, prompt.count)
        logits = try session.feed(Array(prompt[at..<end]))
        at = end
    }
    session.snapshot()
    return try (0..<8).map { _ in
        let token = logits.indices.max { logits[$0] < logits[$1] } ?? 0
        logits = try session.feed([token])
        return token
    }
}

func fail(_ session: Session, _ run: Int, _ prompt: [Int]) throws {
    var runs = 0
    session.ran = {
        runs += 1
        if runs == run { throw UserError("made to fail") }
    }
    equal("run \(run) fails", try refusal { _ = try reply(session, prompt) }, "made to fail")
    session.ran = {}
}

func cancels(_ chat: Chat) throws {
    chat.cancel()
    equal("cancelled between turns", try chat.send(question).finish, .stop)
    chat.session.ran = { chat.cancel() }
    let reply = try chat.send(question)
    chat.session.ran = {}
    equal("cancelled in the prompt", reply.finish, .cancelled)
    equal("said before", reply.tokens, [])
    var refused: String?
    let cancelled = try chat.send(question) { _ in
        chat.cancel()
        refused = try? refusal { try chat.send(question) }
    }
    equal("a second turn", refused, "this chat is answering already: cancel that reply first")
    equal("cancelled before a second turn", cancelled.finish, .cancelled)
    equal("after a cancel", try chat.send(question).finish, .stop)
}

func strangeIds(_ session: Session, _ size: Int) throws {
    for id in [-1, size, Int(Int32.max)] {
        let told = "have \(id) at position 1: the vocabulary has \(size) tokens, ids from 0 to \(size - 1)"
        equal("feed \(id)", try refusal { _ = try session.feed([0, id]) }, "the tokens \(told)")
        equal("reuse \(id)", try refusal { _ = try session.reuse([0, id, 0]) }, "the prompt's tokens \(told)")
    }
    equal("feed nothing", try refusal { _ = try session.feed([]) }, "no token is fed: feed at least one")
    equal("fed", session.tokens.count, 0)
}
