/**
 * A reply's token ids to messages, token by token, from behind `<|start|>assistant`.
 *
 * Models leave the format now and then, so no sequence of tokens is an error: a header is read
 * for what it holds, in any order, and text that never becomes a header is content.
 */
import { CHANNELS, type Message, STOPS } from "./harmony.js";
import { IncrementalDecoder, type Tokenizer } from "./tokenizer.js";

const [CHANNEL, MESSAGE, CONSTRAIN] = ["<|channel|>", "<|message|>", "<|constrain|>"];
// A header is a role, a recipient, a channel and a content type. Longer text is a model that left
// the format, and is passed on as content instead of being held back for ever.
const LONGEST_HEADER = 256; // characters, not UTF-16 units

// White space and the ends of words as Python has them.
const SPACE = "[\\t-\\r\\x1c- \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const SPACES = new RegExp(`${SPACE}+`, "u");
const NAMES = `(${CHANNELS.join("|")})(?![\\p{L}\\p{N}_])`;
const STUCK_CHANNEL = new RegExp(`^${SPACE}*assistant${NAMES}`, "u");
const SPACED_CONSTRAIN = new RegExp(`${SPACE}*<\\|constrain\\|>${SPACE}*`, "gu");
const NAMED_CHANNEL = new RegExp(`^[^<]*<\\|channel\\|>${NAMES}`, "u");

/** A piece of a reply: whole characters of one channel. */
export interface Piece {
  channel: string;
  text: string;
  /** Whom the message is for, when not the user: a tool. */
  recipient?: string;
}

export class StreamParser {
  /** Those completed so far. */
  readonly messages: Message[] = [];
  readonly #decoder: IncrementalDecoder;
  readonly #marks: ReadonlyMap<number, string>;
  #role = "assistant"; // what the next message's author is known to be
  #header: string | null = ""; // null while reading content
  #open: Message = { role: "assistant", content: "" };
  #content: string[] = [];

  constructor(tokenizer: Tokenizer) {
    this.#decoder = new IncrementalDecoder(tokenizer);
    const marks = ["<|start|>", "<|end|>", CHANNEL, CONSTRAIN, MESSAGE, ...STOPS];
    const present = marks.filter((mark) => tokenizer.hasSpecial(mark));
    this.#marks = new Map(present.map((mark) => [tokenizer.special(mark), mark]));
  }

  /** What `token` completes: mostly one piece or none. */
  feed(token: number): Piece[] {
    const mark = this.#marks.get(token);
    if (mark === undefined) return this.#text(this.#decoder.feed(token));
    const pieces = this.#text(this.#decoder.finish());
    if (this.#header !== null && [CHANNEL, CONSTRAIN, MESSAGE].includes(mark)) {
      return [...pieces, ...this.#text(mark)];
    }
    if (mark === CONSTRAIN || mark === MESSAGE) return pieces; // amid content they mean nothing
    const author = this.#open.role;
    pieces.push(...this.#close());
    if (mark === CHANNEL) {
      // A message without an end before it: the same author goes on.
      [this.#role, this.#header] = [author, CHANNEL];
    }
    return pieces;
  }

  /** The end of the reply: held back bytes, and a message that nothing has closed. */
  finish(): Piece[] {
    return [...this.#text(this.#decoder.finish()), ...this.#close()];
  }

  #text(text: string): Piece[] {
    if (!text) return [];
    if (this.#header === null) {
      this.#content.push(text);
      const { channel = "final", recipient } = this.#open;
      return [recipient === undefined ? { channel, text } : { channel, text, recipient }];
    }
    this.#header += text;
    // Also the mark spelled in letters, which models that lost their special tokens write.
    const at = this.#header.indexOf(MESSAGE);
    if (at >= 0) {
      const content = this.#header.slice(at + MESSAGE.length);
      this.#begin(parseHeader(this.#role, this.#header.slice(0, at)));
      return this.#text(content);
    }
    return [...this.#header].length > LONGEST_HEADER ? this.#giveUpHeader() : [];
  }

  #begin(message: Message): void {
    [this.#open, this.#header, this.#content] = [message, null, []];
  }

  /** The model left the format: what looked like a header is what it said. */
  #giveUpHeader(): Piece[] {
    const header = this.#header ?? "";
    // A channel that was named still holds: reasoning must not turn into an answer.
    const named = NAMED_CHANNEL.exec(header);
    this.#begin({ role: "assistant", content: "", channel: named?.[1] ?? "final" });
    const said = named ? header.slice(named[0].length) : header;
    return this.#text(said.replaceAll(CHANNEL, "").replaceAll(CONSTRAIN, ""));
  }

  /** Complete the open message and expect the next one's header. */
  #close(): Piece[] {
    let pieces: Piece[] = [];
    if (this.#header !== null) {
      const words = this.#header.split(SPACES).filter(Boolean);
      const message = parseHeader(this.#role, this.#header);
      const [, behind] = partition(words.join(" "), CHANNEL);
      // Without its content a header still says what it says, but more words are an answer.
      if (message.recipient || (behind !== null && behind.split(" ").filter(Boolean).length < 2)) {
        this.#begin(message);
      } else if (words.length && (this.#role || !"assistant".startsWith(words.join(" ")))) {
        pieces = this.#giveUpHeader();
      }
    }
    if (this.#header === null) {
      this.messages.push({ ...this.#open, content: this.#content.join("") });
    }
    [this.#role, this.#header] = ["", ""];
    return pieces;
  }
}

function partition(text: string, mark: string): [string, string | null] {
  const at = text.indexOf(mark);
  return at < 0 ? [text, null] : [text.slice(0, at), text.slice(at + mark.length)];
}

/** `[role] [to=name] [<|channel|>name] [to=name] [<|constrain|>type]`; `role` if known. */
function parseHeader(knownRole: string, text: string): Message {
  let role = knownRole;
  // A channel whose mark is missing sticks to the role.
  const header = text
    .replace(STUCK_CHANNEL, `assistant${CHANNEL}$1`)
    .replace(SPACED_CONSTRAIN, ` ${CONSTRAIN}`);
  let channel: string | undefined;
  let recipient: string | undefined;
  const types: string[] = [];
  let marked = false;
  for (const word of header.replaceAll(CHANNEL, ` ${CHANNEL} `).split(SPACES).filter(Boolean)) {
    if (word === CHANNEL) marked = true;
    else if (word.startsWith("to=")) recipient = word.slice(3) || recipient;
    else if (
      channel === undefined &&
      (marked || CHANNELS.includes(word)) &&
      !word.startsWith(CONSTRAIN)
    ) {
      channel = word;
    } else if (!role && !marked) role = word;
    else if (word !== role) types.push(word);
  }
  role ||= "assistant";
  if (channel === undefined && role === "assistant") {
    // A call is not for the user to read, so without a channel it takes the calls' own.
    channel = recipient ? "commentary" : "final";
  }
  return {
    role,
    content: "",
    ...(channel !== undefined && { channel }),
    ...(recipient !== undefined && { recipient }),
    ...(types.length > 0 && { contentType: types.join(" ") }),
  };
}
