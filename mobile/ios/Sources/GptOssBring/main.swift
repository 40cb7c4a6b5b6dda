import Foundation
import GptOss

// What an app does before it talks, for tests to look at: GptOssBring URL FOLDER [BYTES] downloads a
// package, and stops after BYTES; GptOssBring FOLDER loads one; GptOssBring manifests FILE says of each
// line whether it is a manifest. A UserError is printed, exit 2.
let arguments = Array(CommandLine.arguments.dropFirst())

final class Work: @unchecked Sendable {
    var task: Task<Void, Error>?
}

func bring(from base: URL, into folder: URL, most: Int) async throws {
    let delivery = Delivery(folder: folder, timeout: 1)
    print("complete: \(delivery.isComplete)")
    defer { print("complete: \(delivery.isComplete)") }
    let work = Work()
    let task = Task {
        try await delivery.download(from: base) { done, all in
            precondition(done <= all)
            if done >= most { work.task?.cancel() }
        }
    }
    work.task = task
    try await task.value
}

func verdict(_ text: Data) throws -> String {
    let verdicts = try [{ try Manifest.check(Json(text: text)) }, { _ = try Manifest(text: text) }].map { read in
        do {
            try read()
            return "taken"
        } catch let error as UserError {
            return "refused: \(error)"
        }
    }
    return verdicts[0]  // the second, whether it is for a phone, has only to end in no other way
}

do {
    if arguments.first == "manifests" {
        let lines = try Data(contentsOf: URL(fileURLWithPath: arguments[1])).split(separator: UInt8(ascii: "\n"))
        for line in lines { print(try verdict(Data(line))) }
    } else if arguments.count == 1 {
        _ = try Model(folder: URL(fileURLWithPath: arguments[0]), threads: 1)
    } else if let base = URL(string: arguments[0]) {
        let most = arguments.count > 2 ? Int(arguments[2]) : nil
        try await bring(from: base, into: URL(fileURLWithPath: arguments[1]), most: most ?? Int.max)
    }
    print("done")
} catch let error as UserError {
    print(error)
    exit(2)
}
