// @ts-check
// The keyboard: shortcuts, and a cursor that draws without a pointer.

import { MAX_PRESSURE, UNITS } from "./rasterize.js";
import { setting } from "./storage.js";

/** What keys do; those with Ctrl work on a Mac with Command, too. @type {[string, string][]} key, action */
export const SHORTCUTS = [
  ["1", "layer-mask"], ["2", "layer-sketch"], ["3", "layer-color"],
  ["B", "shape-brush"], ["L", "shape-lasso"], ["G", "shape-bucket"], ["I", "shape-picker"], ["E", "erase"],
  ["X", "mirror"], ["[", "smaller"], ["]", "larger"],
  [",", "smaller"], [".", "larger"],
  ["R", "run"], ["V", "view"], ["C", "mode-compare"], ["H", "layers"], ["N", "vary"],
  ["+", "zoom-in"], ["-", "zoom-out"], ["0", "fit"], ["P", "overview"], ["F", "full"], ["?", "help"],
  ["Ctrl+Enter", "run"], ["Ctrl+Z", "undo"], ["Ctrl+Shift+Z", "redo"], ["Ctrl+Y", "redo"],
  ["Ctrl+O", "open"], ["Ctrl+S", "save-png"],
];

/** @type {Record<string, string>} the first key of each action */
export const KEY_OF = Object.fromEntries([...SHORTCUTS].reverse().map(([key, act]) => [act, key]));

const STEP = UNITS / 64;
const SMALL_STEP = UNITS / 512;
/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Runs actions by their keys. @param {(act: string) => boolean} act returns whether it did something */
export function listen(act) {
  addEventListener("keydown", (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    // On many keyboards AltGr, which counts as Ctrl and Alt, is what brackets take.
    const typed = event.getModifierState("AltGraph");
    const command = !typed && (event.ctrlKey || event.metaKey);
    const written = target.matches?.("textarea, select, input:not([type=range], [type=checkbox], [type=color])");
    if (event.defaultPrevented || (event.altKey && !typed) || (written && !command) || document.querySelector("dialog[open]")) return;
    if (!command && setting("keys", "on") !== "on") return;
    const key = event.key === " " ? "Space" : event.key.length === 1 ? event.key.toUpperCase() : event.key;
    const shift = command && event.shiftKey ? "Shift+" : "";
    const found = SHORTCUTS.find(([name]) => name === `${command ? "Ctrl+" : ""}${shift}${key}`)
      ?? SHORTCUTS.find(([name]) => !command && key === "=" && name === "+");
    if (found && act(found[1])) event.preventDefault();
  });
}

/** A cursor on the drawing: arrows move it; space and enter put the tool down and lift it. */
export class KeyCursor {
  /** @param {import("./tools.js").Tools} tools @param {(word: string) => void} onSay */
  constructor(tools, onSay) {
    this.tools = tools;
    this.onSay = onSay;
    this.x = this.y = UNITS / 2;
    this.shown = false;
    /** @type {"stroke" | "lasso" | "pick" | null} */
    this.down = null;
    const { stage } = tools.view;
    stage.addEventListener("keydown", (event) => this._key(event));
    stage.addEventListener("keyup", (event) => {
      if (event.key === " ") this._hold(false);
    });
    stage.addEventListener("focus", () => {
      if (stage.matches(":focus-visible")) this._show();
    });
    stage.addEventListener("blur", () => {
      this._lift();
      this._hold(false);
      if (this.shown) tools.overlay.hideBrush();
      this.shown = false;
    });
    stage.addEventListener("pointermove", () => {
      this.shown = Boolean(this.down);
    });
    stage.addEventListener("pointerdown", () => this._lift(), true);
  }

  _show() {
    this.shown = true;
    const { overlay, settings, width } = this.tools;
    overlay.showBrush(this.x, this.y, settings.shape === "brush" ? width : 0);
  }

  /** @param {boolean} held the space bar, to move the view with the mouse */
  _hold(held) {
    this.tools.spaceHeld = held;
    this.tools.view.stage.classList.toggle("movable", held);
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = ARROWS[event.key];
    if (arrow) {
      const step = event.shiftKey ? SMALL_STEP : STEP;
      this.x = Math.min(Math.max(this.x + step * arrow[0], 0), UNITS);
      this.y = Math.min(Math.max(this.y + step * arrow[1], 0), UNITS);
      if (this.down) this.tools.go(this.down, this.x, this.y, MAX_PRESSURE);
      this._show();
    } else if (event.key === "Enter" || (event.key === " " && this.shown)) {
      if (event.repeat) return;
      if (this.down) this._lift();
      else this._put(event.shiftKey);
    } else if (event.key === " ") {
      this._hold(true);
    } else if (event.key === "Escape") {
      this.down = null;
      this.tools.abandon();
    } else {
      return;
    }
    event.preventDefault();
  }

  /** @param {boolean} straight */
  _put(straight) {
    this._show();
    const { tools } = this;
    if (tools.busy || tools.view.mode === "compare") return;
    const what = tools.start(this.x, this.y, MAX_PRESSURE, false, straight);
    this.down = what === "pick" ? null : what;
    if (this.down) this.onSay("down");
  }

  _lift() {
    if (!this.down) return;
    const what = this.down;
    this.down = null;
    this.tools.end(what, false);
    this.onSay("up");
  }
}
