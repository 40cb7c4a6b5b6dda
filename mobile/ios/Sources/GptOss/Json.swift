import Foundation

/// A JSON object whose members are asked for by kind; UserError where one is of another.
public struct Json {
    public let members: [String: Any]

    public init(_ members: [String: Any]) {
        self.members = members
    }

    public init(contentsOf file: URL) throws {
        guard let data = try? Data(contentsOf: file),
            let members = try? JSONSerialization.jsonObject(with: data) as? [String: Any]
        else { throw UserError("\(file.lastPathComponent) is missing or is no JSON object") }
        self.members = members
    }

    private func member<T>(_ name: String) throws -> T {
        guard let value = members[name] as? T else { throw UserError("no \(name) in it") }
        return value
    }

    public func text(_ name: String) throws -> String { try member(name) }
    public func whole(_ name: String) throws -> Int { try (member(name) as NSNumber).intValue }
    public func child(_ name: String) throws -> Json { try Json(member(name)) }
    public func children(_ name: String) throws -> [Json] {
        try (member(name) as [[String: Any]]).map(Json.init)
    }

    public func optional(_ name: String) -> String? { members[name] as? String }
    public func flag(_ name: String) -> Bool { members[name] as? Bool ?? false }
    public func number(_ name: String) -> Double? { (members[name] as? NSNumber)?.doubleValue }
}
