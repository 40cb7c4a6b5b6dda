import Foundation

/// A file of a package, by its name in the package's folder.
public struct PackageFile {
    public let name: String
    public let size: Int
    public let sha256: String
}

/// manifest.json, what an app needs of it.
public struct Manifest {
    public static let file = "manifest.json"
    public let name: String
    public let graph: String
    public let minRuntime: String
    public let contextLength: Int
    public let vocabSize: Int
    public let kvHeads: Int
    public let headDim: Int
    public let int8Kv: Bool
    /// Each layer's window; nil where its cache holds all tokens.
    public let windows: [Int?]
    public let session: [String: String]
    public let files: [PackageFile]

    /// UserError where `folder` holds no package.
    public init(folder: URL) throws {
        try self.init(Json(contentsOf: folder.appendingPathComponent(Manifest.file)))
    }

    public init(_ content: Json) throws {
        guard try content.whole("format") == 1 else {
            throw UserError("the package's format is not known: update the app")
        }
        // Of several graphs, the first that a CPU runs.
        let graphs = (content.members["graphs"] as? [[String: Any]] ?? []).map(Json.init)
        let chosen = graphs.first(where: Manifest.runsHere) ?? content
        name = try content.text("name")
        graph = try chosen.text("graph")
        minRuntime = try chosen.text("min_runtime")
        contextLength = try content.whole("context_length")
        vocabSize = try content.whole("vocab_size")
        let kv = try chosen.child("kv")
        kvHeads = try kv.whole("num_kv_heads")
        headDim = try kv.whole("head_dim")
        int8Kv = try kv.text("dtype") == "int8"
        windows = try kv.children("layers").map { try $0.flag("windowed") ? $0.whole("window") : nil }
        session = try chosen.child("session").child("config").members.mapValues { "\($0)" }
        files = try content.child("files").members.sorted { $0.key < $1.key }.map { name, entry in
            guard !name.hasPrefix("/"), !name.components(separatedBy: "/").contains("..") else {
                throw UserError("\(name) lies outside the package")
            }
            let entry = Json(entry as? [String: Any] ?? [:])
            return try PackageFile(name: name, size: entry.whole("size"), sha256: entry.text("sha256"))
        }
    }

    private static func runsHere(_ graph: Json) -> Bool {
        let providers = (try? graph.child("session"))?.members["providers"] as? [String] ?? []
        let requires = graph.members["requires"] as? [String] ?? []
        return requires.isEmpty && providers.contains("CPUExecutionProvider")
    }
}
