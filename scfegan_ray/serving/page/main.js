// @ts-check
// Puts the page together: what each button and key does, and what is shown when something happens.

import { makeActions, openFile, toggle } from "./actions.js";
import { BackendError, ServerBackend } from "./backend.js";
import { Editor } from "./editor.js";
import { takeFiles } from "./files.js";
import { KEY_OF, KeyCursor, listen } from "./keys.js";
import { Overlay } from "./overlay.js";
import { Overview } from "./overview.js";
import { Panel, icon } from "./panel.js";
import { drawHelp, preparePreferences } from "./preferences.js";
import { LAYERS, UNITS } from "./rasterize.js";
import { Runner } from "./runner.js";
import { attempt, report, status } from "./status.js";
import { setSetting, setting } from "./storage.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";
import { fillWords, say } from "./words.js";

/** @typedef {import("./rasterize.js").Stroke} Stroke */
/** @typedef {import("./view.js").Mode} Mode */

const UNPROCESSABLE = 422;

const element = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));

// A folder that `jobs/edit.py --static` wrote has its model beside it.
const isStatic = document.documentElement.dataset.backend === "static";
const editor = new Editor(isStatic ? new (await import("./static.js")).StaticBackend() : new ServerBackend());
for (const one of document.querySelectorAll("[data-act=guides]")) /** @type {HTMLElement} */ (one).hidden = isStatic;
const runner = new Runner(editor);
const view = new View();
const overlay = new Overlay(view);
/** @type {import("./tools.js").Settings} */
const settings = {
  layer: "mask", shape: "brush", erase: false, color: "#b4825a", mirror: false,
  widths: { mask: 6000, sketch: 128, color: 2400 },
};
const tools = new Tools(view, overlay, settings, {
  drawing: () => editor.drawing,
  drawn,
  growing: () => runner.outdated(),
  picked: (color) => {
    setColor(color);
    status("picked", { color });
  },
  resized: () => panel.drawSize(),
  split: setSplit,
});
const panel = new Panel(tools, {
  colored: (color) => {
    settings.layer = "color";
    settings.erase = false;
    setColor(color);
  },
  shown: (layer, shown, opacity) => {
    view.canvases[layer].style.opacity = String(shown ? opacity : 0);
  },
  cleared: (layer) => add([{ kind: "clear", layer }], "cleared"),
  took: (at) => attempt(async () => {
    await runner.choose(at);
    drawVariants();
    setMode("result");
  }),
});
const overview = new Overview(editor, (at) => attempt(() => editor.show(at)));
let toldOutside = false;
let linesShown = false;

// ---- drawing

/** @param {Stroke[]} strokes what was just drawn */
function drawn(strokes) {
  changed();
  const [{ layer, kind, erase, points = [] }] = strokes;
  if (layer === "color" && !erase) panel.used(settings.color);
  if (layer === "mask" || erase || !editor.drawing) return;
  const { size, layers } = editor.drawing, step = kind === "line" ? 3 : 2;
  const inHole = points.some((x, at) => {
    const column = Math.floor((x * size) / UNITS), row = Math.floor((points[at + 1] * size) / UNITS);
    return at % step === 0 && column >= 0 && column < size && layers.mask[row * size + column] === 1;
  });
  if (inHole) return;
  if (kind === "bucket") status("bucket_outside");
  else if (!toldOutside) status("outside");
  toldOutside = true;
}

/** Something about the drawing is another one. */
function changed() {
  runner.forget();
  runner.outdated();
  editor.isPrecious = true;
  editor.changed();
  if (!runner.live) view.setMode("drawing"); // what is seen else is outdated
  refresh();
}

/** @param {Stroke[]} strokes @param {string} word */
function add(strokes, word) {
  if (!editor.drawing) return;
  editor.drawing.add(strokes);
  changed();
  status(word);
}

/** @param {string} color */
function setColor(color) {
  settings.color = color;
  panel.drawChosen();
  refresh();
}

/** @param {Mode} mode */
function setMode(mode) {
  if (mode === "drawing" || editor.isFresh) {
    view.setMode(mode);
    refresh();
  } else {
    attempt(() => runner.complete(false, mode));
  }
}

