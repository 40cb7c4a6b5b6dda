import Foundation
import GptOss

// Holds the core to tests/vectors: GptOssCheck VECTORS DEMO [PACKAGE]. Exit 1 where one differs.
let arguments = CommandLine.arguments.dropFirst().map { URL(fileURLWithPath: $0) }
let tokenizer = try Tokenizer(contentsOf: arguments[1].appendingPathComponent("tokenizer.json"))
var passed = 0
var failed = 0

/// Half a surrogate pair is U+FFFD here: no text of Swift's holds one, and Foundation reads no such file.
func read(_ name: String) throws -> Json {
    let text = try String(contentsOf: arguments[0].appendingPathComponent(name), encoding: .utf8)
    let (high, low) = ("\\\\ud[89ab][0-9a-f]{2}", "\\\\ud[c-f][0-9a-f]{2}")
    let half = "\(high)(?!\(low))|(?<!\(high))\(low)"
    let whole = text.replacingOccurrences(of: half, with: "\\\\ufffd", options: .regularExpression)
    return try Json(text: Data(whole.utf8))
}

/// Texts are compared by their bytes: Swift's == takes é and e with an accent for the same.
func equal<T>(_ what: String, _ found: T, _ expected: T) {
    if Array(String(describing: found).utf8) == Array(String(describing: expected).utf8) {
        passed += 1
    } else {
        failed += 1
        print("\(what): \(found) instead of \(expected)")
    }
}

func ids(_ json: Json, _ name: String) -> [Int] { json.members[name] as? [Int] ?? [] }

func message(_ json: Json) throws -> Message {
    try Message(
        json.text("role"), json.text("content"), channel: json.optional("channel"),
        recipient: json.optional("recipient"), contentType: json.optional("content_type"),
        recipientInRole: json.flag("recipient_in_role"))
}

func tokenization() throws {
    let vectors = try read("tokenization.json")
    for entry in try vectors.children("encode") {
        try equal("encode \(entry.text("text"))", tokenizer.encode(entry.text("text")), ids(entry, "ids"))
    }
    for entry in try vectors.children("decode") {
        let tokens = ids(entry, "ids")
        try equal("decode \(tokens)", tokenizer.decode(tokens), entry.text("text"))
        var stream = Utf8Stream()
        let pieces = tokens.map { stream.feed(tokenizer.bytes($0)) } + [stream.finish()]
        equal("pieces \(tokens)", pieces, entry.members["pieces"] as? [String] ?? [])
    }
}

/// Cases with tools are left out: the app's core has none.
func harmony() throws {
    for entry in try read("harmony.json").children("render") where try entry.children("tools").isEmpty {
        var system: SystemPrompt?
        if let given = try? entry.child("system") {
            var made = SystemPrompt(date: given.optional("date"))
            made.reasoning = given.optional("reasoning")
            made.identity = given.optional("identity")
            made.knowledgeCutoff = given.optional("knowledge_cutoff")
            made.channels = given.members["channels"] as? [String] ?? []
            system = made
        }
        let found = try Harmony(tokenizer).render(
            entry.children("messages").map(message), system: system,
            instructions: entry.optional("instructions"),
            autoDropAnalysis: entry.flag("auto_drop_analysis"), reply: entry.flag("reply"))
        equal("render \(try entry.text("name"))", found, ids(entry, "ids"))
    }
}

func parsing() throws {
    let vectors = try read("stream_parse.json")
    let tools = Set(vectors.members["tools"] as? [String] ?? [])
    let stopIds = Set(ids(vectors, "stop_ids"))
    for reply in try vectors.children("replies") {
        let name = try reply.text("name")
        let tokens = ids(reply, "ids")
        let parser = StreamParser(tokenizer, tools: tools, stopIds: stopIds)
        let events = tokens.map(parser.feed) + [parser.finish()]
        let expected = reply.members["events"] as? [[[Any]]] ?? []
        let told = events.map { $0.map { "\([$0.kind, $0.text, "\($0.message)"] + ($0.recipient.map { [$0] } ?? []))" } }
        equal("events \(name)", told, expected.map { $0.map { "\($0.map { "\($0)" })" } })
        equal("messages \(name)", parser.messages, try reply.children("messages").map(message))
        let cuts = reply.members["cuts"] as? [[[String: Any]]] ?? []
        for (count, messages) in cuts.enumerated() {
            let cut = StreamParser(tokenizer, tools: tools, stopIds: stopIds)
            tokens.prefix(count).forEach { _ = cut.feed($0) }
            _ = cut.finish()
            equal("cut \(count) \(name)", cut.messages, try messages.map { try message(Json($0)) })
        }
    }
}

