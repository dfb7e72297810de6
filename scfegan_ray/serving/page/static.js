// @ts-check
// The page without a server: the model runs in this browser, and the photograph never leaves it.
//
// Faces are not looked for and lines are not found here: one places the square by hand. The photograph is kept as the
// browser shows it, in sRGB and upright; its metadata are not.

import { BackendError } from "./backend.js";
import { noise } from "./random.js";
import { rasterize } from "./rasterize.js";

/** @typedef {import("./document.js").Square} Square */
/** @typedef {import("./backend.js").Face} Face */

const PREVIEW_SIDE = 1600;
const JPEG_QUALITY = 0.95;

export class StaticBackend {
  constructor() {
    this._worker = new Worker(new URL("static_worker.js", import.meta.url), { type: "module" });
    /** @type {Map<number, {done: (picture: Uint8Array) => void, failed: (error: Error) => void}>} */
    this._waiting = new Map();
    this._asked = 0;
    /** @type {Promise<unknown>} */
    this._last = Promise.resolve();
    this._worker.onmessage = ({ data }) => {
      const asked = this._waiting.get(data.at);
      this._waiting.delete(data.at);
      if (data.error) asked?.failed(new BackendError(data.error, 500, null));
      else asked?.done(data.picture);
    };
    this._worker.onerror = () => {
      for (const asked of this._waiting.values()) asked.failed(new BackendError("the model cannot be run", 500, null));
      this._waiting.clear();
    };
  }

  async model() {
    const answer = await fetch("model.json");
    if (!answer.ok) throw new BackendError("model.json is not there", answer.status, null);
    this._facts = await answer.json();
    return this._facts;
  }

  /** @param {Blob} photograph @returns {Promise<import("./backend.js").Opened>} */
  async open(photograph) {
    const image = await upright(photograph);
    const scale = Math.min(1, PREVIEW_SIDE / Math.max(image.width, image.height));
    const { canvas, context } = canvasOf(Math.round(image.width * scale), Math.round(image.height * scale));
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const { width, height } = image;
    image.close();
    // One that is square may well have been cut out around its face.
    const faces = width === height ? [{ square: { x: 0.5, y: 0.5, side: 1, angle: 0 }, problem: null }] : [];
    return { width, height, faces, message: null, preview: canvas.toDataURL("image/jpeg", 0.9) };
  }

  /** @param {Blob} photograph @param {Square} square @returns {Promise<Blob>} */
  async crop(photograph, square) {
    const image = await upright(photograph);
    const size = this._facts.size_px;
    const { canvas, context } = canvasOf(size, size);
    const scale = size / (square.side * image.width);
    context.translate(size / 2, size / 2);
    context.rotate(-square.angle);
    context.scale(scale, scale);
    context.drawImage(image, -square.x * image.width, -square.y * image.width);
    image.close();
    return blobOf(canvas, "image/png");
  }

  /** @returns {Promise<import("./rasterize.js").Stroke[]>} */
  async guides() {
    throw new BackendError("lines are found by a server: python jobs/edit.py", 404, null);
  }

  /** @param {Blob} crop @param {Face} face @param {AbortSignal} [signal] @returns {Promise<Blob>} */
  async edit(crop, face, signal) {
    const size = this._facts.size_px;
    const { canvas, context } = canvasOf(size, size);
    const bitmap = await createImageBitmap(crop);
    context.drawImage(bitmap, 0, 0);
    const pixels = context.getImageData(0, 0, size, size);
    const maps = rasterize(face.strokes, size);
    const image = withoutAlpha(pixels.data);
    const dots = noise(face.seed, size * size, this._facts.noise_probability);
    const { mask, sketch, color } = maps;
    const picture = await this._fill({ image, mask, sketch, color, noise: dots }, signal);
    for (let at = 0; at < size * size; at++) pixels.data.set(picture.subarray(3 * at, 3 * at + 3), 4 * at);
    context.putImageData(pixels, 0, 0);
    return blobOf(canvas, "image/png");
  }

  /** @param {Blob} crop @param {Face} face @param {number[]} seeds @param {AbortSignal} [signal] @returns {Promise<Blob[]>} */
  async variants(crop, face, seeds, signal) {
    const made = [];
    for (const seed of seeds) made.push(await this.edit(crop, { ...face, seed }, signal));
    return made;
  }

  /** @param {Blob} photograph @param {import("./document.js").Edit} edit @param {"png" | "jpeg"} format */
  async save(photograph, edit, format) {
    const image = await upright(photograph);
    const { canvas, context } = canvasOf(image.width, image.height);
    context.drawImage(image, 0, 0);
    image.close();
    for (const face of edit.faces) {
      const filled = await createImageBitmap(await this.edit(await this.crop(photograph, face.square), face));
      layIn(context, face.square, filled, rasterize(face.strokes, filled.width).mask);
    }
    return blobOf(canvas, `image/${format}`, JPEG_QUALITY);
  }

