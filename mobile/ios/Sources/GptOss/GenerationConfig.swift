import Foundation

/// generation_config.json as people have it: how a model wants its tokens chosen, where it stops.
///
/// null is as if absent; a filter that the file does not name is off: its author sampled without it.
/// UserError names the field that cannot be followed.
enum GenerationConfig {
    /// Greedy unless the file says do_sample; topK -1 is off, as elsewhere.
    static func sampling(_ content: Json) throws -> Sampling {
        func number(_ name: String, _ wanted: String, _ right: (Double) -> Bool) throws -> Double? {
            guard let value = content.present(name) else { return nil }
            guard let found = GptOss.number(value), found.isFinite, right(found) else {
                throw refusal(name, value, wanted)
            }
            return found
        }
        var made = Sampling()
        made.temperature = try number("temperature", "a number, 0 or more") { $0 >= 0 } ?? 1
        let topK = try number("top_k", "a whole number; 0 and -1 are off") { isWhole($0) && $0 >= -1 }
        made.topK = Int(min(max(topK ?? 0, 0), 0x1p31))
        made.topP = try number("top_p", "a number above 0 and at most 1") { $0 > 0 && $0 <= 1 } ?? 1
        made.minP = try number("min_p", "a number from 0 to 1") { (0...1).contains($0) } ?? 0
        made.repetitionPenalty = try number("repetition_penalty", "a number above 0") { $0 > 0 } ?? 1
        let sample = content.present("do_sample") ?? false
        guard let doSample = flag(sample) else { throw refusal("do_sample", sample, "true or false") }
        made.doSample = doSample
        return made
    }

    /// `eos_token_id`, one id or several; nil where it is absent or null.
    static func stopIds(_ content: Json) throws -> Set<Int>? {
        guard let ids = content.present("eos_token_id") else { return nil }
        let found = ids as? [Any] ?? [ids]
        let numbers = found.filter(isWhole).compactMap(number).filter { $0 >= 0 && $0 < 0x1p31 }
        guard !found.isEmpty, numbers.count == found.count else {
            throw refusal("eos_token_id", ids, "a token's id or a list of them")
        }
        return Set(numbers.map { Int($0) })
    }

    private static func refusal(_ name: String, _ value: Any, _ wanted: String) -> UserError {
        UserError("\(name) is \(shown(value)): it must be \(wanted); correct it there")
    }
}
