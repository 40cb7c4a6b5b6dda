import Foundation

// White space as Unicode has it: ICU's \s differs.
private let spaces = "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"

func isSpace(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.value {
    case 0x9...0xD, 0x20, 0x85, 0xA0, 0x1680, 0x2000...0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000: return true
    default: return false
    }
}

/// The pattern of a `pre_tokenizer` that splits by one and then writes bytes as characters.
func splitPattern(_ given: Json) throws -> NSRegularExpression {
    let steps = given.members["pretokenizers"] as? [[String: Any]] ?? []
    let split = steps.first ?? [:]
    let bytes = steps.last ?? [:]
    let plain = split["type"] as? String == "Split" && split["behavior"] as? String == "Isolated" && !isSet(split["invert"])
    let level =
        bytes["type"] as? String == "ByteLevel" && !isSet(bytes["add_prefix_space"])
        && bytes["use_regex"].flatMap(flag) == false
    guard given.optional("type") == "Sequence", plain, level, steps.count == 2,
        let pattern = (split["pattern"] as? [String: Any])?["Regex"] as? String
    else {
        throw UserError("pre_tokenizer is not Split by a Regex (Isolated) and ByteLevel, all this runtime has")
    }
    do {
        return try NSRegularExpression(pattern: portable(pattern))
    } catch {
        throw UserError("pre_tokenizer's Regex is none: \(shown(pattern))")
    }
}

/// Whether an option asks for something.
func isSet(_ option: Any?) -> Bool {
    guard let option, !(option is NSNull) else { return false }
    return flag(option) ?? number(option).map { $0 != 0 } ?? (option as? String).map { !$0.isEmpty } ?? true
}

/// The pattern with white space, and letters of either case, spelled out.
private func portable(_ pattern: String) -> String {
    var made = ""
    var bracketed = false
    var anyCase = 0  // how many groups deep
    var rest = pattern.unicodeScalars[...]
    while let first = rest.first {
        let begins = rest.starts(with: "(?i:".unicodeScalars)
        let part = String(rest.prefix(begins ? 4 : first == "\\" ? 2 : 1))
        rest = rest.dropFirst(part.unicodeScalars.count)
        let opens = begins || (anyCase > 0 && part == "(" && !bracketed)
        if opens { anyCase += 1 }
        if part == ")", anyCase > 0, !bracketed { anyCase -= 1 }
        if part == "[" { bracketed = true }
        if part == "]" { bracketed = false }
        switch part {
        case _ where begins: made += "(?:"
        case "\\s": made += bracketed ? spaces : "[\(spaces)]"
        case "\\S" where !bracketed: made += "[^\(spaces)]"
        default: made += anyCase > 0 && !bracketed ? eitherCase(part) : part
        }
    }
    return made
}

/// A letter as the reference takes it where case does not matter: ſ is an s, the Kelvin sign a k.
private func eitherCase(_ part: String) -> String {
    guard part.utf8.count == 1, let letter = part.first, letter.isLetter else { return part }
    let more = ["s": "\\u017f", "k": "\\u212a"][part.lowercased()] ?? ""
    return "[\(part.lowercased())\(part.uppercased())\(more)]"
}
