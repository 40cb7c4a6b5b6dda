package gptoss

/** What the user can put right; the message says how, in one line. */
class UserError(message: String) : Exception(message)
