// swift-tools-version:5.9
import PackageDescription

// The archive of the pod onnxruntime-c that runtimes/targets/ios.py names (tests/mobile compare).
let onnxruntime = "1.29.0"

#if os(Linux)
// For tests: headers and libonnxruntime.so lie where -Xcc -I and -Xlinker -L say.
let library: [Product] = []
let targets: [Target] = [
    .target(name: "COnnxRuntime", linkerSettings: [.linkedLibrary("onnxruntime")]),
    .executableTarget(name: "GptOssCheck", dependencies: ["GptOss"]),
    .executableTarget(name: "GptOssBring", dependencies: ["GptOss"]),
    .executableTarget(name: "GptOssTokens", dependencies: ["GptOss"]),
]
#else
let library: [Product] = [.library(name: "GptOssChat", targets: ["GptOssChat"])]
let targets: [Target] = [
    // Put onnxruntime.xcframework of the archive pod-archive-onnxruntime-c-<version>.zip here.
    .binaryTarget(name: "onnxruntime", path: "Frameworks/onnxruntime.xcframework"),
    .target(name: "COnnxRuntime", dependencies: ["onnxruntime"]),
    .target(name: "GptOssChat", dependencies: ["GptOss"]),
]
#endif

let package = Package(
    name: "GptOss",
    platforms: [.iOS("15.1")],
    products: [.library(name: "GptOss", targets: ["GptOss"])] + library,
    targets: [
        // The schema is the one in runtimes/, by a link.
        .target(
            name: "GptOss", dependencies: ["COnnxRuntime"], resources: [.embedInCode("manifest.schema.json")])
    ] + targets
)
