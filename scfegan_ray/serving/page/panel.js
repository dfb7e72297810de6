// @ts-check
// The options beside the drawing: brush, colors, layers, variants.

import { LAYERS, UNITS } from "./rasterize.js";
import { setSetting, setting } from "./storage.js";
import { MAX_WIDTH, MIN_WIDTH } from "./tools.js";
import { say } from "./words.js";

/** @typedef {import("./tools.js").Tools} Tools */
/** @typedef {import("./rasterize.js").LayerName} LayerName */

const PALETTE = {
  skin: ["#f7dcc8", "#ecc3a3", "#d9a47e", "#b4825a", "#8b5b3d", "#5a3826"],
  lips: ["#e59a96", "#cf6a6c", "#c01e32", "#9e3346", "#7a2638", "#b0705f"],
  hair: ["#e8d3a0", "#c69a5c", "#8f5d31", "#5b3822", "#2a1c16", "#a54a2a", "#a3a19e"],
  eyes: ["#5b4030", "#8a6a3c", "#5f7a4c", "#6f95b4", "#3d6491", "#828b93"],
};
const RECENT = 6;

const element = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** @param {string} name @returns {SVGElement} */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.classList.add("icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `page/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

export class Panel {
  /**
   * @param {Tools} tools
   * @param {{colored: (color: string) => void, shown: (layer: LayerName, shown: boolean, opacity: number) => void,
   *   cleared: (layer: LayerName) => void, took: (at: number) => void}} host
   */
  constructor(tools, host) {
    this.tools = tools;
    this.host = host;
    this.layers = Object.fromEntries(LAYERS.map((layer) => [layer, { shown: true, opacity: 1 }]));
    /** @type {string[]} */
    this.recent = setting("recent", "").split(" ").filter((one) => /^#[0-9a-f]{6}$/.test(one)).slice(0, RECENT);
    for (const input of document.querySelectorAll("[data-size]")) {
      input.addEventListener("input", () => {
        const part = Number(/** @type {HTMLInputElement} */ (input).value) / 100;
        tools.settings.widths[tools.settings.layer] = Math.round(MIN_WIDTH * (MAX_WIDTH / MIN_WIDTH) ** part);
        this.drawSize();
      });
    }
  }

  /** Show all in the present language. */
  draw() {
    this._drawColors();
    this._drawLayers();
    this.drawSize();
  }

  drawSize() {
    const { width, view } = this.tools;
    const part = Math.log(width / MIN_WIDTH) / Math.log(MAX_WIDTH / MIN_WIDTH);
    const pixels = Math.max((width * view.size) / UNITS, 1);
    const text = `${pixels < 10 ? pixels.toFixed(1) : Math.round(pixels)} px`;
    for (const input of document.querySelectorAll("[data-size]")) {
      /** @type {HTMLInputElement} */ (input).value = String(100 * part);
      input.setAttribute("aria-valuetext", text);
    }
    const output = document.querySelector("#panel output");
    if (output) output.textContent = text;
  }

  /** Remember a color that was used. @param {string} color */
  used(color) {
    if (this.recent[0] === color) return;
    this.recent = [color, ...this.recent.filter((one) => one !== color)].slice(0, RECENT);
    setSetting("recent", this.recent.join(" "));
    this._drawColors();
  }

  drawChosen() {
    const { color } = this.tools.settings;
    document.documentElement.style.setProperty("--chosen", color);
    for (const one of element("colors").querySelectorAll("button")) {
      one.setAttribute("aria-pressed", String(one.dataset.color === color));
    }
    /** @type {HTMLInputElement | null} */
    const input = element("colors").querySelector("input");
    if (input) input.value = color;
  }

  _drawColors() {
    const own = document.createElement("label");
    own.className = "own";
    const input = document.createElement("input");
    input.type = "color";
    input.addEventListener("input", () => this.host.colored(input.value));
    const text = document.createElement("span");
    text.textContent = say("own_color");
    own.append(input, text);
    const groups = Object.entries({ ...PALETTE, recent: this.recent }).filter(([, colors]) => colors.length);
    element("colors").replaceChildren(own, ...groups.map(([name, colors]) => {
      const group = document.createElement("div");
      group.className = "swatches";
      group.setAttribute("role", "group");
      group.setAttribute("aria-label", say(name));
      const title = document.createElement("span");
      title.textContent = say(name);
      group.append(title, ...colors.map((color, at) => this._swatch(name, color, at)));
      return group;
    }));
    this.drawChosen();
  }

  /** @param {string} group @param {string} color @param {number} at */
  _swatch(group, color, at) {
    const button = document.createElement("button");
    button.dataset.color = color;
    button.style.backgroundColor = color;
    button.title = `${say(group)} ${at + 1}: ${color}`;
    button.setAttribute("aria-label", button.title);
    button.addEventListener("click", () => this.host.colored(color));
    return button;
  }

  _drawLayers() {
    element("layer-rows").replaceChildren(...LAYERS.map((layer) => {
      const facts = this.layers[layer], row = document.createElement("div");
      row.className = "row";
      const eye = document.createElement("button");
      eye.className = "bare";
      const slider = document.createElement("input");
      slider.type = "range";
      slider.max = "100";
      slider.value = String(100 * facts.opacity);
      slider.setAttribute("aria-label", say("opacity", { layer: say(layer) }));
      const update = () => {
        eye.replaceChildren(icon(facts.shown ? "eye" : "eye-off"));
        eye.setAttribute("aria-pressed", String(facts.shown));
        this.host.shown(layer, facts.shown, facts.opacity);
      };
      eye.dataset.eye = layer;
      eye.title = say("show", { layer: say(layer) });
      eye.setAttribute("aria-label", eye.title);
      eye.addEventListener("click", () => {
        facts.shown = !facts.shown;
        update();
      });
      slider.addEventListener("input", () => {
        facts.opacity = Number(slider.value) / 100;
        update();
      });
      const name = document.createElement("span");
      name.textContent = say(layer);
      const clear = document.createElement("button");
      clear.className = "bare";
      clear.append(icon("trash"));
      clear.dataset.clear = layer;
      clear.title = say("clear", { layer: say(layer) });
      clear.setAttribute("aria-label", clear.title);
      clear.addEventListener("click", () => this.host.cleared(layer));
      row.append(eye, name, slider, clear);
      update();
      return row;
    }));
  }

  /** Hide all layers, or show them. */
  toggleLayers() {
    const show = !LAYERS.some((layer) => this.layers[layer].shown);
    for (const layer of LAYERS) this.layers[layer].shown = show;
    this._drawLayers();
  }

  /** @param {import("./runner.js").Variant[]} variants @param {number} seed the one that is taken */
  drawVariants(variants, seed) {
    element("variants").replaceChildren(...variants.map((variant, at) => {
      const button = document.createElement("button");
      button.setAttribute("aria-pressed", String(variant.seed === seed));
      button.setAttribute("aria-label", say("take", { number: at + 1 }));
      button.title = say("take", { number: at + 1 });
      const image = document.createElement("img");
      image.src = variant.url;
      image.alt = "";
      button.append(image);
      button.addEventListener("click", () => this.host.took(at));
      return button;
    }));
  }
}
