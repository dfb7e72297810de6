// @ts-check
// The stage: a face's square at the model's size, its layers as canvases above it, zoomed and moved by the compositor.

import { LAYERS, UNITS, union } from "./rasterize.js";

/** @typedef {import("./rasterize.js").Rect} Rect */
/** @typedef {import("./rasterize.js").LayerName} LayerName */
/** @typedef {import("./history.js").Drawing} Drawing */
/** @typedef {"drawing" | "result" | "compare"} Mode */

const MIN_SHOWN_PX = 40;
const MAX_PIXEL_PX = 96;
const MARGIN_PX = 28;

// Pixels as a little-endian integer: alpha, blue, green, red.
const PAPER = 0xf0fbf8f7;
const DARK_LINE = 0x181210;
const LIGHT_LINE = 0xf7f3ef;
const OPAQUE = 0xff000000;
// Outside the hole a stroke does nothing, and looks like it; traced colors are everywhere, and hide no photograph.
const FADED = { sketch: 0x58000000, color: 0x28000000, mask: 0 };
const DARKEST_PAINT = 56;

const byId = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));
const canvasOf = (/** @type {string} */ id) => /** @type {HTMLCanvasElement} */ (document.getElementById(id));

export class View {
  constructor() {
    this.stage = byId("stage");
    this.world = byId("world");
    this.around = /** @type {HTMLImageElement[]} */ ([byId("around"), byId("sharp").querySelector("img")]);
    this.photo = canvasOf("photo");
    this.result = canvasOf("result");
    /** @type {Record<LayerName, HTMLCanvasElement>} */
    this.canvases = { mask: canvasOf("layer-mask"), sketch: canvasOf("layer-sketch"), color: canvasOf("layer-color") };
    this.scale = 1;
    this.x = 0;
    this.y = 0;
    this.size = 1;
    this.fitted = true;
    /** @type {Mode} */
    this.mode = "drawing";
    /** @type {Drawing | null} */
    this.drawing = null;
    /** @type {Map<LayerName, Rect>} */
    this.pending = new Map();
    this.frame = 0;
    /** @type {Record<string, ImageData>} */
    this.images = {};
    /** @type {(() => void)[]} */
    this.onMove = [];
    this.width = this.height = 0;
    this.left = this.top = 0;
    new ResizeObserver(() => this._measure()).observe(this.stage);
    addEventListener("scroll", () => this._measure(), true);
  }

  /** Show a face. @param {Drawing} drawing @param {ImageBitmap} crop */
  setFace(drawing, crop) {
    this.drawing = drawing;
    this.size = drawing.size;
    for (const canvas of [this.photo, this.result, ...Object.values(this.canvases)]) {
      canvas.width = canvas.height = this.size;
    }
    for (const layer of LAYERS) this.images[layer] = new ImageData(this.size, this.size);
    this.photo.getContext("2d", { willReadFrequently: true })?.drawImage(crop, 0, 0, this.size, this.size);
    for (const layer of LAYERS) this.dirty(layer, this.all);
    this.world.style.width = this.world.style.height = `${this.size}px`;
    this.setResult(null);
    this.fit();
  }

  /**
   * Show the photograph, sharper than the model sees it: in the square, and dim around it.
   * @param {string} url @param {import("./document.js").Square} square
   */
  setAround(url, square) {
    const width = this.size / square.side;
    const middle = `translate(${this.size / 2}px, ${this.size / 2}px) rotate(${-square.angle}rad)`;
    for (const image of this.around) {
      image.src = url;
      image.style.width = `${width}px`;
      image.style.transform = `${middle} translate(${-square.x * width}px, ${-square.y * width}px)`;
    }
  }

  /** Show what fills the hole. @param {{bitmap: ImageBitmap, mask: Uint8Array} | null} result */
  setResult(result) {
    const context = this.result.getContext("2d", { willReadFrequently: true });
    context?.clearRect(0, 0, this.size, this.size);
    if (context && result) {
      context.drawImage(result.bitmap, 0, 0);
      // Elsewhere it is the photograph, which is shown sharper.
      const image = context.getImageData(0, 0, this.size, this.size);
      for (let at = 0; at < result.mask.length; at++) if (!result.mask[at]) image.data[4 * at + 3] = 0;
      context.putImageData(image, 0, 0);
    }
    this.stage.classList.toggle("has-result", Boolean(result));
  }

  /** @param {Mode} mode */
  setMode(mode) {
    this.mode = mode;
    this.stage.dataset.mode = mode;
  }

  /** Where the result begins when both are compared. @param {number} part 0 to 1 */
  setSplit(part) {
    this.stage.style.setProperty("--split", `${100 * part}%`);
  }

