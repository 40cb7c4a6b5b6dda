/** A reply's token ids back to messages, as they come, each piece with what it is. */
import { CONSTRAIN, type Message, STOPS, isCall } from "./harmony.js";
import {
  CHANNEL,
  type Header,
  TEXT_TOOLS,
  namesTool,
  readHeader,
  withoutContent,
  wordsOf,
} from "./header.js";
import { IncrementalDecoder, type Tokenizer } from "./tokenizer.js";

const [MESSAGE, CALL] = ["<|message|>", "<|call|>"];
const ANSWER_ENDS: readonly (string | undefined)[] = ["<|return|>", "<|endoftext|>"];
const BLANK = /^[ \t\n\r]*$/; // JSON's white space
// A header is a role, a recipient, a channel and a content type. Longer text that names the
// answer's or reasoning's channel, or none, is passed on as it comes instead of being held back.
const LONGEST_HEADER = 256; // characters, not UTF-16 units
const OTHERS = ["user", "system", "developer", "tool"];

/** What a message is: `call` on any channel. */
export type Kind = "analysis" | "commentary" | "final" | "call";

/** A piece of a reply: whole characters of one message, and what they are. */
export interface Piece {
  kind: Kind;
  channel: string;
  text: string;
  /** Pieces of one message have the same number, counted from 0 in a reply. */
  message: number;
  /** The tool that a call is for: `text` is of its arguments. */
  recipient?: string;
  contentType?: string;
}

export function kindOf(message: Message): Kind {
  return isCall(message) ? "call" : ((message.channel ?? "final") as Kind);
}

/**
 * Reads a reply token by token, from behind `<|start|>assistant`.
 *
 * Models leave the format now and then, so no sequence of tokens is an error:
 *
 * - a header is read for what it holds, in any order (`header.ts`);
 * - a tool named without `to=` is called by a message that ends in `<|call|>`;
 * - arguments without `<|message|>` begin at the first brace; without any there is no call;
 * - text behind `<|channel|>` that names no channel is an answer only as the reply's last message;
 * - what is written in another's name is a message of theirs and no piece.
 *
 * What cannot be told yet is held back until its message ends.
 */
export class StreamParser {
  /** Those completed so far. */
  readonly messages: Message[] = [];
  readonly #decoder: IncrementalDecoder;
  readonly #marks: ReadonlyMap<number, string>;
  readonly #tools: ReadonlySet<string>;
  #role = "assistant"; // what the next message's author is known to be
  #header: string | null = ""; // null while reading content
  #heldHeader = false; // beyond its longest
  #open = textIn("final");
  #content: string[] = [];
  #unsaid = ""; // of it, what no piece told yet
  #told = false; // whether one told any
  #count = 0; // the assistant's messages
  #answered = false;

