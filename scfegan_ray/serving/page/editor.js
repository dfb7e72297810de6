// @ts-check
// The work: a photograph, its faces, what was drawn on each, and what came of it. Knows no element of the page.

import { BackendError } from "./backend.js";
import { makeEdit, parseEdit } from "./document.js";
import { Drawing } from "./history.js";
import { keep, kept } from "./storage.js";

/** @typedef {import("./document.js").Square} Square */
/** @typedef {import("./document.js").Edit} Edit */
/** @typedef {import("./rasterize.js").Stroke} Stroke */
/** @typedef {import("./rasterize.js").LayerName} LayerName */
/** @typedef {import("./rasterize.js").Rect} Rect */
/** @typedef {{bitmap: ImageBitmap, mask: Uint8Array, version: number}} Result the square, filled; of which drawing */
/**
 * @typedef {{square: Square, problem: string | null, seed: number, strokes: Stroke[], drawing: Drawing | null,
 *   crop: Blob | null, bitmap: ImageBitmap | null, result: Result | null}} Face
 */

const KEEP_AFTER_MS = 500;

export class Editor extends EventTarget {
  /** @param {import("./backend.js").ServerBackend} backend */
  constructor(backend) {
    super();
    this.backend = backend;
    /** @type {import("./backend.js").Model | null} */
    this.model = null;
    /** @type {Blob | null} */
    this.photograph = null;
    // Tells this photograph from others that were opened, also in other windows.
    this.id = "";
    this.name = "";
    /** @type {import("./backend.js").Opened | null} */
    this.opened = null;
    /** @type {Face[]} */
    this.faces = [];
    this.active = -1;
    /** @type {Edit | null} a document that waits for its photograph */
    this.waiting = null;
    this.timer = 0;
    // Counts changes, so that what is kept can be told from what is there now.
    this.version = this.keptVersion = 0;
    // Something was drawn that no file holds.
    this.isPrecious = false;
    this.isKeeping = false;
  }

  get face() {
    return this.faces[this.active] ?? null;
  }

  get drawing() {
    return this.face?.drawing ?? null;
  }

  /** Whether the result is that of the present drawing. */
  get isFresh() {
    return Boolean(this.face?.result) && this.face?.result?.version === this.drawing?.version;
  }

  /** @param {string} type @param {any} [detail] */
  tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  async start() {
    this.model = await this.backend.model();
    this.tell("model");
  }

  /** Another model may have taken over; where its square is larger or smaller, begin anew with the same strokes. */
  async followModel() {
    const before = this.model?.size_px;
    await this.start();
    if (before === this.model?.size_px) return;
    this.faces = this.faces.map((face) => ({ ...blankFace(face.square, face.problem), ...this.factsOf(face) }));
    await this.show(this.active);
  }

  /** @returns {import("./backend.js").Model} */
  get modelNow() {
    if (!this.model) throw new BackendError("", 0, 2);
    return this.model;
  }

  /**
   * Open a photograph.
   * @param {Blob} photograph
   * @param {string} name
   * @returns {Promise<boolean>} false where a document waited for another one
   */
  async open(photograph, name) {
    if (!this.model) await this.start();
    const { limits } = this.modelNow;
    if (photograph.size > limits.upload_bytes) throw new TooLarge(limits.upload_bytes);
    const opened = await this.backend.open(photograph);
    this._take(`${Date.now()} ${Math.random()}`, photograph, name, opened);
    const { waiting } = this;
    this.waiting = null;
    if (waiting) await this.load(waiting);
    else await this.show(this.faces.length === 1 && !this.faces[0].problem ? 0 : -1);
    this.changed();
    const { width, height } = waiting?.photograph ?? opened;
    return width === opened.width && height === opened.height;
  }

  /** @param {string} id @param {Blob} photograph @param {string} name @param {import("./backend.js").Opened} opened */
  _take(id, photograph, name, opened) {
    this.id = id;
    this.photograph = photograph;
    this.name = name;
    this.opened = opened;
    this.isPrecious = false;
    this.faces = opened.faces.map(({ square, problem }) => blankFace(square, problem));
    this.active = -1;
    this.tell("photograph");
  }

