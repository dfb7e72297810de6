// @ts-check
// The whole photograph, with a square on each face; squares are chosen, moved, resized and turned.

import { say } from "./words.js";

/** @typedef {import("./document.js").Square} Square */
/** @typedef {import("./editor.js").Editor} Editor */

const LEAST_SIDE = 0.02;
const MOST_SIDE = 4;
const DRAG_PX = 4;
const TURN = Math.PI / 90;

export class Overview {
  /** @param {Editor} editor @param {(at: number) => void} onUse told which square to draw in */
  constructor(editor, onUse) {
    this.editor = editor;
    this.onUse = onUse;
    this.place = /** @type {HTMLElement} */ (document.getElementById("photograph"));
    this.image = /** @type {HTMLImageElement} */ (this.place.querySelector("img"));
    this.chosen = -1;
    new ResizeObserver(() => this._layOut()).observe(this.place.parentElement ?? this.place);
    this.image.addEventListener("load", () => this._layOut());
  }

  /** @param {string} url */
  setPhotograph(url) {
    this.image.src = url;
    this.chosen = -1;
  }

  /** Show the squares anew. */
  draw() {
    this.place.querySelectorAll(".square").forEach((one) => one.remove());
    this.editor.faces.forEach((face, at) => this.place.append(this._square(face, at)));
    const none = !this.editor.faces.length;
    const text = /** @type {HTMLElement} */ (document.getElementById("overview-text"));
    text.textContent = none ? this.editor.opened?.message || say("overview_none") : say("overview_text");
    document.body.classList.toggle("square-chosen", this.chosen >= 0);
    this._layOut();
  }

  /** @param {number} at */
  choose(at) {
    this.chosen = at;
    this.draw();
    /** @type {HTMLElement | null} */ (this.place.querySelector(`.square[data-at="${at}"]`))?.focus();
  }

  /** Put a new square into the middle. */
  add() {
    const { width, height } = this.editor.opened ?? { width: 1, height: 1 };
    const high = height / width;
    this.editor.place(-1, { x: 0.5, y: high / 2, side: Math.min(1, high) / 2, angle: 0 });
    this.choose(this.editor.faces.length - 1);
  }

  removeChosen() {
    if (this.chosen < 0) return;
    this.editor.remove(this.chosen);
    this.chosen = -1;
    this.draw();
  }

