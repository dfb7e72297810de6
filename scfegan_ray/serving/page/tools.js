// @ts-check
// Pointers and what they do to a drawing: brush, straight line, lasso, bucket, color picker; moving the view.

import { MAX_PRESSURE, UNITS } from "./rasterize.js";

/** @typedef {import("./rasterize.js").Stroke} Stroke */
/** @typedef {import("./rasterize.js").LayerName} LayerName */
/** @typedef {import("./history.js").Drawing} Drawing */
/** @typedef {"brush" | "lasso" | "bucket" | "picker"} Shape */
/**
 * @typedef {{layer: LayerName, shape: Shape, erase: boolean, color: string, mirror: boolean,
 *   widths: Record<LayerName, number>}} Settings
 */

export const MIN_WIDTH = 64;
export const MAX_WIDTH = UNITS / 2;
const ERASER_BUTTON = 5;
const ERASER_BIT = 32;
const MOUSE_RIGHT = 2;
const MOUSE_MIDDLE = 1;
// A second finger that comes this soon means that no stroke was meant.
const SECOND_FINGER_MS = 350;

export class Tools {
  /**
   * @param {import("./view.js").View} view
   * @param {import("./overlay.js").Overlay} overlay
   * @param {Settings} settings
   * @param {{drawing: () => Drawing | null, drawn: (strokes: Stroke[]) => void, growing: () => void,
   *   picked: (color: string) => void, resized: () => void, split: (part: number) => void}} host
   */
  constructor(view, overlay, settings, host) {
    this.view = view;
    this.overlay = overlay;
    this.settings = settings;
    this.host = host;
    /** @type {Map<number, {x: number, y: number}>} */
    this.fingers = new Map();
    /** @type {{pointer: number, what: "stroke" | "lasso" | "pick" | "pan" | "split", erase: boolean, since: number} | null} */
    this.busy = null;
    /** @type {number[]} */
    this.lasso = [];
    /** @type {[number, number] | null} */
    this.last = null;
    this.penSeen = false;
    this.spaceHeld = false;
    const { stage } = view;
    stage.addEventListener("pointerdown", (event) => this._down(event));
    stage.addEventListener("pointermove", (event) => this._move(event));
    stage.addEventListener("pointerup", (event) => this._up(event, false));
    stage.addEventListener("pointercancel", (event) => this._up(event, true));
    stage.addEventListener("pointerleave", () => this.busy || overlay.hideBrush());
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("wheel", (event) => this._wheel(event), { passive: false });
  }

  get width() {
    return this.settings.widths[this.settings.layer];
  }

  /** @param {number} factor */
  resize(factor) {
    const width = Math.round(this.width * factor);
    this.settings.widths[this.settings.layer] = Math.min(Math.max(width, MIN_WIDTH), MAX_WIDTH);
    if (this.overlay.at) this.overlay.showBrush(this.overlay.at.x, this.overlay.at.y, this.width);
    this.host.resized();
  }

  // ---- strokes; the keyboard's cursor uses these, too

  /** Put the tool down. @param {number} x @param {number} y @param {number} pressure @param {boolean} erase
   * @param {boolean} straight from the last point @returns {"stroke" | "lasso" | "pick" | null} what goes on */
  start(x, y, pressure, erase, straight) {
    const drawing = this.host.drawing();
    const { shape } = this.settings;
    if (!drawing) return null;
    if (shape === "picker") {
      this._pick(x, y);
      return "pick";
    }
    const point = place(x, y);
    if (shape === "bucket") {
      drawing.add(this._both({ ...this._stroke("bucket", erase), points: point }));
      this._drawn(drawing);
      return null;
    }
    if (shape === "lasso") {
      this.lasso = point;
      return "lasso";
    }
    const path = straight && this.last ? [...this.last, pressure] : [];
    drawing.begin(this._both({ ...this._stroke("line", erase), width: this.width, points: [...path, ...point, pressure] }));
    this.last = [point[0], point[1]];
    return "stroke";
  }

