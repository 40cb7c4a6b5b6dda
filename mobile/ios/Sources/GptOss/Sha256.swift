#if !canImport(CryptoKit)
import Foundation

/// FIPS 180-4, for systems without CryptoKit, with the calls of it that are used here.
struct SHA256 {
    private static let primes = (2...311).filter { n in !(2..<n).contains { n % $0 == 0 } }
    /// The first 32 bits behind the point of the primes' cube roots.
    private static let constants = primes.map { bits(cbrt(Double($0))) }
    private var state = primes.prefix(8).map { bits(Double($0).squareRoot()) }
    private var held: [UInt8] = []
    private var length = 0

    private static func bits(_ root: Double) -> UInt32 { UInt32(truncatingIfNeeded: Int(root * 0x1p32)) }

    mutating func update(data: Data) {
        length += data.count
        held += data
        let whole = held.count / 64 * 64
        for start in stride(from: 0, to: whole, by: 64) { mix(start) }
        held.removeFirst(whole)
    }

    mutating func finalize() -> [UInt8] {
        let end = UInt64(8 * length).bigEndian
        let zeros = (119 - length % 64) % 64
        update(data: Data([0x80] + [UInt8](repeating: 0, count: zeros)) + withUnsafeBytes(of: end) { Data($0) })
        return state.flatMap { word in withUnsafeBytes(of: word.bigEndian) { Array($0) } }
    }

    private mutating func mix(_ start: Int) {
        func turned(_ word: UInt32, _ count: UInt32) -> UInt32 { word >> count | word << (32 - count) }
        var words = (0..<16).map { at in
            held[(start + 4 * at)..<(start + 4 * at + 4)].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
        }
        for i in 16..<64 {
            let (a, b) = (words[i - 15], words[i - 2])
            words.append(
                words[i - 16] &+ words[i - 7] &+ (turned(a, 7) ^ turned(a, 18) ^ a >> 3)
                    &+ (turned(b, 17) ^ turned(b, 19) ^ b >> 10))
        }
        var (a, b, c, d) = (state[0], state[1], state[2], state[3])
        var (e, f, g, h) = (state[4], state[5], state[6], state[7])
        for i in 0..<64 {
            let choice = e & f ^ ~e & g
            let majority = a & b ^ a & c ^ b & c
            let one = h &+ (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) &+ choice
                &+ SHA256.constants[i] &+ words[i]
            let two = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) &+ majority
            (a, b, c, d, e, f, g, h) = (one &+ two, a, b, c, d &+ one, e, f, g)
        }
        for (i, word) in [a, b, c, d, e, f, g, h].enumerated() { state[i] = state[i] &+ word }
    }
}
#endif