  /**
   * Run the model, one request at a time; one that nobody waits for any longer is left out.
   * @param {Record<string, Uint8Array>} maps @param {AbortSignal} [signal] @returns {Promise<Uint8Array>}
   */
  _fill(maps, signal) {
    const turn = this._last.then(() => {
      signal?.throwIfAborted();
      const at = this._asked++;
      const answer = new Promise((done, failed) => this._waiting.set(at, { done, failed }));
      this._worker.postMessage({ at, size: this._facts.size_px, maps });
      return answer;
    });
    this._last = turn.catch(() => {});
    return turn;
  }
}

/**
 * Put a filled hole into a photograph: pixels whose centers lie in pixels of the hole, and no others. Where the square is
 * larger than its filling, the outermost half pixel of the hole fades in.
 * @param {CanvasRenderingContext2D} context @param {Square} square @param {ImageBitmap} filled @param {Uint8Array} mask
 */
function layIn(context, square, filled, mask) {
  const { width, height } = context.canvas;
  const size = filled.width;
  const unit = (square.side * width) / size;
  const [cos, sin] = [Math.cos(square.angle), Math.sin(square.angle)];
  const colors = canvasOf(width, height);
  colors.context.imageSmoothingQuality = "high";
  colors.context.setTransform(unit * cos, unit * sin, -unit * sin, unit * cos, square.x * width, square.y * width);
  colors.context.drawImage(filled, -size / 2, -size / 2);
  const near = (/** @type {number} */ u, /** @type {number} */ v) => {
    const [left, top] = [Math.floor(u - 0.5), Math.floor(v - 0.5)];
    const [x, y] = [u - 0.5 - left, v - 0.5 - top];
    const value = (/** @type {number} */ column, /** @type {number} */ row) =>
      mask[Math.min(Math.max(row, 0), size - 1) * size + Math.min(Math.max(column, 0), size - 1)];
    return (
      (value(left, top) * (1 - x) + value(left + 1, top) * x) * (1 - y) +
      (value(left, top + 1) * (1 - x) + value(left + 1, top + 1) * x) * y
    );
  };
  const reach = (unit * size) / Math.SQRT2;
  const [left, top] = [square.x * width - reach, square.y * width - reach].map((value) => Math.max(0, Math.floor(value)));
  const right = Math.min(width, Math.ceil(square.x * width + reach));
  const bottom = Math.min(height, Math.ceil(square.y * width + reach));
  if (right <= left || bottom <= top) return;
  const below = context.getImageData(left, top, right - left, bottom - top);
  const above = colors.context.getImageData(left, top, right - left, bottom - top).data;
  for (let row = 0; row < below.height; row++) {
    for (let column = 0; column < below.width; column++) {
      const x = left + column + 0.5 - square.x * width;
      const y = top + row + 0.5 - square.y * width;
      const u = (x * cos + y * sin) / unit + size / 2;
      const v = (y * cos - x * sin) / unit + size / 2;
      if (!(u >= 0 && u < size && v >= 0 && v < size)) continue;
      if (!mask[Math.floor(v) * size + Math.floor(u)]) continue;
      const share = unit > 1 ? Math.min(1, Math.max(0, 2 * near(u, v) - 1)) : 1;
      const at = 4 * (row * below.width + column);
      for (let channel = 0; channel < 3; channel++) {
        const before = below.data[at + channel];
        below.data[at + channel] = Math.round(before + (above[at + channel] - before) * share);
      }
      below.data[at + 3] = 255;
    }
  }
  context.putImageData(below, left, top);
}

/** @param {Blob} photograph @returns {Promise<ImageBitmap>} */
async function upright(photograph) {
  try {
    return await createImageBitmap(photograph, { imageOrientation: "from-image" });
  } catch {
    throw new BackendError("not an image that this browser can read", 422, null);
  }
}

/** @param {Uint8ClampedArray} pixels red, green, blue, alpha @returns {Uint8Array} */
function withoutAlpha(pixels) {
  const colors = new Uint8Array((pixels.length / 4) * 3);
  for (let at = 0; at < pixels.length / 4; at++) colors.set(pixels.subarray(4 * at, 4 * at + 3), 3 * at);
  return colors;
}

/** @param {number} width @param {number} height */
function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  context.imageSmoothingQuality = "high";
  return { canvas, context };
}

/** @param {HTMLCanvasElement} canvas @param {string} type @param {number} [quality] @returns {Promise<Blob>} */
function blobOf(canvas, type, quality) {
  return new Promise((done, failed) => {
    canvas.toBlob((blob) => (blob ? done(blob) : failed(new BackendError("the picture is too large", 413, null))), type, quality);
  });
}
