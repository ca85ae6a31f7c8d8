// Talking to the server. The current answer is kept in the browser until the server says that it is stored.

const { form } = document.querySelector("main").dataset;
const SHELF = "pellucid-answer";
const LONGEST = 30; // seconds between two tries
const PATIENCE = 30; // seconds for a reply; a request that was carried out all the same is recognised by its key
const LATER = [408, 429, 500, 502, 503, 504, 507]; // nothing was kept, and the same may work later

/** What the server says no to for good. */
export class Refusal extends Error {
  constructor(status, reply) {
    super(reply.message ?? "The study cannot be reached.");
    Object.assign(this, { status, code: reply.error });
  }
}

/** The reply to a request; tried until there is one. `wait(words, seconds)` ends when it is time for another try. */
export async function ask(method, url, body, wait) {
  for (let seconds = 1; ; seconds = Math.min(2 * seconds, LONGEST)) {
    const headers = { "x-form": form, ...(body && { "content-type": "application/json" }) };
    const reply = await fetch(url, { method, headers, body, signal: AbortSignal.timeout(1000 * PATIENCE) }).catch(() => null);
    const said = await reply?.json().catch(() => ({})) ?? {};
    if (reply?.ok) return said;
    if (reply && !LATER.includes(reply.status)) throw new Refusal(reply.status, said);
    await wait(said.message ?? "The study cannot be reached. Your answer is kept here and sent again.", seconds);
  }
}

// Without storage (some private windows) an answer outlives a bad connection, but not a closed tab.
let shelf = null;
const storage = (() => { try { return window.localStorage; } catch { return null; } })();

/** Keep an answer until it is acknowledged. */
export function keep(body) {
  shelf = body;
  try { storage?.setItem(SHELF, JSON.stringify({ form, body })); } catch { /* full: kept in memory */ }
}

/** The answer that was not acknowledged yet, if there is one of this participant. */
export function kept() {
  if (shelf) return shelf;
  try {
    const found = JSON.parse(storage?.getItem(SHELF) ?? "null");
    return found?.form === form ? found.body : null;
  } catch { return null; }
}

/** The answer is stored. */
export function forget() {
  shelf = null;
  try { storage?.removeItem(SHELF); } catch { /* nothing was kept there */ }
}
