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
    /// Bytes of one: the published models' have 30 kB.
    static let mostBytes = 16 << 20
    public let name: String
    public let graph: String
    public let contextLength: Int
    public let vocabSize: Int
    public let kvHeads: Int
    public let headDim: Int
    public let int8Kv: Bool
    /// Each layer's window; nil where its cache holds all tokens.
    public let windows: [Int?]
    public let session: [String: String]
    public let files: [PackageFile]
    /// Of `files` those that an app reads: they gate loading, reports do not.
    public let reads: [PackageFile]

    /// UserError where `folder` holds no package.
    public init(folder: URL) throws {
        let file = folder.appendingPathComponent(Manifest.file)
        guard FileManager.default.fileExists(atPath: file.path) else {
            throw UserError("\(folder.path) is not a package: it has no \(Manifest.file)")
        }
        let text = try naming(Manifest.file) { try read(file, most: Manifest.mostBytes) }
        try self.init(text: text)
    }

    /// UserError where `text` is no valid manifest, or that of a package this app cannot run.
    public init(text: Data) throws {
        self = try naming(Manifest.file) {
            let content = try Json(text: text)
            try Manifest.check(content)
            return try Manifest(content, Device.here.choose(Manifest.graphs(content)))
        }
    }

    /// `content` is a valid manifest, `entry` what it says of the graph to run.
    public init(_ content: Json, _ entry: Json) throws {
        name = try content.text("name")
        graph = try entry.text("graph")
        contextLength = try content.whole("context_length")
        vocabSize = try content.whole("vocab_size")
        let kv = try entry.child("kv")
        kvHeads = try kv.whole("num_kv_heads")
        headDim = try kv.whole("head_dim")
        int8Kv = try kv.text("dtype") == "int8"
        windows = try kv.children("layers").map { try $0.flag("windowed") ? $0.whole("window") : nil }
        session = try entry.child("session").members["config"] as? [String: String] ?? [:]
        let listed = try content.child("files")
        files = try listed.members.keys.sorted().map { name in
            let file = try listed.child(name)
            return PackageFile(name: name, size: try file.whole("size"), sha256: try file.text("sha256"))
        }
        let links = content.members["links"] as? [String] ?? []
        let graph = graph
        reads = files.filter { file in
            let data = file.name.range(of: dataFiles, options: .regularExpression) != nil || links.contains(file.name)
            return file.name == graph || texts.contains(file.name) || data && graph.hasSuffix(".onnx")
        }
    }

    /// UserError names the first field that no runtime takes.
    public static func check(_ content: Json) throws {
        guard content.members["format"].flatMap(number) == 1 else {
            throw UserError("format \(shown(content.members["format"] ?? NSNull())) is not known: update the app")
        }
        if let fault = try schema.get().fault(content.members) ?? contradiction(content) {
            throw UserError("\(fault); the package is damaged or not to be trusted")
        }
    }

    /// What a valid manifest says of each graph, the one its general fields describe first.
    public static func graphs(_ content: Json) throws -> [Json] {
        let listed = content.members["graphs"] == nil ? [] : try content.children("graphs")
        return listed.isEmpty ? [content] : listed
    }

    /// The first field that another one contradicts, in words.
    private static func contradiction(_ content: Json) throws -> String? {
        let listed = content.members["graphs"] == nil ? [] : try content.children("graphs")
        let files = try content.child("files").members
        var names: Set<String> = []
        for (place, entry) in ([content] + listed).enumerated() {
            let field = place == 0 ? "" : "graphs[\(place - 1)]."
            let name = try entry.text("graph")
            if files[name] == nil { return "\(field)graph is \(name): it must be among the files" }
            if place > 0 && !names.insert(name).inserted {
                return "\(field)graph is \(name): it must be another than those before it"
            }
            let layers = try entry.child("kv").children("layers")
            if let layer = layers.firstIndex(where: { $0.flag("windowed") && $0.members["window"] is NSNull }) {
                return "\(field)kv.layers[\(layer)].window is null: a windowed layer must have one"
            }
        }
        return nil
    }

    private static let schema = Result { try Schema(Json(text: Data(PackageResources.manifest_schema_json))) }
}

private let texts = ["config.json", "generation_config.json", "tokenizer.json"]
/// How the exporter calls what graphs refer to.
private let dataFiles = "\\.onnx\\.data(?:\\.[0-9]+)?(?![\\s\\S])"

/// Where a package's file is; UserError where a link there may lead out of `folder`.
func place(_ folder: URL, _ name: String) throws -> URL {
    var file = folder
    for part in name.components(separatedBy: "/") {
        file.appendPathComponent(part)
        let attributes = try? FileManager.default.attributesOfItem(atPath: file.path)
        if attributes?[.type] as? FileAttributeType == .typeSymbolicLink {
            throw UserError("\(name) is a link out of the package: get the package again")
        }
    }
    return file
}
