/**
 * A message's header as a model wrote it, to what it was understood to be.
 *
 * `[role] [to=name] [<|channel|>name] [to=name] [<|constrain|>type]`, in any order, with words too
 * many or too few. What is stored is clean: no mark stays in a name as letters.
 */
import { CONSTRAIN, FUNCTIONS, type Message, calledName, isCall } from "./harmony.js";
import { CHANNELS } from "./system.js";

export const CHANNEL = "<|channel|>";
/** Tools that take text as it stands, no JSON object. */
export const TEXT_TOOLS: readonly string[] = ["python"];

// White space and the ends of words as Python has them.
const SPACE = "[\\t-\\r\\x1c- \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const SPACES = new RegExp(`${SPACE}+`, "u");
const WORD_END = "(?![\\p{L}\\p{N}_])";
const NAMES = `(${CHANNELS.join("|")})${WORD_END}`;
const TYPE_NAME = "(?:<\\|constrain\\|>)?[A-Za-z0-9_.+/\\-]+";
const TYPE = new RegExp(`^${TYPE_NAME}$`, "u");
const STUCK_CHANNEL = new RegExp(`^${SPACE}*assistant${NAMES}`, "u");
const SPACED_CONSTRAIN = new RegExp(`${SPACE}*<\\|constrain\\|>${SPACE}*`, "gu");
const NAMED_CHANNEL = new RegExp(`^[^<]*<\\|channel\\|>${NAMES}`, "u");
const ROLE = new RegExp(`^${SPACE}*assistant${WORD_END}`, "u");
const LEADING_TYPE = new RegExp(
  `^${SPACE}*(?:<\\|constrain\\|>${SPACE}*${TYPE_NAME}|json(?=${SPACE}*\\{))`,
  "u",
);

export interface Header {
  /** Its content is empty. */
  message: Message;
  /** Named without `to=`: a call if the message ends as one. */
  tool?: string;
  /** It has a channel that the format does not have. */
  unnamed: boolean;
  /** Nothing else stands in it. */
  clean: boolean;
}

export function wordsOf(text: string): string[] {
  return text.split(SPACES).filter(Boolean);
}

/** Read `text`; `role` is its author where known, else empty, `tools` the known tools' names. */
export function readHeader(text: string, role: string, tools: ReadonlySet<string>): Header {
  // A channel whose mark is missing sticks to the role.
  const header = text
    .replace(STUCK_CHANNEL, `assistant${CHANNEL}$1`)
    .replace(SPACED_CONSTRAIN, ` ${CONSTRAIN}`);
  let author = role;
  let channel: string | undefined;
  let recipient: string | undefined;
  let inRole = false;
  let marked = false;
  let words: string[] = []; // beyond role, channel and recipient
  const types: string[] = []; // behind <|constrain|>
  for (const word of wordsOf(header.replaceAll(CHANNEL, ` ${CHANNEL} `))) {
    if (word === CHANNEL) marked = true;
    else if (word.startsWith("to=")) {
      const named = nameIn(word.slice(3));
      if (named) [recipient, inRole] = [named, !marked];
    } else if (word.startsWith(CONSTRAIN)) {
      if (TYPE.test(word)) types.push(word);
    } else if (CHANNELS.includes(word) && !(marked && words.length)) channel ??= word;
    else if (!author && !marked) author = nameIn(word);
    else if (word !== author) words.push(word);
  }
  author ||= "assistant";
  let tool: string | undefined;
  if (recipient === undefined) {
    tool = [author, ...words].map(nameIn).find((name) => namesTool(name, tools));
    words = words.filter((word) => nameIn(word) !== tool);
  }
  const unnamed =
    channel === undefined && marked && (words.length > 0 || tool !== undefined);
  // Behind its mark, or the only word: several are text.
  const typed = types[0] ?? (words.length === 1 && !unnamed ? words[0] : undefined);
  const contentType = typed !== undefined && TYPE.test(typed) ? typed : undefined;
  const clean = words.every((word) => word === contentType);
  let message = messageOf(author, channel, recipient, contentType);
  if (author === "assistant") {
    if (!isCall(message)) message = messageOf(author, channel ?? "final", undefined, contentType);
    // A call is not for the user to read.
    else if (channel === undefined || channel === "final") message.channel = "commentary";
    if (isCall(message) && inRole) message.recipientInRole = true;
  }
  return { message, ...(tool !== undefined && { tool }), unnamed, clean };
}

function messageOf(
  role: string,
  channel?: string,
  recipient?: string,
  contentType?: string,
): Message {
  return {
    role,
    content: "",
    ...(channel !== undefined && { channel }),
    ...(recipient !== undefined && { recipient }),
    ...(contentType !== undefined && { contentType }),
  };
}

/** Without what sticks to a name: marks in letters, arguments. */
function nameIn(word: string): string {
  return word.split(/<\||\{/, 1)[0];
}

/** Whether `word` is a tool's name: in the namespace of functions, or that of a known one. */
export function namesTool(word: string, tools: ReadonlySet<string>): boolean {
  const isFunction = word.startsWith(FUNCTIONS) && word !== FUNCTIONS;
  return isFunction || calledName(word, [...tools]) !== undefined;
}

/**
 * Of a header that no content followed: the channel it names, and what else it says. The channel is
 * undefined where it names one that the format does not have, "" where it names none.
 */
export function withoutContent(text: string, role: string): [string | undefined, string] {
  const named = NAMED_CHANNEL.exec(text);
  const channel = named ? named[1] : text.includes(CHANNEL) ? undefined : "";
  let said = named ? text.slice(named[0].length) : text;
  if (!role) said = said.replace(ROLE, "");
  // A type that JSON follows, or one behind its mark, is none of what is said.
  said = said.replace(LEADING_TYPE, "");
  return [channel, said.replaceAll(CHANNEL, "").replaceAll(CONSTRAIN, "")];
}
