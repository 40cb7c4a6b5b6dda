import Foundation

#if canImport(CryptoKit)
import CryptoKit
#endif
#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// Brings a package into a folder of the app's own, file by file, each checked by its SHA-256.
///
/// What is there already and right is kept, a download goes on where it stopped, and the manifest is
/// written last: a folder with a manifest is complete. `timeout` is how many seconds a server may
/// keep silent. Whatever fails is a UserError.
public struct Delivery: Sendable {
    private let folder: URL
    private let timeout: TimeInterval

    public init(folder: URL, timeout: TimeInterval = 30) {
        (self.folder, self.timeout) = (folder, timeout)
    }

    /// True when all files that an app reads are there, by size.
    public var isComplete: Bool {
        guard let manifest = try? Manifest(folder: folder) else { return false }
        return manifest.reads.allSatisfy { file in (try? place(file.name)).flatMap(size) == file.size }
    }

    /// From a web server's folder; `progress` is told bytes done and bytes in all. Cancelling the
    /// task stops it.
    public func download(
        from base: URL, progress: @escaping @Sendable (Int, Int) -> Void
    ) async throws {
        do {
            try await bring(from: base, progress)
        } catch let error as UserError {
            throw error
        } catch {
            if Task.isCancelled { throw UserError("stopped; it goes on from here the next time") }
            throw UserError("the package did not come: \(error.localizedDescription)")
        }
    }

    private func bring(from base: URL, _ progress: @escaping @Sendable (Int, Int) -> Void) async throws {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        let text = try place("\(Manifest.file).partial")
        try await fetch(Manifest.file, from: base, to: text, start: 0, most: Manifest.mostBytes) { _ in }
        defer { try? FileManager.default.removeItem(at: text) }
        let manifest = try Manifest(text: naming(Manifest.file) { try read(text, most: Manifest.mostBytes) })
        let wanted = try manifest.files.filter { try !isHere($0) }
        // Until all of the new files are here, the folder is no package, nor the one it was.
        if !wanted.isEmpty { try? FileManager.default.removeItem(at: place(Manifest.file)) }
        let total = manifest.files.reduce(0) { $0 + $1.size }
        var done = total - wanted.reduce(0) { $0 + $1.size }
        for file in wanted {
            let before = done
            try await copy(file, from: base) { progress(before + $0, total) }
            done += file.size
            progress(done, total)
        }
        try rename(text, Manifest.file)
    }

    private func copy(
        _ file: PackageFile, from base: URL, _ progress: @escaping @Sendable (Int) -> Void
    ) async throws {
        let partial = try place("\(file.name).partial")
        try FileManager.default.createDirectory(
            at: partial.deletingLastPathComponent(), withIntermediateDirectories: true)
        let kept = size(of: partial) ?? 0
        if kept != file.size {
            let start = kept < file.size ? kept : 0
            try await fetch(file.name, from: base, to: partial, start: start, most: file.size, progress)
        }
        guard try sha256(partial) == file.sha256 else {
            try FileManager.default.removeItem(at: partial)
            throw UserError("\(file.name): what came is not what the manifest says: try again")
        }
        try rename(partial, file.name)
    }

    private func fetch(
        _ name: String, from base: URL, to file: URL, start: Int, most: Int,
        _ progress: @escaping @Sendable (Int) -> Void
    ) async throws {
        var request = URLRequest(url: base.appendingPathComponent(name), timeoutInterval: timeout)
        if start > 0 { request.setValue("bytes=\(start)-", forHTTPHeaderField: "Range") }
        let download = try Download(to: file, start: start, most: most, progress)
        let status = try await download.run(request)
        guard [200, 206].contains(status) else {
            throw UserError("\(base.absoluteString): \(name): the server answered \(status)")
        }
    }

    private func place(_ name: String) throws -> URL { try GptOss.place(folder, name) }

    private func rename(_ whole: URL, _ name: String) throws {
        try? FileManager.default.removeItem(at: place(name))
        try FileManager.default.moveItem(at: whole, to: place(name))
    }

    private func isHere(_ file: PackageFile) throws -> Bool {
        try size(of: place(file.name)) == file.size && sha256(place(file.name)) == file.sha256
    }

    private func size(of file: URL) -> Int? {
        (try? file.resourceValues(forKeys: [.fileSizeKey]))?.fileSize
    }

    private func sha256(_ file: URL) throws -> String {
        let handle = try FileHandle(forReadingFrom: file)
        defer { try? handle.close() }
        var hash = SHA256()
        while let block = try handle.read(upToCount: 1 << 20), !block.isEmpty {
            try Task.checkCancellation()
            hash.update(data: block)
        }
        return hash.finalize().map { String(format: "%02x", $0) }.joined()
    }
}
