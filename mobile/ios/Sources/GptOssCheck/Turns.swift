import Foundation
import GptOss

let question = "What does os.path.join do?"

/// Turns that fail, are cancelled or have ids that are none.
func turns(_ folder: URL) throws {
    let model = try Model(folder: folder, threads: 1)
    let system = SystemPrompt(date: "2026-01-01")
    func chat() throws -> Chat { try model.chat(system: system, sampling: .greedy) }
    let expected = try chat().send(question).tokens
    for run in [1, 2, 5] { try fails(chat(), run, expected) }
    try reuses(model, system)
    try cancels(chat())
    try strangeIds(chat().session, model.manifest.vocabSize)
    let most = model.manifest.contextLength
    for length in [-1, 0, 1, most + 1] {
        let told = "maxLength is \(length): it must be from 2 to the package's context length, \(most)"
        equal("room for \(length)", try refusal { _ = try model.chat(system: system, maxLength: length) }, told)
    }
}

/// Whichever run of a turn failed, it was never said, and said again it has the reply of a new chat.
func fails(_ chat: Chat, _ run: Int, _ expected: [Int]) throws {
    var runs = 0
    chat.session.ran = {
        runs += 1
        if runs == run { throw UserError("made to fail") }
    }
    equal("run \(run) fails", try refusal { try chat.send(question) }, "made to fail")
    chat.session.ran = {}
    equal("said after run \(run) failed", chat.messages, [])
    equal("after run \(run) failed", try chat.send(question).tokens, expected)
}

/// The next turn drops a reply's reasoning, and is fed from where that began.
func reuses(_ model: Model, _ system: SystemPrompt) throws {
    let instructions = String(repeating: "Answer briefly. ", count: 12)
    let chat = try model.chat(system: system, instructions: instructions, sampling: .greedy)
    try chat.send(question)
    equal("windows moved within the reply", chat.session.evicted > 0, true)
    var fed: [Int] = []  // before each run
    chat.session.ran = { fed.append(chat.session.tokens.count) }
    try chat.send(question)
    let prompt = try model.harmony.render([Message("user", question)], system: system, instructions: instructions)
    equal("where the second turn begins", fed.first, prompt.count)
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
