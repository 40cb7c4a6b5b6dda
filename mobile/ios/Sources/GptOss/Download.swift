import Foundation

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// One address, streamed into a file from its byte `start` on. Once only.
final class Download: NSObject, URLSessionDataDelegate, @unchecked Sendable {
    private let output: FileHandle
    private let most: Int
    private let progress: @Sendable (Int) -> Void
    private let lock = NSLock()
    private var stopped = false
    private var written: Int
    private var status = 0
    private var failure: Error?
    private var done: CheckedContinuation<Void, Error>?

    /// Stops beyond `most` bytes: a file that is too long is wrong already.
    init(to file: URL, start: Int, most: Int, _ progress: @escaping @Sendable (Int) -> Void) throws {
        if !FileManager.default.fileExists(atPath: file.path) {
            try Data().write(to: file)
        }
        output = try FileHandle(forWritingTo: file)
        (written, self.most, self.progress) = (start, most, progress)
    }

    /// What has come already is told after a task is cancelled, too.
    private func stop() {
        lock.lock()
        stopped = true
        lock.unlock()
    }

    private var isStopped: Bool {
        lock.lock()
        defer { lock.unlock() }
        return stopped
    }

    /// The server's status; the file is only what came where it is 200 or 206.
    func run(_ request: URLRequest) async throws -> Int {
        let configuration = URLSessionConfiguration.ephemeral
        configuration.timeoutIntervalForRequest = request.timeoutInterval
        let session = URLSession(configuration: configuration, delegate: self, delegateQueue: nil)
        let task = session.dataTask(with: request)
        defer {
            session.finishTasksAndInvalidate()
            try? output.close()
        }
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { done in
                self.done = done
                task.resume()
            }
        } onCancel: {
            stop()
            task.cancel()
        }
        try Task.checkCancellation()
        return status
    }

    func urlSession(
        _ session: URLSession, dataTask: URLSessionDataTask, didReceive response: URLResponse,
        completionHandler: @escaping (URLSession.ResponseDisposition) -> Void
    ) {
        status = (response as? HTTPURLResponse)?.statusCode ?? 0
        do {
            if status != 206 { written = 0 }
            if status == 200 || status == 206 {
                try output.truncate(atOffset: UInt64(written))
                try output.seekToEnd()
            }
        } catch {
            failure = error
        }
        completionHandler(.allow)
    }

    func urlSession(_ session: URLSession, dataTask: URLSessionDataTask, didReceive data: Data) {
        guard failure == nil, status == 200 || status == 206, !isStopped else { return }
        do {
            try output.write(contentsOf: data)
            written += data.count
            progress(min(written, most))
        } catch {
            failure = error  // the disk is full, say
        }
        if failure != nil || written > most { dataTask.cancel() }
    }

    func urlSession(_ session: URLSession, task: URLSessionTask, didCompleteWithError error: Error?) {
        if let failure = failure ?? (written > most ? nil : error) {
            done?.resume(throwing: failure)
        } else {
            done?.resume()
        }
    }
}
