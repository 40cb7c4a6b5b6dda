import GptOss
import SwiftUI

/// What the screen shows; the model works on a queue of its own.
@MainActor
public final class ChatModel: ObservableObject {
    @Published public private(set) var lines: [(said: String, byUser: Bool)] = []
    @Published public private(set) var status: String? = "Loading the model…"
    @Published public private(set) var answering = false
    private var chat: Chat?
    private let queue = DispatchQueue(label: "gptoss")

    public init() {}

    /// Brings the package into `folder` from `address` where it is not there yet, and loads it.
    public func open(folder: URL, address: URL?) async {
        do {
            let delivery = Delivery(folder: folder)
            if !delivery.isComplete, let address {
                try await delivery.download(from: address) { done, all in
                    Task { @MainActor in self.status = "Getting the model: \(100 * done / max(all, 1)) %" }
                }
            }
            let today = ISO8601DateFormatter.string(
                from: Date(), timeZone: .current, formatOptions: .withFullDate)
            chat = try await work {
                try Model(folder: folder).chat(system: SystemPrompt(date: today))
            }
            status = nil
        } catch {
            status = "\(error)"
        }
    }

    public func send(_ text: String) async {
        guard let chat, !answering else { return }
        lines += [(text, true), ("", false)]
        answering = true
        defer { answering = false }
        do {
            let remark = try await work {
                var last: Int?  // the message that was added to
                return try chat.send(text) { event in
                    guard event.kind == "final" else { return }
                    let apart = last == nil || last == event.message ? "" : "\n\n"
                    last = event.message
                    DispatchQueue.main.async { self.lines[self.lines.count - 1].said += apart + event.text }
                }.remark
            }
            if let remark { lines[lines.count - 1].said += "\n[\(remark)]" }
        } catch {
            status = "\(error)"
        }
    }

    public func stop() { chat?.cancel() }

    /// The weights go when the last conversation does.
    public func close() {
        stop()
        chat = nil
    }

    @discardableResult
    private func work<T>(_ task: @escaping () throws -> T) async throws -> T {
        try await withCheckedThrowingContinuation { done in
            queue.async { done.resume(with: Result(catching: task)) }
        }
    }
}

/// A chat screen.
public struct ChatView: View {
    @ObservedObject private var model: ChatModel
    @State private var question = ""

    public init(_ model: ChatModel) { self.model = model }

    public var body: some View {
        VStack {
            ScrollView {
                ForEach(Array(model.lines.enumerated()), id: \.offset) { _, line in
                    Text(line.said)
                        .textSelection(.enabled)
                        .frame(maxWidth: .infinity, alignment: line.byUser ? .trailing : .leading)
                        .padding(.horizontal)
                }
            }
            if let status = model.status { Text(status).font(.footnote) }
            HStack {
                TextField("Ask something", text: $question)
                Button(model.answering ? "Stop" : "Send") {
                    if model.answering { return model.stop() }
                    let text = question
                    question = ""
                    Task { await model.send(text) }
                }
                .disabled(model.status != nil && !model.answering)
            }
            .padding()
        }
    }
}
