/// Byte pair encoding of one piece of text, in n log n.
struct Bpe {
    private var ranks: [Int: Int] = [:]
    private var results: [Int32] = []
    /// Of the 256 bytes; -1 for what has none and is left out.
    private let tokens: [Int32]

    init(tokens: [Int32], merges count: Int) {
        self.tokens = tokens
        ranks.reserveCapacity(count)
        results.reserveCapacity(count)
    }

    /// Merges are added in the order of their ranks.
    mutating func add(_ left: Int, _ right: Int, _ result: Int) {
        ranks[left << 32 | right] = results.count
        results.append(Int32(result))
    }

    /// Append the ids of `bytes`: the earliest merge first, of equal ones the leftmost.
    func encode(_ bytes: [UInt8], into ids: inout [Int]) {
        var word = Word(bytes.map { tokens[Int($0)] }.filter { $0 >= 0 })
        for place in word.parts.indices { word.offer(rank(word, place), place) }
        while let least = word.offers.pop() {
            let (rank, place) = (least >> 32, least & 0xFFFF_FFFF)
            // A pair that has merged with a neighbour since is another pair.
            guard self.rank(word, place) == rank else { continue }
            word.merge(place, results[rank])
            word.offer(self.rank(word, place), place)
            let previous = word.previous[place]
            word.offer(self.rank(word, previous), previous)
        }
        var place = 0
        while place < word.parts.count {
            ids.append(Int(word.parts[place]))
            place = word.next[place]
        }
    }

    /// The rank of the pair that begins at `place`, lower ones first; nil where there is none.
    private func rank(_ word: Word, _ place: Int) -> Int? {
        guard place >= 0, word.parts[place] >= 0, word.next[place] < word.parts.count else { return nil }
        return ranks[Int(word.parts[place]) << 32 | Int(word.parts[word.next[place]])]
    }
}

/// A word while its parts merge: those that are gone are -1, and passed over by the links.
private struct Word {
    var parts: [Int32]
    var next: [Int]
    var previous: [Int]
    var offers = Heap()

    init(_ parts: [Int32]) {
        self.parts = parts
        next = parts.indices.map { $0 + 1 }
        previous = parts.indices.map { $0 - 1 }
    }

    mutating func offer(_ rank: Int?, _ place: Int) {
        if let rank { offers.push(rank << 32 | place) }
    }

    mutating func merge(_ place: Int, _ result: Int32) {
        let right = next[place]
        parts[place] = result
        parts[right] = -1
        next[place] = next[right]
        if next[right] < parts.count { previous[next[right]] = place }
    }
}

/// The least number first.
private struct Heap {
    private var keys: [Int] = []

    mutating func push(_ key: Int) {
        var at = keys.count
        keys.append(key)
        while at > 0, keys[(at - 1) / 2] > key {
            keys[at] = keys[(at - 1) / 2]
            at = (at - 1) / 2
        }
        keys[at] = key
    }

    mutating func pop() -> Int? {
        guard let last = keys.popLast() else { return nil }
        guard let least = keys.first else { return last }
        var at = 0
        while 2 * at + 1 < keys.count {
            var below = 2 * at + 1
            if below + 1 < keys.count, keys[below + 1] < keys[below] { below += 1 }
            if keys[below] >= last { break }
            keys[at] = keys[below]
            at = below
        }
        keys[at] = last
        return least
    }
}
