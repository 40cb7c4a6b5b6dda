import Foundation

/// A JSON object whose members are asked for by kind; UserError where one is of another.
public struct Json {
    public let members: [String: Any]

    public init(_ members: [String: Any]) {
        self.members = members
    }

    public init(text: Data) throws {
        guard let members = try? JSONSerialization.jsonObject(with: text) as? [String: Any] else {
            throw UserError("no JSON object")
        }
        self.members = members
    }

    public init(contentsOf file: URL) throws {
        self = try naming(file.lastPathComponent) { try Json(text: read(file, most: 64 << 20)) }
    }

    private func member<T>(_ name: String) throws -> T {
        guard let value = members[name] as? T else { throw UserError("no \(name) in it") }
        return value
    }

    public func text(_ name: String) throws -> String { try member(name) }
    public func whole(_ name: String) throws -> Int { try (member(name) as NSNumber).intValue }
    public func child(_ name: String) throws -> Json { try Json(member(name)) }
    public func children(_ name: String) throws -> [Json] {
        try (member(name) as [[String: Any]]).map { Json($0) }
    }

    public func optional(_ name: String) -> String? { members[name] as? String }
    public func flag(_ name: String) -> Bool { members[name] as? Bool ?? false }
    public func number(_ name: String) -> Double? { (members[name] as? NSNumber)?.doubleValue }
    /// nil where it is absent or null.
    func present(_ name: String) -> Any? { members[name].flatMap { $0 is NSNull ? nil : $0 } }
}

/// A file that may come from a stranger: UserError beyond `most` bytes. gpt-oss's tokenizer.json has 28 MB.
func read(_ file: URL, most: Int) throws -> Data {
    let size = (try? file.resourceValues(forKeys: [.fileSizeKey]))?.fileSize ?? 0
    guard size <= most else { throw UserError("\(size) bytes are too many for one") }
    guard let text = try? Data(contentsOf: file) else { throw UserError("it cannot be read: get the package again") }
    return text
}

/// What `body` gives; its UserError names the file it is about.
func naming<T>(_ file: String, _ body: () throws -> T) throws -> T {
    do {
        return try body()
    } catch let failure as UserError {
        throw UserError("\(file): \(failure)")
    }
}
