// @ts-check
// What floats over the stage and belongs to no layer: the brush's outline, a path in progress, helping lines.

import { UNITS } from "./rasterize.js";

/** @typedef {import("./view.js").View} View */

const find = (/** @type {string} */ name) => /** @type {SVGElement} */ (document.querySelector(`#overlay .${name}`));

export class Overlay {
  /** @param {View} view */
  constructor(view) {
    this.view = view;
    this.brush = find("brush");
    this.path = find("path");
    this.helping = find("helping");
    this.mirror = find("mirror");
    this.square = find("square");
    this.split = find("split");
    this.part = 0.5;
    /** @type {{x: number, y: number, width: number} | null} */
    this.at = null;
    /** @type {number[]} */
    this.points = [];
    this.lines = false;
    this.mirrored = false;
    view.onMove.push(() => this.draw());
  }

  /** Show where the brush is. @param {number} x @param {number} y @param {number} width all in units */
  showBrush(x, y, width) {
    this.at = { x, y, width };
    this._drawBrush();
  }

  hideBrush() {
    this.at = null;
    this._drawBrush();
  }

  /** Show a path that is not drawn yet. @param {number[]} points x, y, in units; empty for none */
  showPath(points) {
    this.points = points;
    this._drawPath();
  }

  /** @param {boolean} lines thirds and middle @param {boolean} mirrored the axis of symmetry */
  showLines(lines, mirrored) {
    this.lines = lines;
    this.mirrored = mirrored;
    this.draw();
  }

  /** Show where the result begins. @param {number} part 0 to 1 */
  showSplit(part) {
    this.part = part;
    this.draw();
  }

  draw() {
    const [left, top] = this.view.toStage(0, 0), side = this.view.lengthOf(UNITS);
    const down = (/** @type {number} */ part) => `M${left + part * side},${top}v${side}`;
    const across = (/** @type {number} */ part) => `M${left},${top + part * side}h${side}`;
    const thirds = [1 / 3, 1 / 2, 2 / 3].map((part) => down(part) + across(part)).join("");
    this.helping.setAttribute("d", this.lines ? thirds : "");
    this.mirror.setAttribute("d", this.mirrored ? down(1 / 2) : "");
    this.split.setAttribute("d", down(this.part));
    this.square.setAttribute("d", `M${left},${top}h${side}v${side}h${-side}z`);
    this._drawBrush();
    this._drawPath();
  }

  _drawBrush() {
    this.brush.toggleAttribute("hidden", !this.at);
    if (!this.at) return;
    const [x, y] = this.view.toStage(this.at.x, this.at.y);
    // What is too small to be seen gets a ring around it.
    const radius = Math.max(this.view.lengthOf(this.at.width) / 2, 3);
    this.brush.setAttribute("transform", `translate(${x} ${y})`);
    for (const circle of this.brush.querySelectorAll("circle")) circle.setAttribute("r", String(radius));
  }

  _drawPath() {
    let path = "";
    for (let at = 0; at < this.points.length; at += 2) {
      path += `${at ? "L" : "M"}${this.view.toStage(this.points[at], this.points[at + 1]).join(",")}`;
    }
    this.path.setAttribute("d", path);
  }
}
