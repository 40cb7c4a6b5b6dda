#if canImport(CryptoKit)
import CryptoKit
import Foundation

/// Brings a package into a folder of the app's own, file by file, each checked by its SHA-256.
///
/// What is there already and right is kept; the manifest is written last: a folder with a manifest
/// is complete.
public struct Delivery {
    private let folder: URL

    public init(folder: URL) { self.folder = folder }

    /// True when all files of the manifest are there, by size.
    public var isComplete: Bool {
        guard let manifest = try? Manifest(folder: folder) else { return false }
        return manifest.files.allSatisfy { size(of: folder.appendingPathComponent($0.name)) == $0.size }
    }

    /// From a web server's folder; `progress` is told bytes done and bytes in all. Cancelling the
    /// task stops it.
    public func download(from base: URL, progress: @Sendable (Int, Int) -> Void) async throws {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        let (text, _) = try await URLSession.shared.data(from: base.appendingPathComponent(Manifest.file))
        guard let members = try JSONSerialization.jsonObject(with: text) as? [String: Any] else {
            throw UserError("\(base): no manifest there")
        }
        let manifest = try Manifest(Json(members))
        let total = manifest.files.reduce(0) { $0 + $1.size }
        var done = 0
        for file in manifest.files {
            try Task.checkCancellation()
            let target = folder.appendingPathComponent(file.name)
            if try size(of: target) != file.size || sha256(target) != file.sha256 {
                let (part, _) = try await URLSession.shared.download(
                    from: base.appendingPathComponent(file.name))
                guard try sha256(part) == file.sha256 else {
                    throw UserError("\(file.name): what came is not what the manifest says: try again")
                }
                try? FileManager.default.removeItem(at: target)
                try FileManager.default.moveItem(at: part, to: target)
            }
            done += file.size
            progress(done, total)
        }
        try text.write(to: folder.appendingPathComponent(Manifest.file), options: .atomic)
    }

    private func size(of file: URL) -> Int? {
        (try? file.resourceValues(forKeys: [.fileSizeKey]))?.fileSize
    }

    private func sha256(_ file: URL) throws -> String {
        let handle = try FileHandle(forReadingFrom: file)
        defer { try? handle.close() }
        var hash = SHA256()
        while let block = try handle.read(upToCount: 1 << 20), !block.isEmpty { hash.update(data: block) }
        return hash.finalize().map { String(format: "%02x", $0) }.joined()
    }
}
#endif
