// swift-tools-version:5.9
import PackageDescription

// The archive of the pod onnxruntime-c that runtimes/targets/ios.py names (tests/mobile compare).
let onnxruntime = "1.29.0"

let package = Package(
    name: "GptOss",
    platforms: [.iOS("15.1")],
    products: [
        .library(name: "GptOss", targets: ["GptOss"]),
        .library(name: "GptOssChat", targets: ["GptOssChat"]),
    ],
    targets: [
        // Put onnxruntime.xcframework of the archive pod-archive-onnxruntime-c-<version>.zip here.
        .binaryTarget(name: "onnxruntime", path: "Frameworks/onnxruntime.xcframework"),
        .target(name: "COnnxRuntime", dependencies: ["onnxruntime"]),
        .target(name: "GptOss", dependencies: ["COnnxRuntime"]),
        .target(name: "GptOssChat", dependencies: ["GptOss"]),
    ]
)