/** @param {number} part */
function setSplit(part) {
  view.setSplit(part);
  overlay.showSplit(part);
  /** @type {HTMLInputElement} */ (document.querySelector("#split input")).value = String(100 * part);
}

/** @param {boolean} shown */
function showHint(shown) {
  element("hint").hidden = !shown;
  setSetting("hint", shown ? "shown" : "hidden");
}

function drawVariants() {
  panel.drawVariants(runner.variants, editor.drawing?.seed ?? 0);
}

// ---- what is shown

function refresh() {
  const { drawing, face } = editor;
  const press = (/** @type {string} */ act, /** @type {boolean} */ pressed) => {
    for (const one of document.querySelectorAll(`[data-act="${act}"]`)) {
      one.setAttribute("aria-pressed", String(pressed));
    }
  };
  for (const layer of LAYERS) press(`layer-${layer}`, settings.layer === layer);
  for (const shape of ["brush", "lasso", "bucket", "picker"]) press(`shape-${shape}`, settings.shape === shape);
  press("erase", settings.erase);
  press("mirror", settings.mirror);
  for (const mode of ["drawing", "result", "compare"]) press(`mode-${mode}`, view.mode === mode);
  const enable = (/** @type {string} */ act, /** @type {boolean} */ enabled) => {
    for (const one of document.querySelectorAll(`[data-act="${act}"]`)) {
      /** @type {HTMLButtonElement} */ (one).disabled = !enabled;
    }
  };
  enable("undo", Boolean(drawing?.steps.length));
  enable("redo", Boolean(drawing?.undone.length));
  for (const act of ["run", "vary", "guides", "clear-all"]) enable(act, Boolean(drawing));
  const switches = { live: runner.live, mirror: settings.mirror, lines: linesShown };
  for (const [name, on] of Object.entries(switches)) {
    const input = document.querySelector(`[data-switch="${name}"]`);
    if (input) /** @type {HTMLInputElement} */ (input).checked = on;
  }
  document.body.dataset.layer = settings.layer;
  view.stage.dataset.shape = settings.shape;
  document.body.classList.toggle("with-result", Boolean(face?.result));
  overlay.showLines(linesShown, settings.mirror);
  panel.drawSize();
}

/** Show the place that the work is at: start, overview or a face. */
function showPlace() {
  const place = !editor.photograph ? "start" : editor.active < 0 ? "overview" : "face";
  document.body.dataset.place = place;
  for (const one of ["start", "overview", "face"]) element(one).hidden = one !== place;
  document.title = editor.name ? `${editor.name} – SC-FEGAN` : "SC-FEGAN";
  if (place === "overview") overview.draw();
  refresh();
}

function showResult() {
  const { face } = editor;
  view.setResult(face?.result ?? null);
  for (const canvas of /** @type {NodeListOf<HTMLCanvasElement>} */ (document.querySelectorAll("[data-preview]"))) {
    canvas.width = canvas.height = view.size;
    if (face?.result) canvas.getContext("2d")?.drawImage(face.result.bitmap, 0, 0);
  }
  refresh();
}

editor.addEventListener("model", () => {
  if (!editor.model) return;
  const { name, license } = editor.model;
  const text = [say("model_name", { name }), license && say("license", { license })].filter(Boolean).join(" · ");
  element("model").textContent = element("license").textContent = text;
});
editor.addEventListener("photograph", () => {
  overview.setPhotograph(editor.opened?.preview ?? "");
  status("");
});
editor.addEventListener("show", () => {
  runner.stop();
  view.drawing = null;
  view.stage.classList.add("loading");
  showPlace();
  if (editor.face && !editor.face.crop) status("cropping", {}, "waiting");
});
editor.addEventListener("ready", () => {
  const { face } = editor;
  if (!face?.drawing || !face.bitmap) return;
  view.setMode("drawing");
  view.setFace(face.drawing, face.bitmap);
  view.setAround(editor.opened?.preview ?? "", face.square);
  // A line of the model's own width is what it was trained on.
  settings.widths.sketch = Math.max(settings.widths.sketch, Math.ceil(UNITS / face.drawing.size));
  toldOutside = false;
  view.stage.classList.remove("loading");
  status("");
  showResult();
  element("hint").hidden = setting("hint", "shown") !== "shown";
  view.stage.focus({ preventScroll: true });
  runner.outdated();
});
editor.addEventListener("pixels", (event) => {
  const { face, layer, rect } = /** @type {CustomEvent} */ (event).detail;
  if (face === editor.face && view.drawing) view.dirty(layer, rect);
});
editor.addEventListener("changed", () => delete document.body.dataset.kept);
editor.addEventListener("kept", (event) => {
  const well = /** @type {CustomEvent} */ (event).detail;
  document.body.dataset.kept = well ? "yes" : "no";
  element("kept").textContent = say(well ? "kept" : "not_kept");
});

