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
        guard let text = try? Data(contentsOf: folder.appendingPathComponent(Manifest.file)) else {
            throw UserError("\(folder.path) is not a package: it has no \(Manifest.file)")
        }
        try self.init(text: text)
    }

    /// UserError where `text` is no manifest, or that of a package no phone can run.
    public init(text: Data) throws {
        self = try naming(Manifest.file) { try Manifest(Json(text: text)) }
    }

    private init(_ content: Json) throws {
        guard try content.whole("format") == 1 else {
            throw UserError("the package's format is not known: update the app")
        }
        // Of several graphs, the first that a CPU runs.
        let graphs = (content.members["graphs"] as? [[String: Any]] ?? []).map { Json($0) }
        guard let chosen = (graphs.isEmpty ? [content] : graphs).first(where: Manifest.runsHere) else {
            throw UserError("the package is not for a phone: export it with --target ios")
        }
        name = try content.text("name")
        graph = try chosen.text("graph")
        minRuntime = try chosen.text("min_runtime")
        contextLength = try content.whole("context_length")
        vocabSize = try content.whole("vocab_size")
        let kv = try chosen.child("kv")
        kvHeads = try kv.whole("num_kv_heads")
        headDim = try kv.whole("head_dim")
        let dtype = try kv.text("dtype")
        guard ["int8", "float32"].contains(dtype), kv.members["in_place"] as? Bool ?? true else {
            throw UserError("the package's KV cache is not a phone's: export it with --target ios")
        }
        int8Kv = dtype == "int8"
        windows = try kv.children("layers").map { try $0.flag("windowed") ? $0.whole("window") : nil }
        session = try chosen.child("session").child("config").members.mapValues { "\($0)" }
        files = try content.child("files").members.sorted { $0.key < $1.key }.map { name, entry in
            let parts = Set(name.components(separatedBy: "/"))
            guard name != Manifest.file, parts.isDisjoint(with: ["", ".", ".."]) else {
                throw UserError("\(name): no name of a package's file")
            }
            guard let entry = (entry as? [String: Any]).map({ Json($0) }), let size = try? entry.whole("size"),
                let sha256 = try? entry.text("sha256")
            else { throw UserError("\(name) has no size or no sha256") }
            return PackageFile(name: name, size: size, sha256: sha256)
        }
        let graph = graph
        guard files.contains(where: { $0.name == graph }) else {
            throw UserError("the package lacks its graph \(graph)")
        }
    }

    private static func runsHere(_ graph: Json) -> Bool {
        let providers = (try? graph.child("session"))?.members["providers"] as? [String] ?? []
        let requires = graph.members["requires"] as? [String] ?? []
        return requires.isEmpty && providers.contains("CPUExecutionProvider")
    }
}