  /** The color that is seen at a point. @param {number} x @param {number} y in units @returns {string | null} */
  colorAt(x, y) {
    const column = Math.floor((x * this.size) / UNITS), row = Math.floor((y * this.size) / UNITS);
    if (column < 0 || row < 0 || column >= this.size || row >= this.size) return null;
    for (const canvas of this.mode === "drawing" ? [this.photo] : [this.result, this.photo]) {
      const pixel = canvas.getContext("2d")?.getImageData(column, row, 1, 1).data;
      if (pixel?.[3]) return `#${[...pixel.slice(0, 3)].map((one) => one.toString(16).padStart(2, "0")).join("")}`;
    }
    return null;
  }

  get all() {
    return { left: 0, top: 0, right: this.size, bottom: this.size };
  }

  /** Draw a part anew in the next frame. @param {LayerName} layer @param {Rect} rect */
  dirty(layer, rect) {
    const more = layer === "mask" ? LAYERS : layer === "color" ? ["color", "sketch"] : [layer];
    for (const one of /** @type {LayerName[]} */ (more)) {
      this.pending.set(one, /** @type {Rect} */ (union(this.pending.get(one) ?? null, rect)));
    }
    if (!this.frame) this.frame = requestAnimationFrame(() => this._redraw());
  }

  _redraw() {
    this.frame = 0;
    if (!this.drawing) return;
    for (const [layer, rect] of this.pending) {
      const image = this.images[layer];
      fillImage(new Uint32Array(image.data.buffer), layer, rect, this.drawing.layers);
      const { left, top, right, bottom } = rect;
      this.canvases[layer].getContext("2d")?.putImageData(image, 0, 0, left, top, right - left, bottom - top);
    }
    this.pending.clear();
  }

  // ---- zoom and place

  _measure() {
    const { width, height, left, top } = this.stage.getBoundingClientRect();
    const grown = width !== this.width || height !== this.height;
    Object.assign(this, { width, height, left, top });
    if (!grown) return;
    if (this.fitted) this.fit();
    else this._place();
  }

  fit() {
    this.scale = Math.max((Math.min(this.width, this.height) - 2 * MARGIN_PX) / this.size, MIN_SHOWN_PX / this.size);
    this.x = (this.width - this.size * this.scale) / 2;
    this.y = (this.height - this.size * this.scale) / 2;
    this.fitted = true;
    this._place();
  }

  /** @param {number} factor @param {number} clientX @param {number} clientY what stays where it is */
  zoom(factor, clientX = this.left + this.width / 2, clientY = this.top + this.height / 2) {
    const scale = Math.min(Math.max(this.scale * factor, MIN_SHOWN_PX / this.size), MAX_PIXEL_PX);
    const x = clientX - this.left, y = clientY - this.top;
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this._place();
  }

  /** @param {number} dx @param {number} dy */
  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this._place();
  }

  _place() {
    // Never out of sight.
    const side = this.size * this.scale;
    this.x = Math.min(Math.max(this.x, MIN_SHOWN_PX - side), this.width - MIN_SHOWN_PX);
    this.y = Math.min(Math.max(this.y, MIN_SHOWN_PX - side), this.height - MIN_SHOWN_PX);
    this.world.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    for (const tell of this.onMove) tell();
  }

  /** @param {number} clientX @param {number} clientY @returns {[number, number]} in units */
  toUnits(clientX, clientY) {
    const unit = UNITS / (this.size * this.scale);
    return [(clientX - this.left - this.x) * unit, (clientY - this.top - this.y) * unit];
  }

  /** @param {number} x @param {number} y in units @returns {[number, number]} in the stage's CSS pixels */
  toStage(x, y) {
    return [this.x + this.lengthOf(x), this.y + this.lengthOf(y)];
  }

  /** @param {number} units @returns {number} CSS pixels */
  lengthOf(units) {
    return (units * this.size * this.scale) / UNITS;
  }
}

/** @param {Uint32Array} pixels @param {LayerName} layer @param {Rect} rect @param {import("./rasterize.js").Layers} layers */
function fillImage(pixels, layer, rect, { size, mask, sketch, color }) {
  for (let row = rect.top; row < rect.bottom; row++) {
    for (let at = row * size + rect.left; at < row * size + rect.right; at++) {
      const red = color[3 * at], green = color[3 * at + 1], blue = color[3 * at + 2];
      const alpha = mask[at] ? OPAQUE : FADED[layer];
      if (layer === "mask") {
        pixels[at] = mask[at] ? PAPER : 0;
      } else if (layer === "color") {
        pixels[at] = red || green || blue ? alpha + ((blue << 16) | (green << 8) | red) : 0;
      } else {
        const onDark = (red || green || blue) && 2 * red + 5 * green + blue < 8 * DARKEST_PAINT;
        pixels[at] = sketch[at] ? alpha + (onDark ? LIGHT_LINE : DARK_LINE) : 0;
      }
    }
  }
}
