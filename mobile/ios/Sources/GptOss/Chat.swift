import Foundation

/// A package that is loaded.
public final class Model {
    public let manifest: Manifest
    public let tokenizer: Tokenizer
    public let harmony: Harmony
    /// The package's own.
    public let sampling: Sampling
    /// Harmony's, and those that the package names: another tool's file may name a padding token alone.
    public let stopIds: Set<Int>
    let graph: Graph

    /// Loads the package in `folder`, which takes seconds; UserError when it cannot be.
    public init(folder: URL, threads: Int = ProcessInfo.processInfo.activeProcessorCount) throws {
        manifest = try Manifest(folder: folder)
        for file in manifest.reads {
            let path = try place(folder, file.name).path
            let size = try? FileManager.default.attributesOfItem(atPath: path)[.size] as? NSNumber
            guard size?.intValue == file.size else {
                throw UserError("\(file.name) is missing or cut short: get the package again")
            }
        }
        let size = manifest.vocabSize
        tokenizer = try Tokenizer(contentsOf: folder.appendingPathComponent("tokenizer.json"), vocabSize: size)
        harmony = Harmony(tokenizer)
        let names = ["generation_config.json", "config.json"]
        let configs = try names.map { name in
            let file = try place(folder, name)
            return FileManager.default.fileExists(atPath: file.path) ? try Json(contentsOf: file) : Json([:])
        }
        sampling = try naming(names[0]) { try GenerationConfig.sampling(configs[0]) }
        let ids = try zip(names, configs).lazy.compactMap { name, config in
            try naming(name) { try GenerationConfig.stopIds(config) }
        }.first
        stopIds = harmony.stopIds.union(ids ?? [])
        let file = folder.appendingPathComponent(manifest.graph)
        let session = manifest.session
        graph = try naming(manifest.graph) { try Graph(file, threads: threads, config: session) }
        try checkGraph(graph, manifest)
    }

    /// A new conversation with room for `maxLength` tokens in all; UserError where the package has fewer.
    public func chat(
        system: SystemPrompt, instructions: String? = nil, maxLength: Int? = nil,
        sampling: Sampling? = nil
    ) throws -> Chat {
        let length = maxLength ?? min(4096, manifest.contextLength)
        let session = try Session(graph, manifest, maxLength: length)
        return Chat(self, session, system, instructions, sampling ?? self.sampling)
    }
}

/// One conversation. One reply at a time, on a thread of the caller's that may wait.
public final class Chat: @unchecked Sendable {
    /// What was said.
    public var messages: [Message] = []
    private let model: Model
    package let session: Session
    private let system: SystemPrompt
    private let instructions: String?
    private let sampling: Sampling
    private let lock = NSLock()
    /// Whether the turn under way is cancelled, nil between turns: no cancel outlives its turn, and no
    /// other `send` takes one back.
    private var cancelled: Bool?

    init(
        _ model: Model, _ session: Session, _ system: SystemPrompt, _ instructions: String?,
        _ sampling: Sampling
    ) {
        (self.model, self.session, self.system) = (model, session, system)
        (self.instructions, self.sampling) = (instructions, sampling)
    }

    /// Ends the reply under way, begun or not, after its present token; without one it does nothing.
    /// From any thread.
    public func cancel() { locked { if cancelled != nil { cancelled = true } } }

    private func locked<T>(_ body: () throws -> T) rethrows -> T {
        lock.lock()
        defer { lock.unlock() }
        return try body()
    }

    private var isCancelled: Bool { locked { cancelled == true } }

    /// Says `text` and streams the reply to `onEvent`. When it fails, the history is as before.
    /// UserError while another is under way.
    @discardableResult
    public func send(_ text: String, onEvent: (Event) -> Void = { _ in }) throws -> Reply {
        try locked {
            guard cancelled == nil else {
                throw UserError("this chat is answering already: cancel that reply first")
            }
            cancelled = false
        }
        defer { locked { cancelled = nil } }
        messages.append(Message("user", text))
        do {
            return try answer(onEvent)
        } catch {
            messages.removeLast()
            throw error
        }
    }

    private func answer(_ onEvent: (Event) -> Void) throws -> Reply {
        let prompt = try model.harmony.render(messages, system: system, instructions: instructions)
        guard prompt.count < session.maxLength else {
            throw UserError("the conversation is too long: start a new chat")
        }
        let reply = Reply(model.tokenizer, stopIds: model.stopIds)
        let finish = try generate(prompt) { reply.feed($0).forEach(onEvent) }
        reply.finish(finish).forEach(onEvent)
        messages += reply.messages
        return reply
    }

    private func generate(_ prompt: [Int], _ onToken: (Int) -> Void) throws -> Finish {
        let sampler = Sampler(sampling, prompt: prompt)
        var logits: [Float] = []
        var at = try session.reuse(prompt)
        while at < prompt.count {
            if isCancelled { return .cancelled }
            let end = min(at + chunkSize, prompt.count)
            logits = try session.feed(Array(prompt[at..<end]))
            at = end
        }
        session.snapshot()  // the next turn drops this reply's reasoning and comes back to here
        while !isCancelled {
            let token = try sampler.next(logits)
            onToken(token)
            if model.stopIds.contains(token) { return .stop }
            if session.tokens.count >= session.maxLength { return .length }
            logits = try session.feed([token])
        }
        return .cancelled
    }
}
