// @ts-check
// The one line that says what goes on, also to screen readers.

import { BackendError } from "./backend.js";
import { DocumentError } from "./document.js";
import { TooLarge } from "./editor.js";
import { say } from "./words.js";

const UNAUTHORIZED = 401;

// Long enough to be read, then it no longer lies over the picture.
const SHOWN_MS = 12000;

const line = /** @type {HTMLElement} */ (document.getElementById("status"));
let timer = 0;

/** @param {string} word @param {Record<string, string | number>} [facts] @param {"" | "waiting" | "error"} [kind] */
export function status(word, facts = {}, kind = "") {
  line.textContent = word && say(word, facts);
  line.dataset.kind = kind;
  clearTimeout(timer);
  if (!kind) timer = setTimeout(() => line.replaceChildren(), SHOWN_MS);
}

/** Say what went wrong. @param {unknown} error */
export function report(error) {
  const reason = error instanceof Error ? error.message : String(error);
  if (error instanceof DocumentError) status("no_edit", { reason }, "error");
  else if (error instanceof TooLarge) status("too_large", { megabytes: error.megabytes }, "error");
  else if (!(error instanceof BackendError)) status("broken", { reason }, "error");
  else if (error.status === UNAUTHORIZED) status("unauthorized", {}, "error");
  else if (!error.status) status("unreachable", {}, "error");
  else status("failed", { reason }, "error");
}

/** @param {() => Promise<unknown>} act */
export async function attempt(act) {
  try {
    await act();
  } catch (error) {
    report(error);
  }
}
