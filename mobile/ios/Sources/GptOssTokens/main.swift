import Foundation
import GptOss

// Holds a tokenizer.json to ids: GptOssTokens TOKENIZER FILE, of tokenizer_files.json or of a list of
// `cases`, each a text, its ids and what they decode to. Prints what differs.
let arguments = CommandLine.arguments.dropFirst().map { URL(fileURLWithPath: $0) }
let content = try Json(contentsOf: arguments[1])
let vocabSize = try content.whole("vocab_size")
var passed = 0

func equal(_ what: String, _ same: Bool) {
    if same { passed += 1 } else { print("\(what.prefix(500)) differs") }
}

/// Texts are compared by their bytes: Swift's == takes é and e with an accent for the same.
func same(_ one: String, _ other: String) -> Bool { one.utf8.elementsEqual(other.utf8) }

func ids(_ json: Json) -> [Int] { json.members["ids"] as? [Int] ?? [] }

func encodes(_ tokenizer: Tokenizer, _ entry: Json) throws {
    let text = try entry.text("text")
    equal("encode \(text)", tokenizer.encode(text) == ids(entry))
}

func cases() throws {
    let tokenizer = try Tokenizer(contentsOf: arguments[0], vocabSize: vocabSize)
    for entry in try content.children("cases") {
        try encodes(tokenizer, entry)
        try equal("decode \(entry.text("text"))", same(tokenizer.decode(ids(entry)), entry.text("decoded")))
    }
}

func files() throws {
    let text = try String(contentsOf: arguments[0], encoding: .utf8)
    let file = FileManager.default.temporaryDirectory.appendingPathComponent("tokenizer-\(UUID().uuidString).json")
    defer { try? FileManager.default.removeItem(at: file) }
    func changed(_ entry: Json) throws -> Tokenizer {
        var made = text
        guard let place = text.range(of: try entry.text("find"), options: .literal) else {
            fatalError("\(entry) is not of this file")
        }
        made.replaceSubrange(place, with: try entry.text("replace"))
        try Data(made.utf8).write(to: file)
        return try Tokenizer(contentsOf: file, vocabSize: vocabSize)
    }
    for entry in try content.children("read") {
        let tokenizer = try changed(entry)
        for entry in try entry.children("encode") { try encodes(tokenizer, entry) }
        for entry in try entry.children("decode") {
            try equal("decode \(ids(entry))", same(tokenizer.decode(ids(entry)), entry.text("text")))
            var stream = Utf8Stream()
            let pieces = ids(entry).map { stream.feed(tokenizer.bytes($0)) } + [stream.finish()]
            let expected = entry.members["pieces"] as? [String] ?? []
            equal("pieces \(ids(entry))", pieces.elementsEqual(expected, by: same))
        }
    }
    for entry in try content.children("damaged") {
        var told = "nothing"
        do { _ = try changed(entry) } catch let failure as UserError { told = failure.description }
        let isLine = told.hasPrefix("\(file.lastPathComponent): ") && !told.contains { $0.isNewline }
        try equal("\(entry.text("name")): \(told)", isLine)
    }
}

try content.members["cases"] == nil ? files() : cases()
print("\(passed) passed")