/// `arguments` are left out: the app's core makes no calls.
func replies() throws {
    let vectors = try read("reply.json")
    let tools = Set(vectors.members["tools"] as? [String] ?? [])
    let stopIds = Set(ids(vectors, "stop_ids"))
    for entry in try vectors.children("replies") {
        let name = try entry.text("name")
        let reply = Reply(tokenizer, tools: tools, stopIds: stopIds)
        ids(entry, "ids").forEach { _ = reply.feed($0) }
        _ = try reply.finish(Finish(rawValue: entry.text("reason")) ?? .stop)
        equal("text \(name)", reply.text, try entry.text("text"))
        equal("finish \(name)", reply.finish?.rawValue, entry.optional("finish_reason"))
        equal("cut in \(name)", reply.cutIn, entry.optional("cut_in"))
        equal("kept \(name)", reply.messages, try entry.children("messages").map(message))
        let whole = try entry.text("finish_reason") == "stop" && !entry.text("text").isEmpty
        equal("remark \(name)", reply.remark == nil, try whole || entry.text("finish_reason") == "cancelled")
        let calls = try entry.children("calls").map { try [$0.text("name"), $0.text("arguments"), $0.text("channel")] }
        equal("calls \(name)", reply.calls.map { [$0.recipient ?? "", $0.content, $0.channel ?? ""] }, calls)
        let next = try [Message("user", "Weather?")] + reply.messages + entry.children("then").map(message)
        equal("next \(name)", try Harmony(tokenizer).render(next, system: nil), ids(entry, "next_ids"))
    }
}

func sampling() throws {
    let vectors = try read("sampling.json")
    for entry in try vectors.children("splitmix64") {
        let seed = UInt64(try entry.text("seed")) ?? 0
        var one = SplitMix64(seed)
        let found = (0..<4).map { _ in one.next() }.map { n in
            let text = String(n, radix: 16)
            return String(repeating: "0", count: 16 - text.count) + text
        }
        equal("splitmix64 \(seed)", found, entry.members["next"] as? [String] ?? [])
        var other = SplitMix64(seed)
        let uniform = entry.members["uniform"] as? [Double] ?? []
        // Foundation on Linux reads a JSON number to its 16th digit only.
        let near = uniform.map { abs($0 - other.uniform()) < 1e-15 }
        equal("uniform \(seed)", near, [true, true, true, true])
    }
    for entry in try vectors.children("draws") {
        let given = try entry.child("sampling")
        var sampling = Sampling()
        sampling.temperature = given.number("temperature") ?? 1
        sampling.topK = Int(given.number("top_k") ?? 0)
        sampling.topP = given.number("top_p") ?? 1
        sampling.minP = given.number("min_p") ?? 0
        sampling.repetitionPenalty = given.number("repetition_penalty") ?? 1
        sampling.doSample = given.members["do_sample"] as? Bool ?? true
        sampling.seed = UInt64(try given.text("seed"))
        let logits = try numbers(entry.child("logits"))
        let sampler = Sampler(sampling, prompt: ids(entry, "prompt"))
        equal("draws \(given.members)", try (0..<12).map { _ in try sampler.next(logits) }, ids(entry, "tokens"))
    }
}

/// The message of the UserError, which is one line; nil where there is none.
func refusal(_ read: () throws -> Void) rethrows -> String? {
    do {
        try read()
        return nil
    } catch let error as UserError {
        precondition(!error.description.isEmpty && !error.description.contains { $0.isNewline }, error.description)
        return error.description
    }
}