runner.addEventListener("waiting", () => {
  document.body.classList.add("running");
  status("waiting", {}, "waiting");
});
runner.addEventListener("busy", (event) => {
  const { seconds, answered } = /** @type {CustomEvent} */ (event).detail;
  status(answered ? "busy" : "unreachable", { seconds }, "waiting");
});
runner.addEventListener("idle", () => {
  document.body.classList.remove("running");
  if (element("status").dataset.kind === "waiting") status("");
});
runner.addEventListener("nothing", () => status("nothing"));
runner.addEventListener("emptied", showResult);
runner.addEventListener("failed", (event) => {
  const error = /** @type {CustomEvent} */ (event).detail;
  report(error);
  if (error instanceof BackendError && error.status === UNPROCESSABLE) attempt(() => editor.followModel());
});
runner.addEventListener("variants", drawVariants);
runner.addEventListener("result", showResult);
runner.addEventListener("done", (event) => {
  const { seconds, mode } = /** @type {CustomEvent} */ (event).detail;
  if (mode) {
    showHint(false);
    view.setMode(mode);
    refresh();
  }
  status("done", { seconds: seconds.toFixed(seconds < 10 ? 1 : 0) });
});

// ---- actions

const app = {
  editor, runner, view, tools, panel, overview, setMode, add, changed, showHint, refresh,
  setLines: (/** @type {boolean} */ on) => {
    linesShown = on;
  },
};
const act = makeActions(app);

document.addEventListener("click", (event) => {
  const button = /** @type {HTMLElement} */ (event.target).closest("[data-act]");
  if (!button) return;
  act(/** @type {HTMLElement} */ (button).dataset.act ?? "");
  /** @type {HTMLElement | null} */ (button.closest("[popover]"))?.hidePopover();
});
document.addEventListener("change", (event) => {
  const input = /** @type {HTMLInputElement} */ (event.target);
  if (input.dataset.switch) toggle(app, input.dataset.switch, input.checked);
});
document.querySelector("#split input")?.addEventListener("input", (event) => {
  setSplit(Number(/** @type {HTMLInputElement} */ (event.target).value) / 100);
});
listen(act);
addEventListener("keydown", (event) => event.key === "Escape" && document.body.classList.remove("sheet-open"));
new KeyCursor(tools, status);
takeFiles((file) => attempt(() => openFile(app, file)));
addEventListener("visibilitychange", () => document.hidden && editor.keep());
addEventListener("error", (event) => report(event.error ?? event.message));
addEventListener("unhandledrejection", (event) => report(event.reason));

function speak() {
  fillWords(document, KEY_OF);
  drawHelp();
  panel.draw();
  drawVariants();
  if (editor.model) editor.tell("model");
  if (editor.photograph) showPlace();
}

async function begin() {
  for (const button of document.querySelectorAll("[data-icon]")) {
    button.prepend(icon(/** @type {HTMLElement} */ (button).dataset.icon ?? ""));
  }
  preparePreferences(speak);
  speak();
  runner.live = setting("live", "off") === "on";
  for (const [name, usual] of [["pixels", "off"], ["keys", "on"]]) {
    const input = document.querySelector(`[data-switch="${name}"]`);
    /** @type {HTMLInputElement} */ (input).checked = setting(name, usual) === "on";
  }
  view.stage.classList.toggle("pixels", setting("pixels", "off") === "on");
  if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", location.pathname);
  refresh();
  await editor.start();
  if (await editor.restore()) status("restored");
  document.body.dataset.ready = "yes";
}

attempt(begin);
