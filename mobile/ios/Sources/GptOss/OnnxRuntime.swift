import COnnxRuntime
import Foundation

/// What of ONNX Runtime's C API is needed; each call's failure is a UserError with its words.
enum OnnxRuntime {
    static let version = OrtGetApiBase().pointee.GetVersionString().map { String(cString: $0) } ?? "0"

    /// nil on a runtime older than this app was built for.
    static let api: OrtApi? = OrtGetApiBase().pointee.GetApi(UInt32(ORT_API_VERSION))?.pointee

    static func call(_ status: OrtStatusPtr?) throws {
        guard let status, let api else { return }
        defer { api.ReleaseStatus(status) }
        throw UserError(api.GetErrorMessage(status).map { String(cString: $0) } ?? "ONNX Runtime failed")
    }
}

/// Memory that tensors are views of.
final class Buffer {
    let bytes: UnsafeMutableRawBufferPointer

    init(count: Int) {
        bytes = .allocate(byteCount: count, alignment: 64)
        bytes.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit { bytes.deallocate() }
}

/// A tensor over a buffer.
final class Tensor {
    let value: OpaquePointer
    let buffer: Buffer
    private let api: OrtApi

    init(_ api: OrtApi, _ buffer: Buffer, _ type: ONNXTensorElementDataType, _ shape: [Int]) throws {
        (self.api, self.buffer) = (api, buffer)
        var memory: OpaquePointer?
        try OnnxRuntime.call(api.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory))
        defer { api.ReleaseMemoryInfo(memory) }
        var made: OpaquePointer?
        try OnnxRuntime.call(
            api.CreateTensorWithDataAsOrtValue(
                memory, buffer.bytes.baseAddress, buffer.bytes.count, shape.map(Int64.init),
                shape.count, type, &made))
        guard let made else { throw UserError("ONNX Runtime made no tensor") }
        value = made
    }

    /// int64 [1, values.count]
    convenience init(_ api: OrtApi, _ values: [Int]) throws {
        let buffer = Buffer(count: 8 * values.count)
        let numbers = buffer.bytes.bindMemory(to: Int64.self)
        for (place, value) in values.enumerated() { numbers[place] = Int64(value) }
        try self.init(api, buffer, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, [1, values.count])
    }

    deinit { api.ReleaseValue(value) }
}

/// What a graph says of one of its tensors.
struct TensorInfo {
    /// int8 or float32; another one's number is ONNX Runtime's.
    let type: String
    /// -1 where the graph leaves a length open.
    let shape: [Int]
}

/// A loaded graph.
final class Graph {
    let api: OrtApi
    private var environment: OpaquePointer?
    private var session: OpaquePointer?

    init(_ file: URL, threads: Int, config: [String: String]) throws {
        guard let api = OnnxRuntime.api else {
            throw UserError("ONNX Runtime \(OnnxRuntime.version) is older than the app")
        }
        self.api = api
        setenv("ORT_DISABLE_TELEMETRY", "1", 1)  // nothing leaves the phone
        try OnnxRuntime.call(api.CreateEnv(ORT_LOGGING_LEVEL_WARNING, "gptoss", &environment))
        try OnnxRuntime.call(api.DisableTelemetryEvents(environment))
        var options: OpaquePointer?
        try OnnxRuntime.call(api.CreateSessionOptions(&options))
        defer { api.ReleaseSessionOptions(options) }
        try OnnxRuntime.call(api.SetIntraOpNumThreads(options, Int32(threads)))
        for (name, value) in config {
            try OnnxRuntime.call(api.AddSessionConfigEntry(options, name, value))
        }
        try OnnxRuntime.call(api.CreateSession(environment, file.path, options, &session))
    }

    func inputs() throws -> [String: TensorInfo] {
        try tensors(api.SessionGetInputCount, api.SessionGetInputName, api.SessionGetInputTypeInfo)
    }

    func outputs() throws -> [String: TensorInfo] {
        try tensors(api.SessionGetOutputCount, api.SessionGetOutputName, api.SessionGetOutputTypeInfo)
    }

