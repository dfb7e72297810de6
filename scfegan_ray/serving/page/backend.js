// @ts-check
// What computes: here a server of the page's own origin. Another backend has the same methods.

/** @typedef {import("./document.js").Square} Square */
/** @typedef {import("./document.js").Edit} Edit */
/** @typedef {{seed: number, strokes: import("./rasterize.js").Stroke[]}} Face */
/**
 * @typedef {{model_uri: string, name: string, size_px: number, license: string,
 *   limits: {upload_bytes: number, megapixels: number, edit_bytes: number}}} Model
 */
/**
 * @typedef {{width: number, height: number, faces: {square: Square, problem: string | null}[],
 *   message: string | null, preview: string}} Opened
 */

/** What went wrong, in one line; `again` is after how many seconds to ask again, where that helps. */
export class BackendError extends Error {
  /** @param {string} message @param {number} status 0 where nothing answered @param {number | null} again */
  constructor(message, status, again) {
    super(message);
    this.status = status;
    this.again = again;
  }
}

export class ServerBackend {
  /** @returns {Promise<Model>} */
  async model() {
    return (await ask("model")).json();
  }

  /** Look for faces. @param {Blob} photograph @returns {Promise<Opened>} */
  async open(photograph) {
    return (await ask("photographs", { photograph })).json();
  }

  /** Cut out a face. @param {Blob} photograph @param {Square} square @returns {Promise<Blob>} */
  async crop(photograph, square) {
    return (await ask("crops", { photograph, square: JSON.stringify(square) })).blob();
  }

  /** Find lines and colors of a face, as strokes. @param {Blob} crop */
  async guides(crop) {
    return (await (await ask("guides", { crop })).json()).strokes;
  }

  /** Fill the hole. @param {Blob} crop @param {Face} face @param {AbortSignal} signal @returns {Promise<Blob>} */
  async edit(crop, face, signal) {
    return (await ask("edits", { crop, face: JSON.stringify(face) }, signal)).blob();
  }

  /** Fill it in several ways. @param {Blob} crop @param {Face} face @param {number[]} seeds @param {AbortSignal} signal
   * @returns {Promise<Blob[]>} */
  async variants(crop, face, seeds, signal) {
    const fields = { crop, face: JSON.stringify(face), seeds: JSON.stringify(seeds) };
    const { pictures } = await (await ask("variants", fields, signal)).json();
    return pictures.map(pngOf);
  }

  /** Lay all edited faces into the photograph. @param {Blob} photograph @param {Edit} edit
   * @param {"png" | "jpeg"} format @returns {Promise<Blob>} */
  async save(photograph, edit, format) {
    return (await ask("exports", { photograph, edit: JSON.stringify(edit), format })).blob();
  }
}

/** @param {string} base64 @returns {Blob} */
export function pngOf(base64) {
  return new Blob([Uint8Array.from(atob(base64), (one) => one.charCodeAt(0))], { type: "image/png" });
}

/** @param {string} name @param {Record<string, Blob | string>} [fields] @param {AbortSignal} [signal] */
async function ask(name, fields, signal) {
  let body;
  if (fields) {
    body = new FormData();
    for (const [key, value] of Object.entries(fields)) {
      if (typeof value === "string") body.append(key, value);
      else body.append(key, value, key);
    }
  }
  let answer;
  try {
    answer = await fetch(`api/${name}`, { method: fields ? "POST" : "GET", body, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new BackendError("", 0, 2);
  }
  if (answer.ok) return answer;
  const text = await answer.json().then((given) => String(given.error ?? ""), () => "");
  const again = answer.status === 503 ? Number(answer.headers.get("Retry-After")) || 1 : null;
  throw new BackendError(text || `${answer.status} ${answer.statusText}`, answer.status, again);
}
