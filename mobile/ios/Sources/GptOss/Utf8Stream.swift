/// Bytes to text as they come, holding back those of an unfinished character.
public struct Utf8Stream {
    private var held: [UInt8] = []

    public init() {}

    /// The whole characters that `bytes` complete.
    public mutating func feed(_ bytes: [UInt8]) -> String {
        held += bytes
        let whole = held.count - Utf8Stream.unfinished(held)
        defer { held.removeFirst(whole) }
        return String(decoding: held[..<whole], as: UTF8.self)
    }

    /// What is left: U+FFFD for an unfinished character. The stream can be used again.
    public mutating func finish() -> String {
        defer { held = [] }
        return String(decoding: held, as: UTF8.self)
    }

    /// How many bytes at the end begin a character that more bytes may complete.
    private static func unfinished(_ bytes: [UInt8]) -> Int {
        for count in 1...3 where count <= bytes.count {
            let lead = bytes[bytes.count - count]
            if lead & 0xC0 == 0x80 { continue }
            let length = lead >= 0xF0 && lead <= 0xF4 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC2 ? 2 : 0
            if lead > 0xF4 || count >= length { return 0 }
            guard count > 1 else { return count }
            let second = bytes[bytes.count - count + 1]
            switch lead {
            case 0xE0: return second >= 0xA0 ? count : 0
            case 0xED: return second < 0xA0 ? count : 0
            case 0xF0: return second >= 0x90 ? count : 0
            case 0xF4: return second < 0x90 ? count : 0
            default: return count
            }
        }
        return 0
    }
}
