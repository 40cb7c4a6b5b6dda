/// What the user can put right; the message says how, in one line.
public struct UserError: Error, CustomStringConvertible {
    public let description: String

    public init(_ description: String) {
        self.description = description
    }
}
