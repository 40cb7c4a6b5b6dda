import Foundation

/// Values held to a JSON Schema, by the few keywords that manifest.schema.json is written in.
///
/// The same few lines in every language (runtimes/schema.py), so that each finds the same first fault
/// and names its field in the same way.
struct Schema {
    private let root: [String: Any]
    private let patterns: [String: NSRegularExpression]  // each is compiled once

    init(_ root: Json) throws {
        self.root = root.members
        patterns = try Schema.patterns(root.members)
    }

    private static func patterns(_ value: Any) throws -> [String: NSRegularExpression] {
        let members = value as? [String: Any] ?? [:]
        var found: [String: NSRegularExpression] = [:]
        if let text = members["pattern"] as? String { found[text] = try NSRegularExpression(pattern: text) }
        for part in Array(members.values) + (value as? [Any] ?? []) { try found.merge(patterns(part)) { $1 } }
        return found
    }

    /// The first thing in `value` that is forbidden, as a line that begins with its field; nil where
    /// there is none.
    func fault(_ value: Any) -> String? { fault(value, root, "") }

    private func fault(_ value: Any, _ schema: [String: Any], _ field: String) -> String? {
        if schema.isEmpty { return nil }
        let parts = (schema["$ref"] as? String).map { [referred($0)] } ?? []
        for part in parts + (schema["allOf"] as? [[String: Any]] ?? []) {
            if let found = fault(value, part, field) { return found }
        }
        if let wanted = wanted(value, schema) { return "\(field) is \(shown(value)): it must be \(wanted)" }
        if let items = value as? [Any] {
            if let found = counted(items.count, schema, "Items", field) { return found }
            let rule = schema["items"] as? [String: Any] ?? [:]
            return items.enumerated().lazy.compactMap { fault($1, rule, "\(field)[\($0)]") }.first
        }
        if let members = value as? [String: Any] {
            return counted(members.count, schema, "Properties", field) ?? fault(members: members, schema, field)
        }
        return nil
    }

    private func referred(_ pointer: String) -> [String: Any] {
        pointer.dropFirst(2).components(separatedBy: "/").reduce(root) { $0[$1] as? [String: Any] ?? [:] }
    }

    private func fault(members: [String: Any], _ schema: [String: Any], _ field: String) -> String? {
        for name in schema["required"] as? [String] ?? [] where members[name] == nil {
            return "\(joined(field, name)) is missing"
        }
        let known = schema["properties"] as? [String: Any] ?? [:]
        let others = schema["additionalProperties"]
        for (name, member) in members {
            let rule = schema["propertyNames"] as? [String: Any] ?? [:]
            if let found = fault(name, rule, "a name") { return "\(field): \(found)" }
            if known[name] == nil && others as? Bool == false {
                let names = known.keys.sorted().joined(separator: ", ")
                return "\(joined(field, name)) is not known: \(names) may be there and nothing else"
            }
            let wanted = (known[name] ?? others) as? [String: Any] ?? [:]
            if let found = fault(member, wanted, joined(field, name)) { return found }
        }
        return nil
    }

    /// What the value itself must be and is not, in words.
    private func wanted(_ value: Any, _ schema: [String: Any]) -> String? {
        let names = schema["type"] as? [String] ?? (schema["type"] as? String).map { [$0] }
        if let kinds = names?.compactMap({ types[$0] }), !kinds.contains(where: { $0.right(value) }) {
            return kinds.map(\.words).joined(separator: " or ")
        }
        let allowed = schema["const"].map { [$0] } ?? schema["enum"] as? [Any]
        if let allowed, !allowed.contains(where: { same($0, value) }) {
            return allowed.map(shown).joined(separator: " or ")
        }
        if let value = number(value) {
            if let least = schema["minimum"].flatMap(number), value < least { return "at least \(shown(least))" }
            if let most = schema["maximum"].flatMap(number), value > most { return "at most \(shown(most))" }
        }
        if let value = value as? String {
            let least = schema["minLength"] as? Int ?? 0
            let most = schema["maxLength"] as? Int ?? Int.max
            if !(least...most).contains(value.unicodeScalars.count) { return "of \(least) to \(most) letters" }
            if let pattern = (schema["pattern"] as? String).flatMap({ patterns[$0] }), !matches(value, pattern) {
                return "of the form \(schema["title"] ?? "")"
            }
        }
        return nil
    }
}

private let types: [String: (words: String, right: (Any) -> Bool)] = [
    "null": ("null", { $0 is NSNull }),
    "boolean": ("true or false", { flag($0) != nil }),
    "integer": ("a whole number", isWhole),
    "number": ("a number", { number($0) != nil }),
    "string": ("a string", { $0 is String }),
    "array": ("a list", { $0 is [Any] }),
    "object": ("an object", { $0 is [String: Any] }),
]

private func counted(_ count: Int, _ schema: [String: Any], _ what: String, _ field: String) -> String? {
    let least = schema["min\(what)"] as? Int ?? 0
    let most = schema["max\(what)"] as? Int ?? Int.max
    return (least...most).contains(count) ? nil : "\(field) holds \(count): it must hold \(least) to \(most)"
}

private func same(_ one: Any, _ other: Any) -> Bool {
    if let one = number(one), let other = number(other) { return one == other }
    if let one = one as? String, let other = other as? String { return one.utf8.elementsEqual(other.utf8) }
    return false
}

private func joined(_ field: String, _ name: String) -> String {
    let isPlain = name.utf8.count <= 128 && name.unicodeScalars.allSatisfy { plain.contains($0) }
    let part = isPlain ? name : shown(name)
    return field.isEmpty ? part : "\(field).\(part)"
}

private let plain = Set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.+-".unicodeScalars)

private func matches(_ text: String, _ pattern: NSRegularExpression) -> Bool {
    pattern.firstMatch(in: text, range: NSRange(location: 0, length: text.utf16.count)) != nil
}

/// A boolean of JSON, as Foundation reads one: any NSNumber turns into a Bool.
func flag(_ value: Any) -> Bool? {
    guard let number = value as? NSNumber, number.objCType.pointee == CChar(UInt8(ascii: "c")) else { return nil }
    return number.boolValue
}

/// A number of JSON; a boolean is none.
func number(_ value: Any) -> Double? { flag(value) == nil ? (value as? NSNumber)?.doubleValue : nil }

/// A whole number as JSON may write it, 4096.0 too.
func isWhole(_ value: Any) -> Bool { number(value).map { $0.rounded() == $0 && $0.isFinite } ?? false }

/// A value on one line, cut short.
func shown(_ value: Any) -> String {
    switch value {
    case is NSNull: return "null"
    case is [Any]: return "a list"
    case is [String: Any]: return "an object"
    case let text as String:
        let letters = text.unicodeScalars.prefix(60).map { letter in
            letter != "\"" && (" "..."~").contains(letter)
                ? String(letter) : "\\u" + String(format: "%04x", letter.value)
        }
        return "\"\(letters.joined())\(text.unicodeScalars.count > 60 ? "..." : "")\""
    default: return flag(value).map { "\($0)" } ?? number(value).map { String(format: "%.15g", $0) } ?? "odd"
    }
}
