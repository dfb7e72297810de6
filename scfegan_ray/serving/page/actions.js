// @ts-check
// What each button and each key does, by name.

import { copy, download, editedName, isEdit, mayLeave } from "./files.js";
import { LAYERS } from "./rasterize.js";
import { attempt, status } from "./status.js";
import { setSetting } from "./storage.js";

/** @typedef {import("./view.js").Mode} Mode */
/** @typedef {import("./tools.js").Shape} Shape */
/** @typedef {Record<string, () => unknown>} Actions */
/**
 * @typedef {{editor: import("./editor.js").Editor, runner: import("./runner.js").Runner,
 *   view: import("./view.js").View, tools: import("./tools.js").Tools, panel: import("./panel.js").Panel,
 *   overview: import("./overview.js").Overview,
 *   setMode: (mode: Mode) => void,
 *   add: (strokes: import("./rasterize.js").Stroke[], word: string) => void, changed: () => void,
 *   setLines: (on: boolean) => void, showHint: (shown: boolean) => void, refresh: () => void}} App
 */

const NUM_VARIANTS = 4;
const LARGER = 1.2;
const ZOOM_STEP = 1.4;

const element = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** Open a photograph or a document. @param {App} app @param {File} file */
export async function openFile({ editor }, file) {
  if (editor.isPrecious && !(await mayLeave())) return;
  if (isEdit(file)) {
    const isHere = await editor.openEdit(await file.text());
    if (!isHere) status("wants_photograph", { name: editor.waiting?.photograph?.name ?? "" });
    return;
  }
  status("opening", {}, "waiting");
  const fits = await editor.open(file, file.name);
  const number = editor.faces.length;
  if (!fits) status("other_photograph");
  else if (editor.opened?.message && number) status("note", { text: editor.opened.message });
  else if (editor.active < 0) status(number ? "opened_faces" : "", { number });
}

/** @param {App} app @param {"png" | "jpeg"} format */
async function save({ editor }, format) {
  if (!editor.faces.length) return status("nothing");
  status("saving", {}, "waiting");
  const name = editedName(editor.name, format === "png" ? "png" : "jpg");
  download(await editor.export(format), name);
  editor.isPrecious = false;
  status("saved", { name });
}

/** @param {App} app */
function saveEdit({ editor }) {
  if (!editor.faces.length) return status("nothing");
  const name = editedName(editor.name, "json");
  download(new Blob([JSON.stringify(editor.edit())], { type: "application/json" }), name);
  editor.isPrecious = false;
  status("saved", { name });
}

/** @param {App} app */
async function copyPhotograph({ editor }) {
  if (!editor.faces.length) return status("nothing");
  status("saving", {}, "waiting");
  await copy(editor.export("png"));
  status("copied");
}

/** @param {App} app */
async function insertGuides({ editor, add }) {
  const { face } = editor;
  if (!face?.crop) return;
  status("guiding", {}, "waiting");
  const strokes = await editor.backend.guides(face.crop);
  if (editor.face === face) add(strokes, "guided");
}

/** @param {App} app @param {"undo" | "redo"} way */
function step({ editor, runner, changed }, way) {
  const { drawing } = editor;
  if (!drawing) return;
  const { seed } = drawing;
  drawing[way]();
  changed();
  if (drawing.seed !== seed) attempt(() => runner.complete(true));
}

/** @param {App} app @param {string} name @param {boolean} on */
export function toggle({ runner, view, tools, setLines, refresh }, name, on) {
  if (name === "live") {
    runner.live = on;
    if (on) runner.outdated();
  } else if (name === "mirror") {
    tools.settings.mirror = on;
  } else if (name === "lines") {
    setLines(on);
  } else if (name === "pixels") {
    view.stage.classList.toggle("pixels", on);
  }
  if (["live", "pixels", "keys"].includes(name)) setSetting(name, on ? "on" : "off");
  refresh();
}

/**
 * @param {App} app
 * @returns {(name: string) => boolean} runs an action; returns whether there was something to do
 */
export function makeActions(app) {
  const { editor, runner, view, tools, panel, overview, setMode, add } = app;
  const { settings } = tools;
  /** @type {Actions} */
  const anywhere = {
    open: () => element("file").click(),
    help: () => /** @type {HTMLDialogElement} */ (element("help")).showModal(),
    "close-help": () => /** @type {HTMLDialogElement} */ (element("help")).close(),
    full: () => attempt(() => {
      return document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen();
    }),
  };
  /** @type {Actions} */
  const withPhotograph = {
    overview: () => attempt(() => editor.show(-1)),
    "add-square": () => overview.add(),
    "remove-square": () => overview.removeChosen(),
    "use-square": () => overview.chosen >= 0 && attempt(() => editor.show(overview.chosen)),
    "save-png": () => attempt(() => save(app, "png")),
    "save-jpeg": () => attempt(() => save(app, "jpeg")),
    "save-edit": () => saveEdit(app),
    copy: () => attempt(() => copyPhotograph(app)),
  };
  /** @type {Actions} */
  const withFace = {
    undo: () => step(app, "undo"),
    redo: () => step(app, "redo"),
    erase: () => {
      settings.erase = !settings.erase;
      if (settings.shape === "picker") settings.shape = "brush";
    },
    mirror: () => toggle(app, "mirror", !settings.mirror),
    smaller: () => tools.resize(1 / LARGER),
    larger: () => tools.resize(LARGER),
    run: () => attempt(() => runner.complete()),
    vary: () => attempt(() => runner.vary(NUM_VARIANTS)),
    guides: () => attempt(() => insertGuides(app)),
    layers: () => panel.toggleLayers(),
    view: () => setMode(view.mode === "drawing" ? "result" : "drawing"),
    "clear-all": () => add(LAYERS.map((layer) => ({ kind: "clear", layer })), "cleared"),
    "zoom-in": () => view.zoom(ZOOM_STEP),
    "zoom-out": () => view.zoom(1 / ZOOM_STEP),
    fit: () => view.fit(),
    sheet: () => document.body.classList.toggle("sheet-open"),
    hint: () => app.showHint(true),
    "hide-hint": () => app.showHint(false),
  };
  for (const mode of /** @type {Mode[]} */ (["drawing", "result", "compare"])) {
    withFace[`mode-${mode}`] = () => setMode(mode);
  }
  for (const layer of LAYERS) {
    withFace[`layer-${layer}`] = () => Object.assign(settings, { layer, erase: false });
  }
  for (const shape of /** @type {Shape[]} */ (["brush", "lasso", "bucket", "picker"])) {
    withFace[`shape-${shape}`] = () => Object.assign(settings, { shape }, shape === "picker" && { erase: false });
  }
  return (name) => {
    const action = anywhere[name] ?? (editor.photograph && withPhotograph[name]) ?? null;
    const wanted = action || (editor.drawing && withFace[name]);
    if (!wanted) return false;
    wanted();
    app.refresh();
    return true;
  };
}
