/** Token ids that come from outside, held to the vocabulary before anything is computed of them. */
import { UserError } from "./errors.js";

/**
 * UserError for the first of `ids` that is no whole number below `vocabularySize`: a graph would
 * fail on it in the middle of a run, or take it for another token.
 */
export function checkIds(ids: Iterable<unknown>, vocabularySize: number, what: string): void {
  let position = 0;
  for (const id of ids) {
    if (!(Number.isInteger(id) && (id as number) >= 0 && (id as number) < vocabularySize)) {
      throw new UserError(
        `${what} have ${String(id)} at position ${position}: the vocabulary has ` +
          `${vocabularySize} tokens, ids from 0 to ${vocabularySize - 1}`,
      );
    }
    position++;
  }
}