  /** @param {"stroke" | "lasso" | "pick"} what @param {number} x @param {number} y @param {number} pressure */
  go(what, x, y, pressure) {
    const drawing = this.host.drawing();
    if (what === "pick") {
      this._pick(x, y);
      return;
    }
    const point = place(x, y);
    if (what === "lasso") {
      this.lasso.push(...point);
      this.overlay.showPath([...this.lasso, this.lasso[0], this.lasso[1]]);
    } else if (drawing?.live) {
      const least = UNITS / drawing.size / 4;
      if (this.last && Math.hypot(point[0] - this.last[0], point[1] - this.last[1]) < least) return;
      drawing.extend([[...point, pressure], [UNITS - point[0], point[1], pressure]].slice(0, drawing.live.strokes.length));
      this.last = [point[0], point[1]];
      this.host.growing();
    }
  }

  /** Lift the tool. @param {"stroke" | "lasso" | "pick"} what @param {boolean} erase */
  end(what, erase) {
    const drawing = this.host.drawing();
    if (!drawing) return;
    if (what === "lasso") {
      const points = this.lasso;
      this.lasso = [];
      this.overlay.showPath([]);
      if (points.length < 6) return;
      drawing.add(this._both({ ...this._stroke("polygon", erase), points }));
    } else if (what === "stroke") {
      drawing.commit();
    } else {
      return;
    }
    this._drawn(drawing);
  }

  /** Take back what is being drawn. */
  abandon() {
    this.host.drawing()?.cancel();
    this.lasso = [];
    this.overlay.showPath([]);
    this.busy = null;
    this.view.stage.classList.remove("busy");
  }

  /** @param {string} kind @param {boolean} erase @returns {Stroke} */
  _stroke(kind, erase) {
    const { layer, color } = this.settings;
    if (erase || this.settings.erase) return { kind, layer, erase: true };
    return layer === "color" ? { kind, layer, color } : { kind, layer };
  }

  /** A stroke and, where one is wanted, its mirror image. @param {Stroke} stroke @returns {Stroke[]} */
  _both(stroke) {
    if (!this.settings.mirror) return [stroke];
    const step = stroke.kind === "line" ? 3 : 2;
    const points = (stroke.points ?? []).map((one, at) => (at % step ? one : UNITS - one));
    return [stroke, { ...stroke, points }];
  }

  /** @param {Drawing} drawing */
  _drawn(drawing) {
    this.host.drawn(drawing.steps[drawing.steps.length - 1].strokes);
  }

  /** @param {number} x @param {number} y */
  _pick(x, y) {
    const color = this.view.colorAt(x, y);
    if (color) this.host.picked(color);
  }

  // ---- pointers

  /** @param {PointerEvent} event */
  _down(event) {
    const { stage } = this.view;
    this.view._measure();
    stage.focus({ preventScroll: true });
    if (event.pointerType === "pen") this.penSeen = true;
    if (event.pointerType === "touch") {
      this.fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (this.fingers.size > 1) {
        if (this.busy && this.busy.what !== "pan") {
          if (event.timeStamp - this.busy.since < SECOND_FINGER_MS) this.abandon();
          else this._finish();
        }
        this.busy = null;
        this.overlay.hideBrush();
        return;
      }
    }
    if (this.busy) return;
    try {
      stage.setPointerCapture(event.pointerId);
    } catch {
      return; // it was lifted already
    }
    event.preventDefault();
    const erase = event.button === MOUSE_RIGHT || event.button === ERASER_BUTTON || Boolean(event.buttons & ERASER_BIT);
    const begun = (/** @type {any} */ what) => {
      this.busy = what && { pointer: event.pointerId, what, erase, since: event.timeStamp };
      if (what === "stroke" || what === "lasso") stage.classList.add("busy");
      if (what === "pan") stage.classList.add("moving");
    };
    const pans = event.button === MOUSE_MIDDLE || (this.spaceHeld && event.pointerType === "mouse");
    if (pans || (event.pointerType === "touch" && this.penSeen)) {
      begun("pan");
      this.fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    } else if (this.view.mode === "compare") {
      begun("split");
      this._split(event);
    } else {
      const [x, y] = this.view.toUnits(event.clientX, event.clientY);
      if (event.altKey) {
        this._pick(x, y);
        return;
      }
      begun(this.start(x, y, pressureOf(event), erase, event.shiftKey));
      this._showBrush(event);
    }
  }

