// @ts-check
// Asks for results: on demand, live while a person draws, and in several variants. What is outdated is aborted.

import { BackendError } from "./backend.js";

/** @typedef {import("./editor.js").Editor} Editor */
/** @typedef {import("./editor.js").Face} Face */
/** @typedef {{seed: number, picture: Blob, mask: Uint8Array, url: string}} Variant */

const DEBOUNCE_MS = 150;
const TRIES = 6;

export class Runner extends EventTarget {
  /** @param {Editor} editor */
  constructor(editor) {
    super();
    this.editor = editor;
    this.live = false;
    this.timer = 0;
    /** @type {AbortController | null} */
    this.running = null;
    /** @type {Variant[]} */
    this.variants = [];
  }

  /** @param {string} type @param {any} [detail] */
  _tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Something was drawn: what is being computed is outdated. */
  outdated() {
    clearTimeout(this.timer);
    if (!this.live) return;
    this.timer = setTimeout(() => this.complete(true), DEBOUNCE_MS);
  }

  stop() {
    clearTimeout(this.timer);
    this.running?.abort();
    this.running = null;
    this.forget();
  }

  /** Fill the hole. @param {boolean} live without being asked @param {string} mode how to look at it then */
  async complete(live = false, mode = live ? "" : "result") {
    const { face } = this.editor;
    if (!face?.crop || !face.drawing) return;
    if (!face.drawing.layers.mask.includes(1)) {
      face.result = null;
      this._tell(live ? "emptied" : "nothing");
      return;
    }
    const { crop } = face, { seed, strokes } = this.editor.factsOf(face);
    const mask = face.drawing.layers.mask.slice(), { version } = face.drawing;
    const filled = await this._run(live, (signal) => this.editor.backend.edit(crop, { seed, strokes }, signal));
    if (!filled) return;
    await this._show(face, filled.answer, mask, version);
    if (this.editor.face === face) this._tell("done", { seconds: filled.seconds, mode });
  }

  /** Make several variants. @param {number} number */
  async vary(number) {
    const { face } = this.editor;
    if (!face?.crop || !face.drawing) return;
    if (!face.drawing.layers.mask.includes(1)) {
      this._tell("nothing");
      return;
    }
    const { crop } = face, { seed, strokes } = this.editor.factsOf(face);
    const mask = face.drawing.layers.mask.slice();
    const seeds = Array.from({ length: number }, (_, at) => (seed + at + 1) % Number.MAX_SAFE_INTEGER);
    const made = await this._run(false, (signal) => this.editor.backend.variants(crop, { seed, strokes }, seeds, signal));
    if (!made || this.editor.face !== face) return;
    this.forget();
    this.variants = made.answer.map((picture, at) => {
      return { seed: seeds[at], picture, mask, url: URL.createObjectURL(picture) };
    });
    this._tell("variants");
    this._tell("done", { seconds: made.seconds, mode: "" });
  }

  /** Take one of the variants. @param {number} at */
  async choose(at) {
    const { face } = this.editor;
    if (!face?.drawing) return;
    const { seed, picture, mask } = this.variants[at];
    face.drawing.setSeed(seed);
    await this._show(face, picture, mask, face.drawing.version);
    this.editor.changed();
  }

  /** Forget the variants, which do not fit what was drawn since. */
  forget() {
    if (!this.variants.length) return;
    for (const { url } of this.variants) URL.revokeObjectURL(url);
    this.variants = [];
    this._tell("variants");
  }

  /** @param {Face} face @param {Blob} picture @param {Uint8Array} mask @param {number} version */
  async _show(face, picture, mask, version) {
    face.result = { bitmap: await createImageBitmap(picture), mask, version };
    if (this.editor.face === face) this._tell("result");
  }

  /**
   * Compute one thing at a time; wait and try again where there is no room.
   * @template T
   * @param {boolean} live
   * @param {(signal: AbortSignal) => Promise<T>} compute
   * @returns {Promise<{answer: T, seconds: number} | null>}
   */
  async _run(live, compute) {
    clearTimeout(this.timer);
    this.running?.abort();
    const running = new AbortController();
    this.running = running;
    this._tell("waiting", { live });
    const start = performance.now();
    try {
      for (let tried = 1; ; tried++) {
        try {
          const answer = await compute(running.signal);
          return running.signal.aborted ? null : { answer, seconds: (performance.now() - start) / 1000 };
        } catch (error) {
          const again = error instanceof BackendError ? error.again : null;
          if (running.signal.aborted) return null;
          if (again === null || tried === TRIES) throw error;
          this._tell("busy", { seconds: again, answered: error instanceof BackendError && error.status > 0 });
          await sleep(1000 * again, running.signal);
          if (running.signal.aborted) return null;
        }
      }
    } catch (error) {
      this._tell("failed", error);
      return null;
    } finally {
      if (this.running === running) {
        this.running = null;
        this._tell("idle");
      }
    }
  }
}

/** @param {number} milliseconds @param {AbortSignal} signal @returns {Promise<void>} */
function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