    private typealias Allocator = UnsafeMutablePointer<OrtAllocator>

    private func tensors(
        _ count: (OpaquePointer?, UnsafeMutablePointer<Int>?) -> OrtStatusPtr?,
        _ name: (OpaquePointer?, Int, Allocator?, UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?) -> OrtStatusPtr?,
        _ info: (OpaquePointer?, Int, UnsafeMutablePointer<OpaquePointer?>?) -> OrtStatusPtr?
    ) throws -> [String: TensorInfo] {
        var total = 0
        var allocator: Allocator?
        try OnnxRuntime.call(count(session, &total))
        try OnnxRuntime.call(api.GetAllocatorWithDefaultOptions(&allocator))
        var found: [String: TensorInfo] = [:]
        for place in 0..<total {
            var text: UnsafeMutablePointer<CChar>?
            try OnnxRuntime.call(name(session, place, allocator, &text))
            defer { api.ReleaseStatus(api.AllocatorFree(allocator, text)) }
            var told: OpaquePointer?
            try OnnxRuntime.call(info(session, place, &told))
            defer { api.ReleaseTypeInfo(told) }
            if let text { found[String(cString: text)] = try tensor(told) }
        }
        return found
    }

    private func named(_ type: ONNXTensorElementDataType) -> String {
        switch type {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8: "int8"
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: "float32"
        default: "type \(type.rawValue)"
        }
    }

    /// nil for what is no tensor.
    private func tensor(_ told: OpaquePointer?) throws -> TensorInfo? {
        var info: OpaquePointer?  // a view of what is told
        try OnnxRuntime.call(api.CastTypeInfoToTensorInfo(told, &info))
        guard info != nil else { return nil }
        var type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED
        var dimensions = 0
        try OnnxRuntime.call(api.GetTensorElementType(info, &type))
        try OnnxRuntime.call(api.GetDimensionsCount(info, &dimensions))
        var shape = [Int64](repeating: 0, count: dimensions)
        try OnnxRuntime.call(api.GetDimensions(info, &shape, dimensions))
        return TensorInfo(type: named(type), shape: shape.map(Int.init))
    }

    /// Runs it; `outputs` are written in place. Gives the last `count` floats of `logits`.
    func run(_ inputs: [String: Tensor], _ outputs: [String: Tensor], logits count: Int) throws -> [Float] {
        let feeds = Array(inputs), fetches = Array(outputs)
        let names = (feeds.map(\.key), ["logits"] + fetches.map(\.key))
        var results: [OpaquePointer?] = [nil] + fetches.map(\.value.value)
        try withPointers(names.0) { given in
            try withPointers(names.1) { wanted in
                try OnnxRuntime.call(
                    api.Run(
                        session, nil, given, feeds.map(\.value.value), feeds.count, wanted,
                        wanted.count, &results))
            }
        }
        defer { api.ReleaseValue(results[0]) }
        var info: OpaquePointer?
        try OnnxRuntime.call(api.GetTensorTypeAndShape(results[0], &info))
        defer { api.ReleaseTensorTypeAndShapeInfo(info) }
        var total = 0
        try OnnxRuntime.call(api.GetTensorShapeElementCount(info, &total))
        var data: UnsafeMutableRawPointer?
        try OnnxRuntime.call(api.GetTensorMutableData(results[0], &data))
        guard let data, total >= count else { throw UserError("the graph gives no logits") }
        let floats = data.bindMemory(to: Float.self, capacity: total)
        return Array(UnsafeBufferPointer(start: floats + (total - count), count: count))
    }

    private func withPointers(
        _ texts: [String], _ body: ([UnsafePointer<CChar>?]) throws -> Void
    ) rethrows {
        let copies = texts.map { strdup($0) }
        defer { copies.forEach { free($0) } }
        try body(copies.map { UnsafePointer($0) })
    }

    deinit {
        api.ReleaseSession(session)
        api.ReleaseEnv(environment)
    }
}
