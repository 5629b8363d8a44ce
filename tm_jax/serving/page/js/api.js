// Plain HTTP requests to the server, with its access key where it wants one.

import * as settings from "./settings.js";

/** An answer of the server that is not what was asked for. */
export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

// A key may come once in the fragment, which no server and no referrer sees: /#token=KEY
let token = settings.load("token", "");
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  keep(given);
  history.replaceState(null, "", location.pathname + location.search);
}

/** The access key, or undefined. */
export function key() {
  return token || undefined;
}

/** Remembers an access key. */
export function keep(value) {
  token = value.trim();
  settings.save("token", token);
}

/** Address of `path` on the server of this page, for any path that the page is served under. */
export function address(path) {
  return new URL(path.replace(/^\//, ""), document.baseURI);
}

/**
 * One request.
 *
 * @param {string} path such as `api/info`
 * @param {RequestInit} options as for `fetch`
 * @returns {Promise<Response>}
 * @throws {Refused} for an answer that is no success; TypeError without a connection
 */
export async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  const response = await fetch(address(path), { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Refused(response.status, body.error?.code ?? "", body.error?.message ?? "");
}

/** The JSON at `path`. */
export async function json(path, options) {
  return (await request(path, options)).json();
}

/** A picture of the server as an address for `<img>`, which could not send the key itself. */
export async function picture(path) {
  return URL.createObjectURL(await (await request(path)).blob());
}