  /** Fit the photograph into its room; squares are placed in parts of it. */
  _layOut() {
    const room = this.place.parentElement, { opened } = this.editor;
    if (!room || !opened || !room.clientWidth) return;
    const taken = [...room.children].reduce((sum, one) => {
      return sum + (one === this.place ? 0 : /** @type {HTMLElement} */ (one).offsetHeight);
    }, 0);
    const style = getComputedStyle(room);
    const wide = room.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const high = room.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom) - taken
      - 2 * (parseFloat(style.rowGap) || 0);
    const width = Math.max(Math.min(wide, (high * opened.width) / opened.height), 80);
    this.place.style.width = `${width}px`;
    this.place.style.height = `${(width * opened.height) / opened.width}px`;
    for (const square of this.place.querySelectorAll(".square")) this._position(/** @type {HTMLElement} */ (square));
  }

  /** @param {HTMLElement} element */
  _position(element) {
    const face = this.editor.faces[Number(element.dataset.at)];
    if (!face) return;
    const width = this.place.clientWidth, { x, y, side, angle } = face.square;
    const px = side * width;
    element.style.width = element.style.height = `${px}px`;
    element.style.transform = `translate(${x * width - px / 2}px, ${y * width - px / 2}px) rotate(${angle}rad)`;
  }

  /** @param {import("./editor.js").Face} face @param {number} at */
  _square(face, at) {
    const element = document.createElement("button");
    element.className = "square";
    element.dataset.at = String(at);
    element.setAttribute("aria-label", say(face.problem ? "square_small" : "square", { number: at + 1 }));
    element.setAttribute("aria-description", say("square_help"));
    element.title = element.getAttribute("aria-label") ?? "";
    element.classList.toggle("problem", Boolean(face.problem));
    element.setAttribute("aria-pressed", String(at === this.chosen));
    const badge = document.createElement("span");
    badge.className = "badge";
    const strokes = (face.drawing?.strokes ?? face.strokes).length;
    badge.textContent = `${at + 1}${face.problem ? " !" : ""}${strokes ? " ✎" : ""}`;
    element.append(badge);
    for (const handle of ["resize", "turn"]) {
      const knob = document.createElement("i");
      knob.className = handle;
      knob.title = say(handle);
      element.append(knob);
    }
    element.addEventListener("pointerdown", (event) => this._grab(event, element, at));
    element.addEventListener("dblclick", () => this.onUse(at));
    element.addEventListener("keydown", (event) => this._key(event, at));
    element.addEventListener("focus", () => {
      if (this.chosen === at) return;
      this.chosen = at;
      for (const one of this.place.querySelectorAll(".square")) {
        one.setAttribute("aria-pressed", String(one === element));
      }
      document.body.classList.add("square-chosen");
    });
    return element;
  }

  /** @param {PointerEvent} event @param {HTMLElement} element @param {number} at */
  _grab(event, element, at) {
    if (event.button) return;
    const { classList } = /** @type {HTMLElement} */ (event.target);
    const how = classList.contains("resize") ? "resize" : classList.contains("turn") ? "turn" : "move";
    const wasChosen = this.chosen === at;
    const { square } = this.editor.faces[at];
    const { left, top, width } = this.place.getBoundingClientRect();
    const start = { x: (event.clientX - left) / width, y: (event.clientY - top) / width };
    let moved = false;
    element.setPointerCapture(event.pointerId);
    element.focus();
    const move = (/** @type {PointerEvent} */ now) => {
      moved ||= Math.hypot(now.clientX - event.clientX, now.clientY - event.clientY) > DRAG_PX;
      if (!moved) return;
      const x = (now.clientX - left) / width, y = (now.clientY - top) / width;
      const away = Math.hypot(x - square.x, y - square.y), angle = Math.atan2(y - square.y, x - square.x);
      const before = Math.hypot(start.x - square.x, start.y - square.y);
      const beforeAngle = Math.atan2(start.y - square.y, start.x - square.x);
      if (how === "move") this._set(at, { ...square, x: square.x + x - start.x, y: square.y + y - start.y });
      else if (how === "resize") this._set(at, { ...square, side: (square.side * away) / Math.max(before, 1e-3) });
      else this._set(at, { ...square, angle: square.angle + angle - beforeAngle });
    };
    const up = () => {
      element.removeEventListener("pointermove", move);
      // A click on a square opens it; one that was placed by hand is opened by its button.
      if (!moved && how === "move" && (wasChosen || event.pointerType !== "touch")) this.onUse(at);
    };
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerup", up, { once: true });
  }

  /** @param {KeyboardEvent} event @param {number} at */
  _key(event, at) {
    const { square } = this.editor.faces[at];
    const step = event.shiftKey ? 0.002 : 0.01;
    /** @type {Record<string, Partial<Square>>} */
    const changes = {
      ArrowLeft: { x: square.x - step }, ArrowRight: { x: square.x + step },
      ArrowUp: { y: square.y - step }, ArrowDown: { y: square.y + step },
      "+": { side: square.side * 1.04 }, "=": { side: square.side * 1.04 }, "-": { side: square.side / 1.04 },
      ",": { angle: square.angle - TURN }, ".": { angle: square.angle + TURN },
    };
    if (event.key === "Enter" || event.key === " ") this.onUse(at);
    else if (event.key === "Delete") this.removeChosen();
    else if (changes[event.key]) this._set(at, { ...square, ...changes[event.key] });
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** @param {number} at @param {Square} square */
  _set(at, square) {
    const high = (this.editor.opened?.height ?? 1) / (this.editor.opened?.width ?? 1);
    const clamp = (/** @type {number} */ one, /** @type {number} */ least, /** @type {number} */ most) => {
      return Math.min(Math.max(one, least), most);
    };
    const full = 2 * Math.PI;
    this.editor.place(at, {
      x: clamp(square.x, 0, 1), y: clamp(square.y, 0, high), side: clamp(square.side, LEAST_SIDE, MOST_SIDE),
      angle: square.angle - full * Math.round(square.angle / full),
    });
    const element = this.place.querySelector(`.square[data-at="${at}"]`);
    if (element) this._position(/** @type {HTMLElement} */ (element));
  }
}
