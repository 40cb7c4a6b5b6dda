/// What there is to run a graph with.
public struct Device {
    /// ONNX Runtime's.
    public var version: String
    /// ONNX Runtime's names; the one whose graphs suit it best first.
    public var providers: [String]
    /// As WebGPU names them.
    public var features: Set<String>
    /// Element types of the KV caches it keeps.
    public var kv: [String]
    /// Runs graphs that make the present anew (`in_place` false).
    public var appends: Bool

    /// This app's ONNX Runtime, on the CPU.
    public static let here = Device(
        version: OnnxRuntime.version, providers: ["CPUExecutionProvider"], features: [],
        kv: ["float32", "int8"], appends: false)

    public init(version: String, providers: [String], features: Set<String>, kv: [String], appends: Bool) {
        (self.version, self.providers, self.features) = (version, providers, features)
        (self.kv, self.appends) = (kv, appends)
    }

    /// Why a graph cannot run here; nil where it can.
    private func refusal(_ entry: Json) throws -> String? {
        let needed = try entry.text("min_runtime")
        if release(version).lexicographicallyPrecedes(release(needed)) {
            return "needs ONNX Runtime \(needed) or newer, the app has \(version): update the app"
        }
        let made = made(entry)
        if !made.contains(where: providers.contains) {
            return "is made for \(made.joined(separator: ", ")): export it with --target ios"
        }
        let missing = requires(entry).filter { !features.contains($0) }
        if !missing.isEmpty { return "needs \(missing.joined(separator: ", ")), which this device lacks" }
        let cache = try entry.child("kv")
        let dtype = try cache.text("dtype")
        if !kv.contains(dtype) {
            return "has a KV cache of \(dtype), not \(kv.joined(separator: " or ")): export it with --target ios"
        }
        if !appends && cache.members["in_place"] as? Bool == false {
            return "makes its KV cache anew at every run (in_place is false): export it with --target ios"
        }
        return nil
    }

    /// The graph to run, out of at least one: of those that can run here, the one made for the
    /// provider ranked highest; of those the one that asks most of the device; of those the first.
    /// UserError says why the first cannot where none can.
    public func choose(_ entries: [Json]) throws -> Json {
        let fit = try entries.filter { try refusal($0) == nil }
        let ranks = fit.map { entry in
            // What is made for another provider, but runs, comes behind all that is made for this one.
            [providers.firstIndex(of: made(entry)[0]) ?? providers.count, -requires(entry).count]
        }
        guard let best = ranks.min(by: { $0.lexicographicallyPrecedes($1) }),
            let place = ranks.firstIndex(of: best)
        else { throw UserError("\(try entries[0].text("graph")) \(try refusal(entries[0]) ?? "")") }
        return fit[place]
    }
}

private func made(_ entry: Json) -> [String] { (try? entry.child("session"))?.members["providers"] as? [String] ?? [] }

private func requires(_ entry: Json) -> [String] { entry.members["requires"] as? [String] ?? [] }

/// Leading numbers of a version: 1.32.0.dev1 and 1.32.0-dev.1 are 1, 32, 0, 0.
private func release(_ version: String) -> [Int] {
    let parts = version.split { "-+".contains($0) }.first?.split(separator: ".", omittingEmptySubsequences: false)
    let numbers = (parts ?? []).map { part in part.utf8.allSatisfy { (48...57).contains($0) } ? Int(part) : nil }
    return Array((numbers.prefix { $0 != nil }.compactMap { $0 } + [0, 0, 0, 0]).prefix(4))
}
