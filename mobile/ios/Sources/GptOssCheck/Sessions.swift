import Foundation
import GptOss

/// None differed on x86-64; chunks of another size may, where a kernel adds up in another order. With
/// wrong rows of a window the most was 0.3 to 14, of logits with a standard deviation of 3.
private let tolerance: Float = 0.1

/// Sessions are left as session.json says, and go on as one that was never anywhere else.
func sessions(_ folder: URL) throws {
    let model = try Model(folder: folder, threads: 1)
    func open(_ maxLength: Int) throws -> Session {
        try model.chat(system: SystemPrompt(date: nil), maxLength: maxLength).session
    }
    for entry in try read("session.json").children("sessions") {
        // A session without `max_length` grows elsewhere; here its room is there at once.
        let session = try open(entry.members["max_length"] as? Int ?? model.manifest.contextLength)
        for (number, step) in try entry.children("steps").enumerated() {
            let name = try "\(number) of \(entry.text("name"))"
            let logits = try perform(name, session, step)
            let left = try step.child("left")
            let kept = tokens(left, "kept")
            equal("kept after step \(name)", session.tokens, kept)
            equal("evicted after step \(name)", session.evicted, try left.whole("evicted"))
            if let logits {
                let expected = try open(max(kept.count, 2)).feed(kept)
                let most = zip(logits, expected).map { abs($0 - $1) }.max() ?? .infinity
                equal("logits after step \(name): \(most)", most < tolerance, true)
            }
        }
    }
}

/// What a feed gives.
private func perform(_ name: String, _ session: Session, _ step: Json) throws -> [Float]? {
    switch try step.text("do") {
    case "feed": return try session.feed(tokens(step, "tokens"))
    case "fail":
        session.ran = { throw UserError("made to fail") }  // the worst of failures: all is written
        equal("step \(name)", try refusal { _ = try session.feed(tokens(step, "tokens")) }, "made to fail")
        session.ran = {}
    case "refuse": equal("step \(name)", try refusal { _ = try session.feed(ids(step, "ids")) } != nil, true)
    case "reuse": equal("step \(name)", try session.reuse(tokens(step, "tokens")), session.tokens.count)
    case "rewind": equal("step \(name)", session.rewind(try step.whole("length")), session.tokens.count)
    case "snapshot": session.snapshot()
    case "reset": session.reset()
    default: fatalError("\(step)")
    }
    return nil
}

private func tokens(_ json: Json, _ name: String) -> [Int] {
    (json.members[name] as? [[Int]] ?? []).flatMap { piece in
        (piece[1]..<piece[2]).map { (7919 * $0 + 104729 * piece[0] + 13) % 4000 }
    }
}