  /**
   * `tools` are the names of those that the model may call. Tokens of `stopIds` that are no marks
   * of harmony's end the reply as its own do.
   */
  constructor(tokenizer: Tokenizer, tools: Iterable<string> = [], stopIds: Iterable<number> = []) {
    this.#decoder = new IncrementalDecoder(tokenizer);
    this.#tools = new Set(tools);
    const marks = ["<|start|>", "<|end|>", CHANNEL, CONSTRAIN, MESSAGE, ...STOPS];
    const present = marks.filter((mark) => tokenizer.hasSpecial(mark));
    this.#marks = new Map([
      ...[...stopIds].map((id) => [id, STOPS[0]] as const),
      ...present.map((mark) => [tokenizer.special(mark), mark] as const),
    ]);
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
    const author = this.#open.message.role;
    pieces.push(...this.#close(mark));
    if (mark === CHANNEL) {
      // A message without an end before it: the same author goes on.
      [this.#role, this.#header] = [author, CHANNEL];
    }
    return pieces;
  }

  /** The end of the reply: held back bytes, and a message that nothing has closed. */
  finish(): Piece[] {
    return [...this.#text(this.#decoder.finish()), ...this.#close(undefined)];
  }

  #text(text: string): Piece[] {
    if (!text) return [];
    if (this.#header === null) return this.#say(text);
    const known = this.#header.length;
    const header = (this.#header += text);
    // Also the mark spelled in letters, which models that lost their special tokens write.
    const end = header.indexOf(MESSAGE, Math.max(0, known - MESSAGE.length));
    if (end >= 0) {
      const content = header.slice(end + MESSAGE.length);
      this.#begin(this.#read(header.slice(0, end)));
      return content ? this.#say(content) : [];
    }
    if (text.includes("{") && !header.slice(0, known).includes("{")) {
      const brace = header.indexOf("{");
      const found = this.#read(header.slice(0, brace));
      if (found.clean && takesJson(found.message)) {
        this.#begin(found);
        return this.#say(header.slice(brace));
      }
      this.#heldHeader = found.clean && found.tool !== undefined;
    }
    if (this.#heldHeader || !longerThan(header, LONGEST_HEADER)) return [];
    const [channel, said] = withoutContent(header, this.#role);
    const called = this.#read(header).message.recipient;
    if (channel === undefined || called || this.#byAnother(header, false)) {
      this.#heldHeader = true;
      return [];
    }
    this.#begin(textIn(channel || "final"));
    return this.#say(said);
  }

  #read(header: string): Header {
    return readHeader(header, this.#role, this.#tools);
  }

  #begin(header: Header): void {
    [this.#open, this.#header, this.#content] = [header, null, []];
    [this.#unsaid, this.#told] = ["", false];
  }

  #say(text: string): Piece[] {
    this.#content.push(text);
    this.#unsaid += text;
    const held = this.#open.tool !== undefined || this.#open.unnamed;
    return held ? [] : this.#tell(this.#open.message);
  }

  #tell(message: Message): Piece[] {
    const text = this.#unsaid;
    // Arguments that never come are no call: none begins before they do.
    const waits = isCall(message) && !this.#told && BLANK.test(text);
    if (!text || waits || message.role !== "assistant") return [];
    [this.#unsaid, this.#told] = ["", true];
    const { channel = "final", recipient, contentType } = message;
    const piece: Piece = { kind: kindOf(message), channel, text, message: this.#count };
    if (recipient !== undefined) piece.recipient = recipient;
    if (contentType !== undefined) piece.contentType = contentType;
    return [piece];
  }

  /** Complete the open message, by `mark` or where the reply was cut; expect a header. */
  #close(mark: string | undefined): Piece[] {
    const pieces = this.#header === null ? [] : this.#closeHeader(mark, this.#header);
    if (this.#header === null) pieces.push(...this.#complete(mark));
    [this.#role, this.#header, this.#heldHeader] = ["", "", false];
    return pieces;
  }

  /** Begin the message of a header that ended without `<|message|>`, if it says anything. */
  #closeHeader(mark: string | undefined, header: string): Piece[] {
    const cut = mark === undefined;
    const brace = header.indexOf("{");
    if (brace >= 0 && (mark === CALL || cut)) {
      const found = this.#read(header.slice(0, brace));
      if (found.clean && found.tool) {
        this.#begin(found);
        return this.#say(header.slice(brace));
      }
    }
    // Without arguments there is no call.
    if (this.#read(header).message.recipient || this.#byAnother(header, cut)) return [];
    const [named, said] = withoutContent(header, this.#role);
    const words = wordsOf(said);
    // At most the beginning of a header.
    if (!words.length || (cut && named !== "" && words.length === 1)) return [];
    let channel = named;
    if (!channel) {
      const last = ANSWER_ENDS.includes(mark) || (cut && named === "");
      const answer = last && !this.#answered;
      if (named === undefined && !answer && words.length === 1) return [];
      channel = answer ? "final" : "analysis";
    }
    this.#begin(textIn(channel));
    return this.#say(said);
  }

  /** Whether a header without content begins with the name of another than the assistant. */
  #byAnother(header: string, cut: boolean): boolean {
    const [first] = wordsOf(header.replaceAll(CHANNEL, " "));
    if (this.#role || first === undefined) return false;
    if (OTHERS.includes(first) || namesTool(first, this.#tools)) return true;
    const roles = cut && first !== "assistant" ? ["assistant", ...OTHERS] : [];
    return roles.some((role) => role.startsWith(first));
  }

  #complete(mark: string | undefined): Piece[] {
    const { tool, unnamed, message: header } = this.#open;
    const message: Message = { ...header, content: this.#content.join("") };
    // Where the reply was cut, it was on its way to be a call, unless a tool seems to speak.
    const cutCall = mark === undefined && message.role === "assistant";
    if (tool !== undefined && (mark === CALL || cutCall)) {
      [message.role, message.recipient] = ["assistant", tool];
      if (message.channel === undefined || message.channel === "final") {
        message.channel = "commentary";
      }
    } else if (unnamed && !isCall(message) && message.role === "assistant") {
      const answer = ANSWER_ENDS.includes(mark) && !this.#answered;
      message.channel = answer ? "final" : "analysis";
    }
    if (isCall(message) && BLANK.test(message.content)) return [];
    const pieces = this.#tell(message);
    this.messages.push(message);
    if (message.role === "assistant") {
      this.#count++;
      this.#answered ||= message.channel === "final" && wordsOf(message.content).length > 0;
    }
    return pieces;
  }
}

function textIn(channel: string): Header {
  return { message: { role: "assistant", content: "", channel }, unnamed: false, clean: true };
}

function takesJson(message: Message): boolean {
  return isCall(message) && !TEXT_TOOLS.includes(message.recipient as string);
}

function longerThan(text: string, characters: number): boolean {
  return text.length > characters && [...text].length > characters;
}
