// What the page says when something is refused: what happened, and what the visitor can do.

const CODES = {
  unauthorized: ["The server wants a key", "Enter the access key that belongs to this address."],
  bad_version: ["This page is out of date", "Load it again to get the version that fits the server."],
  full: ["All lines are busy", "The server speaks with as many callers as it can. Try again in a moment."],
  too_many_sessions: ["Too many calls from here", "Hang up in another window, then call again."],
  unknown_character: ["This character is gone", "The server does not keep pictures for long. Choose another one."],
  unknown_agent: ["This voice is gone", "Choose another one to talk with."],
  agent_failed: ["The voice has broken down", "The picture goes on. Hang up and call again for a new voice."],
  idle: ["The call has ended", "Nothing was heard for a long time, so the server hung up."],
  lifetime: ["The call has ended", "It reached the longest time that this server allows."],
  draining: ["The server is about to restart", "The call goes on by itself in a moment."],
  taken_over: ["The call goes on elsewhere", "Another window has taken this call over."],
  bad_message: ["The server hung up", "It could not read what this page sent. Load the page again."],
  internal: ["The server made a mistake", "The call goes on by itself in a moment."],
  slow: ["This connection is too slow", "Pictures did not arrive in time. The call starts again by itself."],
  unreachable: ["The server cannot be reached", "Check the network, or whether the server runs."],
  gone: ["The connection is lost", "The server did not come back. Call again when it is there."],
  silent: ["The server does not answer", "It took the call, but no picture came. Try again."],
  rtc: ["WebRTC did not connect", "A network may forbid it. Choose WebSocket under Connection, and call again."],
};

/**
 * Words for an error code.
 *
 * @param {string} code of docs/protocol.md, or one of this page's own
 * @param {string} message the server's sentence, used where the page knows no better
 * @returns {{title: string, text: string}}
 */
export function ofCode(code, message = "") {
  const [title, text] = CODES[code] ?? ["Something went wrong", message || "Call again in a moment."];
  return { title, text };
}

const MICROPHONE = {
  NotAllowedError: ["The microphone is blocked", "Allow it for this page beside the address, then call again. Playing a file works without it."],
  SecurityError: ["The microphone needs a secure page", "Browsers allow it only over https or on this computer itself. Playing a file works without it."],
  NotFoundError: ["No microphone was found", "Plug one in, then call again. Playing a file works without it."],
  NotReadableError: ["The microphone is busy", "Another program may hold it. Close that, then call again."],
  ended: ["The microphone is gone", "It was unplugged or taken away. Plug it in, then unmute."],
};

/** Words for what `getUserMedia` throws. */
export function ofMicrophone(error) {
  const [title, text] = MICROPHONE[error?.name] ?? MICROPHONE[error]
    ?? ["The microphone does not work", "Choose another one in the browser's settings, then call again."];
  return { title, text };
}

/** Words for a picture that was refused, as one sentence. */
export function ofPicture(status, code, message, limit) {
  if (status === 413 || code === "too_large") return tooLarge(null, limit);
  if (status === 429) return "Too many pictures in a short time. Wait a minute, then try again.";
  if (message) return message;
  return "The server could not use this picture. Choose another one.";
}

/** The sentence for a picture beyond the limit. */
export function tooLarge(bytes, limit) {
  const most = limit ? `at most ${megabytes(limit)} MB are allowed` : "the server allows less";
  return `This picture is too large: ${bytes ? `${megabytes(bytes)} MB, ` : ""}${most}. Choose a smaller one.`;
}

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(bytes < 10e6 ? 1 : 0).replace(/\.0$/, "");
}