  /** Open a document. @param {string} text @returns {Promise<boolean>} whether its photograph is here */
  async openEdit(text) {
    const edit = parseEdit(text);
    if (!this.photograph) {
      this.waiting = edit;
      return false;
    }
    await this.load(edit);
    this.changed();
    return true;
  }

  /** @param {Edit} edit */
  async load(edit) {
    this._put(edit);
    await this.show(this.faces.length === 1 ? 0 : -1);
  }

  /** @param {Edit} edit */
  _put(edit) {
    this.faces = edit.faces.map(({ square, seed, strokes }) => ({ ...blankFace(square, null), seed, strokes }));
    this.tell("photograph");
  }

  /** Go to a face, or with -1 to all of them. @param {number} active */
  async show(active) {
    this.active = active;
    this.tell("show");
    const face = this.face;
    if (!face || !this.photograph) return;
    if (!face.crop) {
      const { size_px: size } = this.modelNow;
      const crop = await this.backend.crop(this.photograph, face.square);
      face.bitmap = await createImageBitmap(crop);
      face.crop = crop;
      face.drawing ??= new Drawing(size, face, (layer, rect) => this.tell("pixels", { face, layer, rect }));
    }
    if (this.face === face) this.tell("ready");
  }

  /** Add a square, or move one. @param {number} at its number, or -1 for a new one @param {Square} square */
  place(at, square) {
    const face = this.faces[at] ?? blankFace(square, null);
    face.square = square;
    face.crop = face.bitmap = face.result = null;
    if (at < 0) this.faces.push(face);
    this.changed();
  }

  /** @param {number} at */
  remove(at) {
    this.faces.splice(at, 1);
    this.changed();
  }

  /** What was drawn on a face. @param {Face} face @returns {import("./document.js").FaceEdit} */
  factsOf({ square, seed, strokes, drawing }) {
    return { square, seed: drawing?.seed ?? seed, strokes: drawing?.strokesNow ?? strokes };
  }

  /** @param {boolean} drawn leave out faces on which nothing was drawn @returns {Edit} */
  edit(drawn = false) {
    const { width, height } = this.opened ?? { width: 1, height: 1 };
    const faces = this.faces.map((face) => this.factsOf(face));
    const wanted = faces.filter(({ strokes }) => strokes.length);
    const some = drawn && wanted.length ? wanted : faces;
    return makeEdit(this.model?.model_uri ?? "", { name: this.name, width, height }, some);
  }

  /** @param {"png" | "jpeg"} format */
  async export(format) {
    if (!this.photograph) throw new BackendError("", 0, null);
    return this.backend.save(this.photograph, this.edit(true), format);
  }

  // ---- kept in the browser

  /** Keep the work soon. */
  changed() {
    this.version += 1;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.keep(), KEEP_AFTER_MS);
    this.tell("changed");
  }

  async keep() {
    clearTimeout(this.timer);
    if (this.isKeeping) return; // which goes on with the newest
    this.isKeeping = true;
    while (this.photograph && this.opened && this.keptVersion !== this.version) {
      const { version, id, photograph, name, opened, active: face } = this;
      this.keptVersion = version;
      const edit = JSON.stringify(makeEdit("", { name, width: opened.width, height: opened.height },
        this.faces.map((one) => this.factsOf(one))));
      const well = await keep({ edit, face }, { id, photograph, name, opened }).then(() => true, () => false);
      if (version === this.version) this.tell("kept", well);
    }
    this.isKeeping = false;
  }

  /** Go on with what the browser kept. @returns {Promise<boolean>} */
  async restore() {
    const work = await kept().catch(() => null);
    if (!work) return false;
    this._take(work.id, work.photograph, work.name, { ...work.opened, faces: [] });
    const { faces } = JSON.parse(work.edit);
    if (faces.length) this._put(parseEdit(work.edit));
    await this.show(Math.min(work.face, this.faces.length - 1));
    return true;
  }
}

/** A photograph with more bytes than are taken. */
export class TooLarge extends Error {
  /** @param {number} bytes */
  constructor(bytes) {
    super();
    this.megabytes = Math.floor(bytes / 2 ** 20);
  }
}

/** @param {Square} square @param {string | null} problem @returns {Face} */
function blankFace(square, problem) {
  return { square, problem, seed: 0, strokes: [], drawing: null, crop: null, bitmap: null, result: null };
}