  /** @param {PointerEvent} event */
  _move(event) {
    const finger = this.fingers.get(event.pointerId);
    if (finger && (this.fingers.size > 1 || this.busy?.what === "pan")) {
      this._moveView(event, finger);
      return;
    }
    if (this.busy && this.busy.pointer === event.pointerId) {
      const { what } = this.busy;
      if (!event.buttons) {
        this._finish(); // a menu of the system may have kept to itself that the button was let go
      } else if (what === "split") {
        this._split(event);
      } else if (what !== "pan") {
        const parts = event.getCoalescedEvents?.() ?? [];
        for (const one of parts.length ? parts : [event]) {
          const [x, y] = this.view.toUnits(one.clientX, one.clientY);
          this.go(what, x, y, pressureOf(one));
        }
      }
    }
    if (event.pointerType !== "touch" || this.busy) this._showBrush(event);
  }

  /** @param {PointerEvent} event @param {boolean} canceled by the system */
  _up(event, canceled) {
    this.fingers.delete(event.pointerId);
    this.view.stage.classList.remove("moving");
    if (!this.busy || this.busy.pointer !== event.pointerId) return;
    if (canceled) this.abandon();
    else this._finish();
    if (event.pointerType === "touch") this.overlay.hideBrush();
  }

  _finish() {
    const busy = this.busy;
    this.busy = null;
    this.view.stage.classList.remove("busy");
    if (busy && busy.what !== "pan" && busy.what !== "split") this.end(busy.what, busy.erase);
  }

  /** @param {PointerEvent} event @param {{x: number, y: number}} finger where it was */
  _moveView(event, finger) {
    const now = { x: event.clientX, y: event.clientY };
    const others = [...this.fingers].filter(([pointer]) => pointer !== event.pointerId).map(([, place]) => place);
    if (others.length) {
      const [other] = others;
      const before = Math.hypot(finger.x - other.x, finger.y - other.y);
      const after = Math.hypot(now.x - other.x, now.y - other.y);
      this.view.pan((now.x - finger.x) / 2, (now.y - finger.y) / 2);
      if (before > 1) this.view.zoom(after / before, (now.x + other.x) / 2, (now.y + other.y) / 2);
    } else {
      this.view.pan(now.x - finger.x, now.y - finger.y);
    }
    this.fingers.set(event.pointerId, now);
  }

  /** @param {PointerEvent} event */
  _showBrush(event) {
    if (this.view.mode === "compare") return;
    const [x, y] = this.view.toUnits(event.clientX, event.clientY);
    this.overlay.showBrush(x, y, this.settings.shape === "brush" ? this.width : 0);
  }

  /** @param {PointerEvent} event */
  _split(event) {
    const [x] = this.view.toUnits(event.clientX, event.clientY);
    this.host.split(Math.min(Math.max(x / UNITS, 0), 1));
  }

  /** @param {WheelEvent} event */
  _wheel(event) {
    event.preventDefault();
    const turned = event.deltaY || event.deltaX; // with alt or shift some systems turn it sideways
    if (event.altKey) {
      this.resize(turned < 0 ? 1.15 : 1 / 1.15);
    } else {
      const pixels = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 20 * turned : turned;
      this.view.zoom(Math.exp(-pixels / (event.ctrlKey ? 100 : 500)), event.clientX, event.clientY);
    }
  }
}

/** @param {PointerEvent} event @returns {number} 1 to `MAX_PRESSURE` */
function pressureOf(event) {
  if (event.pointerType !== "pen" || !event.pressure) return MAX_PRESSURE;
  return Math.min(Math.max(Math.round(event.pressure * MAX_PRESSURE), 1), MAX_PRESSURE);
}

/** @param {number} x @param {number} y @returns {number[]} as a document takes them */
function place(x, y) {
  return [x, y].map((one) => Math.min(Math.max(Math.round(one), -UNITS), 2 * UNITS));
}
