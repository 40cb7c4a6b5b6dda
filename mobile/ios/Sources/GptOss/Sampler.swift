import Foundation

/// How tokens are chosen; temperature 0 or `doSample` false is greedy, topK 0, topP 1, minP 0 off.
/// It is all of it, and samples by default: a copy of the opened package's `sampling` with
/// a penalty of its own leaves greedy what is.
public struct Sampling {
    public var temperature = 1.0
    public var topK = 0
    public var topP = 1.0
    public var minP = 0.0
    public var repetitionPenalty = 1.0
    public var doSample = true
    public var seed: UInt64?

    public init() {}

    public static var greedy: Sampling {
        var sampling = Sampling()
        sampling.doSample = false
        return sampling
    }
}

/// Steele, Lea and Flood's SplitMix64.
public struct SplitMix64 {
    private var state: UInt64

    public init(_ seed: UInt64) { state = seed }

    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    /// A double in [0, 1): the upper 53 of 64 bits, times 2^-53.
    public mutating func uniform() -> Double { Double(next() >> 11) * 0x1p-53 }
}

/// Draws one sequence's tokens, id for id as every runtime of these packages (tests/vectors).
public final class Sampler {
    private let options: Sampling
    private var random: SplitMix64
    private var seen: Set<Int> = []

    public init(_ options: Sampling, prompt: [Int]) {
        self.options = options
        random = SplitMix64(options.seed ?? UInt64.random(in: .min ... .max))
        if penalized { seen = Set(prompt) }
    }

    private var penalized: Bool { options.repetitionPenalty != 1 }

    /// The token that follows; UserError for NaN logits.
    public func next(_ logits: [Float]) throws -> Int {
        var scores = logits.map(Double.init)
        if penalized {
            for token in seen {
                scores[token] *= scores[token] < 0 ? options.repetitionPenalty : 1
                scores[token] /= scores[token] < 0 ? 1 : options.repetitionPenalty
            }
        }
        var highest = 0
        for i in scores.indices {
            if scores[i].isNaN || scores[i] > scores[highest] { highest = i }
            if scores[i].isNaN { break }
        }
        guard scores[highest].isFinite else {
            throw UserError("the model's logits are broken: token \(highest) has \(scores[highest])")
        }
        let greedy = options.temperature == 0 || !options.doSample
        let token = greedy ? highest : draw(scores, scores[highest])
        if penalized { seen.insert(token) }
        return token
    }

    private func draw(_ scores: [Double], _ highest: Double) -> Int {
        let u = random.uniform()
        let temperature = options.temperature
        func weight(_ token: Int) -> Double { exp((scores[token] - highest) / temperature) }
        let some = options.topK > 0 && options.topK < scores.count
        let floor = some ? kthHighest(scores, options.topK) : -Double.infinity
        let pool = scores.indices.filter { scores[$0] >= floor }
        let total = pool.reduce(0) { $0 + weight($1) }
        let filtered = options.topP < 1 || options.minP > 0
        // The tokens that matter are few: put no more in order than the choice depends on.
        var count = 256
        while true {
            let everything = count >= pool.count
            let least = everything ? floor : kthHighest(scores, count)
            let top = pool.filter { scores[$0] >= least }
                .sorted { scores[$0] != scores[$1] ? scores[$0] > scores[$1] : $0 < $1 }
            var running: [Double] = []
            var (sum, kept) = (0.0, top.count)
            for (i, token) in top.enumerated() {
                let weight = weight(token)
                if options.topP < 1 && sum >= options.topP * total { kept = min(kept, i) }
                if options.minP > 0 && weight < options.minP { kept = min(kept, i) }
                sum += weight
                running.append(sum)
            }
            // The kept total is known without a filter, or when the cut lies inside `top`.
            let target = u * (filtered || everything ? running[kept - 1] : total)
            if everything || (filtered ? kept < top.count : sum > target) {
                return top[running.firstIndex { $0 > target } ?? kept - 1]
            }
            count *= 16
        }
    }

    private func kthHighest(_ scores: [Double], _ k: Int) -> Double {
        var highest = Array(scores[..<k].sorted())  // ascending is a heap, its lowest first
        for score in scores[k...] where score > highest[0] {
            var (place, child) = (0, 1)
            while child < k {
                if child + 1 < k && highest[child + 1] < highest[child] { child += 1 }
                if highest[child] >= score { break }
                highest[place] = highest[child]
                (place, child) = (child, 2 * child + 1)
            }
            highest[place] = score
        }
        return highest[0]
    }
}
