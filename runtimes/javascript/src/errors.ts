/** Something the user can put right: one line that says what is wrong and what to do. */
export class UserError extends Error {
  override name = "UserError";
}

export const DISPOSED = "this model was disposed of: load it again";

/** The first line of anything thrown. */
export function firstLine(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.split("\n")[0] || "unknown error";
}
