import Foundation

/// A package that is loaded.
public final class Model {
    public let manifest: Manifest
    public let tokenizer: Tokenizer
    public let harmony: Harmony
    /// The package's own.
    public let sampling: Sampling
    public let stopIds: Set<Int>
    let graph: Graph

    /// Loads the package in `folder`, which takes seconds; UserError when it cannot be.
    public init(folder: URL, threads: Int = ProcessInfo.processInfo.activeProcessorCount) throws {
        manifest = try Manifest(folder: folder)
        for file in manifest.files {
            let path = folder.appendingPathComponent(file.name).path
            let size = try? FileManager.default.attributesOfItem(atPath: path)[.size] as? NSNumber
            guard size?.intValue == file.size else {
                throw UserError("\(file.name) is missing or cut short: get the package again")
            }
        }
        let wanted = manifest.minRuntime
        guard wanted.compare(OnnxRuntime.version, options: .numeric) != .orderedDescending else {
            throw UserError("the package needs ONNX Runtime \(wanted), the app has \(OnnxRuntime.version)")
        }
        tokenizer = try Tokenizer(contentsOf: folder.appendingPathComponent("tokenizer.json"))
        harmony = Harmony(tokenizer)
        let configs = try ["generation_config.json", "config.json"].map { name in
            let file = folder.appendingPathComponent(name)
            return FileManager.default.fileExists(atPath: file.path) ? try Json(contentsOf: file) : Json([:])
        }
        sampling = try Sampling(configs[0])
        // Harmony's stops too: a file of another tool may name a padding token alone.
        let named = configs.compactMap { config -> [Int]? in
            let ids = config.members["eos_token_id"]
            return ids as? [Int] ?? (ids as? Int).map { [$0] }
        }.first
        stopIds = harmony.stopIds.union(named ?? [])
        let file = folder.appendingPathComponent(manifest.graph)
        let session = manifest.session
        graph = try naming(manifest.graph) { try Graph(file, threads: threads, config: session) }
    }

    /// A new conversation with room for `maxLength` tokens in all.
    public func chat(
        system: SystemPrompt, instructions: String? = nil, maxLength: Int = 4096,
        sampling: Sampling? = nil
    ) throws -> Chat {
        let length = min(maxLength, manifest.contextLength)
        let session = try Session(graph, manifest, maxLength: length)
        return Chat(self, session, system, instructions, sampling ?? self.sampling)
    }
}

/// One conversation. One reply at a time, on a thread of the caller's that may wait.
public final class Chat: @unchecked Sendable {
    /// What was said.
    public var messages: [Message] = []
    private let model: Model
    private let session: Session
    private let system: SystemPrompt
    private let instructions: String?
    private let sampling: Sampling
    private let lock = NSLock()
    private var cancelled = false

    init(
        _ model: Model, _ session: Session, _ system: SystemPrompt, _ instructions: String?,
        _ sampling: Sampling
    ) {
        (self.model, self.session, self.system) = (model, session, system)
        (self.instructions, self.sampling) = (instructions, sampling)
    }

    /// Ends the reply under way after its present token. From any thread.
    public func cancel() { set(true) }

    private func set(_ value: Bool) {
        lock.lock()
        cancelled = value
        lock.unlock()
    }

    private var isCancelled: Bool {
        lock.lock()
        defer { lock.unlock() }
        return cancelled
    }

    /// Says `text` and streams the reply to `onEvent`. When it fails, the history is as before.
    @discardableResult
    public func send(_ text: String, onEvent: (Event) -> Void = { _ in }) throws -> Reply {
        set(false)
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
        let reply = Reply(model.tokenizer)
        let finish = try generate(prompt) { reply.feed($0).forEach(onEvent) }
        reply.finish(finish).forEach(onEvent)
        messages += reply.messages
        return reply
    }

    private func generate(_ prompt: [Int], _ onToken: (Int) -> Void) throws -> Finish {
        let sampler = Sampler(sampling, prompt: prompt)
        var logits: [Float] = []
        var at = session.reuse(prompt)
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
