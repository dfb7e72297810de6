// @ts-check
// What was drawn on one face: its strokes, the layers they make, and the way back and forth.
//
// A step remembers the pixels that it changed, so that undoing it is a patch. Steps that came with a document, and old
// ones whose patches were given up for memory, are undone by drawing all other strokes anew.

import { apply, blank, LAYERS, rasterize, union } from "./rasterize.js";

/** @typedef {import("./rasterize.js").Stroke} Stroke */
/** @typedef {import("./rasterize.js").Rect} Rect */
/** @typedef {import("./rasterize.js").LayerName} LayerName */
/** @typedef {{layer: LayerName, rect: Rect, before: Uint8Array}} Patch */
/** @typedef {{strokes: Stroke[], patches: Patch[] | null, seeds: [number, number] | null}} Step */

const MAX_PATCH_BYTES = 64 << 20;

export class Drawing {
  /**
   * @param {number} size side of the layers
   * @param {{seed: number, strokes: Stroke[]}} face
   * @param {(layer: LayerName, rect: Rect) => void} onPixels told what changed
   */
  constructor(size, face, onPixels) {
    this.size = size;
    this.seed = face.seed;
    /** @type {Step[]} */
    this.steps = face.strokes.map((stroke) => ({ strokes: [stroke], patches: null, seeds: null }));
    /** @type {Step[]} */
    this.undone = [];
    this.layers = face.strokes.length ? rasterize(face.strokes, size) : blank(size);
    this.onPixels = onPixels;
    this.patchBytes = 0;
    // Counts changes, so that what came of the drawing can be told from what would come of it now.
    this.version = 0;
    /** @type {{strokes: Stroke[], before: Map<LayerName, Uint8Array>, rects: Map<LayerName, Rect>} | null} */
    this.live = null;
  }

  get strokes() {
    return this.steps.flatMap((step) => step.strokes);
  }

  /** The strokes, with those that are being drawn. */
  get strokesNow() {
    return this.live ? [...this.strokes, ...this.live.strokes] : this.strokes;
  }

  /** Start strokes that grow, such as a line and its mirror image. @param {Stroke[]} strokes */
  begin(strokes) {
    this.live = { strokes, before: new Map(), rects: new Map() };
    for (const { layer } of strokes) this.live.before.set(layer, this.layers[layer].slice());
    for (const stroke of strokes) this._draw(stroke, 0);
  }

  /** Add a point to each stroke that grows. @param {number[][]} points */
  extend(points) {
    this.live?.strokes.forEach((stroke, at) => {
      const path = /** @type {number[]} */ (stroke.points);
      const known = path.length / 3;
      path.push(...points[at]);
      this._draw(stroke, known);
    });
  }

  /** Keep what was begun as one step. */
  commit() {
    if (!this.live) return;
    const { strokes, before, rects } = this.live;
    const patches = [...rects].map(([layer, rect]) => {
      return { layer, rect, before: cut(/** @type {Uint8Array} */ (before.get(layer)), this.size, rect) };
    });
    this.live = null;
    this._push({ strokes, patches, seeds: null });
  }

  /** Take back what was begun. */
  cancel() {
    if (!this.live) return;
    const { before, rects } = this.live;
    this.live = null;
    for (const [layer, rect] of rects) {
      this.layers[layer].set(/** @type {Uint8Array} */ (before.get(layer)));
      this.onPixels(layer, rect);
    }
  }

  /** Draw whole strokes as one step. @param {Stroke[]} strokes */
  add(strokes) {
    this.begin(strokes);
    this.commit();
  }

  /** @param {number} seed */
  setSeed(seed) {
    if (seed === this.seed) return;
    this._push({ strokes: [], patches: [], seeds: [this.seed, seed] });
    this.seed = seed;
  }

  undo() {
    this.cancel();
    const step = this.steps.pop();
    if (!step) return;
    this.version++;
    this.undone.push(step);
    if (step.seeds) this.seed = step.seeds[0];
    if (step.patches) {
      for (const { layer, rect, before } of step.patches) {
        paste(this.layers[layer], this.size, rect, before);
        this.onPixels(layer, rect);
      }
    } else {
      this.layers = rasterize(this.strokes, this.size);
      const all = { left: 0, top: 0, right: this.size, bottom: this.size };
      for (const layer of LAYERS) this.onPixels(layer, all);
    }
  }

  redo() {
    this.cancel();
    const step = this.undone.pop();
    if (!step) return;
    this.version++;
    for (const stroke of step.strokes) {
      const rect = apply(this.layers, stroke);
      if (rect) this.onPixels(stroke.layer, rect);
    }
    if (step.seeds) this.seed = step.seeds[1];
    this.steps.push(step);
  }

  /** @param {Stroke} stroke @param {number} from */
  _draw(stroke, from) {
    const rect = apply(this.layers, stroke, from);
    if (!rect || !this.live) return;
    this.live.rects.set(stroke.layer, /** @type {Rect} */ (union(this.live.rects.get(stroke.layer) ?? null, rect)));
    this.onPixels(stroke.layer, rect);
  }

  /** @param {Step} step */
  _push(step) {
    this.steps.push(step);
    this.version++;
    this.undone = [];
    const held = (/** @type {Step} */ one) => (one.patches ?? []).reduce((sum, patch) => sum + patch.before.length, 0);
    this.patchBytes = this.steps.reduce((sum, one) => sum + held(one), 0);
    for (const old of this.steps) {
      if (this.patchBytes <= MAX_PATCH_BYTES) break;
      this.patchBytes -= held(old);
      if (old.strokes.length) old.patches = null;
    }
  }
}

/** @param {Uint8Array} pixels @param {number} size @param {Rect} rect @returns {Uint8Array} */
function cut(pixels, size, rect) {
  const channels = pixels.length / (size * size);
  const width = channels * (rect.right - rect.left);
  const piece = new Uint8Array(width * (rect.bottom - rect.top));
  for (let row = rect.top; row < rect.bottom; row++) {
    const start = channels * (row * size + rect.left);
    piece.set(pixels.subarray(start, start + width), (row - rect.top) * width);
  }
  return piece;
}

/** @param {Uint8Array} pixels @param {number} size @param {Rect} rect @param {Uint8Array} piece */
function paste(pixels, size, rect, piece) {
  const channels = pixels.length / (size * size);
  const width = channels * (rect.right - rect.left);
  for (let row = rect.top; row < rect.bottom; row++) {
    const at = (row - rect.top) * width;
    pixels.set(piece.subarray(at, at + width), channels * (row * size + rect.left));
  }
}
