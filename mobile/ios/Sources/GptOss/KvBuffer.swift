import COnnxRuntime

/// A layer's keys or values [1, kvHeads, rows, headDim]: one tensor is past and present, so a run
/// writes in place. It holds `maxLength` tokens, or a layer's window and a quarter more: attention
/// reads every row at each step, while moving the window back to the start is paid once in
/// rows - window + 1 tokens.
struct KvBuffer {
    let name: String
    let window: Int?
    let tensor: Tensor
    private let heads: Int
    private let rows: Int
    private let rowBytes: Int

    init(_ api: OrtApi, _ name: String, window: Int?, maxLength: Int, _ manifest: Manifest) throws {
        (self.name, self.window, heads) = (name, window, manifest.kvHeads)
        rows = window.map { $0 * 5 / 4 } ?? maxLength
        rowBytes = manifest.headDim * (manifest.int8Kv ? 1 : 4)
        let type = manifest.int8Kv ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
        let shape = [1, heads, rows, manifest.headDim]
        tensor = try Tensor(api, Buffer(count: heads * rows * rowBytes), type, shape)
    }

    /// Position that row 0 holds after `length` tokens.
    func firstPosition(_ length: Int) -> Int {
        guard let window, length > rows else { return 0 }
        let evicted = rows - window + 1  // at a time
        return (length - rows + evicted - 1) / evicted * evicted
    }

    /// A copy of each head's rows [kvHeads, used, headDim] after `length` tokens.
    func read(_ length: Int) -> [UInt8] {
        let used = (length - firstPosition(length)) * rowBytes
        return (0..<heads).flatMap { tensor.buffer.bytes[$0 * rows * rowBytes..<$0 * rows * rowBytes + used] }
    }

    func write(_ copy: [UInt8]) {
        let used = copy.count / heads
        for head in 0..<heads {
            let place = UnsafeMutableRawBufferPointer(rebasing: tensor.buffer.bytes[(head * rows * rowBytes)...])
            place.copyBytes(from: copy[head * used..<(head + 1) * used])
        }
    }
}