func manifests() throws {
    let vectors = try read("manifest.json")
    for entry in try vectors.children("manifests") {
        let content = try changed(vectors, entry)
        let told = try refusal { try Manifest.check(content) }
        let right = entry.optional("refused").map { told?.contains($0) ?? false } ?? (told == nil)
        equal("manifest \(try entry.text("name")): \(told ?? "")", right, true)
    }
    for entry in try vectors.children("texts") {
        let text = try String(repeating: entry.text("text"), count: entry.whole("times"))
        let told = try refusal { _ = try Manifest(text: Data(text.utf8)) }
        equal("text \(try entry.text("name"))", told != nil, true)
    }
    for (kind, names) in try vectors.child("paths").members {
        for name in names as? [String] ?? [] {
            let file: [String: Any] = ["size": 1, "sha256": String(repeating: "0", count: 64)]
            let places: [([Any], Any)] = [(["files", name], file), (["links"], [name]), (["graph"], name)]
            for (at, value) in places.prefix(kind == "good" ? 2 : 3) {
                let change: [String: Any] = ["of": "single", "changes": [["at": at, "value": value]]]
                let content = try changed(vectors, Json(change))
                let told = try refusal { try Manifest.check(content) }
                equal("\(kind) path \(name) at \(at)", told == nil, kind == "good")
            }
        }
    }
    for entry in try vectors.children("choice") { try choice(entry, vectors.child("graphs")) }
    for entry in try vectors.children("reads") {
        let content = try changed(vectors, entry)
        let graph = try Manifest.graphs(content).first { $0.optional("graph") == entry.optional("graph") }
        let reads = try Manifest(content, graph ?? content).reads.map(\.name)
        equal("reads \(try entry.text("name"))", reads.sorted(), entry.members["files"] as? [String] ?? [])
    }
}

func choice(_ entry: Json, _ graphs: Json) throws {
    let runtime = try entry.child("runtime")
    func words(_ json: Json, _ name: String) -> [String] { json.members[name] as? [String] ?? [] }
    let device = try Device(
        version: runtime.text("version"), providers: words(runtime, "providers"),
        features: Set(words(runtime, "features")), kv: words(runtime, "kv"), appends: runtime.flag("appends"))
    var chosen: String?
    let told = try refusal { chosen = try device.choose(words(entry, "graphs").map(graphs.child)).text("graph") }
    equal("choice \(try entry.text("name"))", chosen, entry.optional("chosen"))
    let said = words(entry, "names").allSatisfy { told?.contains($0) ?? false }
    equal("why not \(try entry.text("name")): \(told ?? "")", said, true)
}

/// The manifest that a case is about.
func changed(_ vectors: Json, _ entry: Json) throws -> Json {
    let whole = try vectors.child(entry.text("of")).members as Any
    let changes = try entry.children("changes")
    return Json(changes.reduce(whole) { changed($0, $1.members["at"] as? [Any] ?? [], $1) } as? [String: Any] ?? [:])
}

func changed(_ value: Any, _ at: [Any], _ change: Json) -> Any {
    guard let step = at.first else { return change.members["value"] ?? NSNull() }
    let rest = Array(at.dropFirst())
    if let place = step as? Int, let items = value as? [Any] {
        return items.enumerated().map { $0 == place ? changed($1, rest, change) : $1 }
    }
    guard let name = step as? String, var members = value as? [String: Any] else { return value }
    let removed = rest.isEmpty && change.members["value"] == nil
    members[name] = removed ? nil : changed(members[name] ?? [String: Any](), rest, change)
    return members
}

func numbers(_ given: Json) throws -> [Float] {
    if let values = given.members["values"] as? [Double] { return values.map(Float.init) }
    var random = SplitMix64(UInt64(try given.text("seed")) ?? 0)
    let scale = given.number("scale") ?? 0
    return try (0..<given.whole("size")).map { _ in Float((random.uniform() * scale * 256).rounded(.down) / 256) }
}

/// Greedy replies of the package by ONNX Runtime's C API; then two turns, and a cancelled one.
func answers(_ folder: URL) throws {
    let model = try Model(folder: folder, threads: 1)
    for entry in try read("answers.json").children("answers") {
        guard let date = entry.optional("date") else { continue }
        let turns = try entry.children("messages").map(message)
        let chat = try model.chat(
            system: SystemPrompt(date: date), instructions: entry.optional("instructions"), sampling: .greedy)
        chat.messages = Array(turns.dropLast())
        let said = turns.last?.content ?? ""
        equal("answer \(said)", try chat.send(said).tokens, ids(entry, "reply"))
    }
    let chat = try model.chat(system: SystemPrompt(date: "2026-01-01"), sampling: .greedy)
    let first = try chat.send(question)
    let second = try chat.send(question) { _ in chat.cancel() }
    let ends: [Finish?] = [.stop, .cancelled, .stop]
    equal("finish", try [first.finish, second.finish, chat.send(question).finish], ends)
    equal("turns", chat.messages.filter { $0.role == "user" }.count, 3)
}

try tokenization()
try harmony()
try parsing()
try replies()
try manifests()
try sampling()
if arguments.count > 2 {
    try answers(arguments[2])
    try sessions(arguments[2])
    try turns(arguments[2])
}
print("\(passed) passed, \(failed) failed")
exit(failed == 0 ? 0 : 1)
