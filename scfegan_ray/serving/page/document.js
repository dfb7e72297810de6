// @ts-check
// The edit document: what a person drew, as JSON. `edits.py` describes it and has the last word.

import { LAYERS, UNITS, MAX_PRESSURE } from "./rasterize.js";

/** @typedef {import("./rasterize.js").Stroke} Stroke */
/** @typedef {{x: number, y: number, side: number, angle: number}} Square relative to the photograph's width */
/** @typedef {{square: Square, seed: number, strokes: Stroke[]}} FaceEdit */
/** @typedef {{name: string, width: number, height: number}} PhotographFacts */
/**
 * @typedef {{format: string, version: number, model: string, faces: FaceEdit[], photograph?: PhotographFacts}} Edit
 */

const FORMAT = "scfegan-edit";
const VERSION = 1;
const KINDS = { line: 3, polygon: 2, bucket: 2, map: 0, clear: 0 };
const MAX_BYTES = 8 << 20;
const MAX_FACES = 64;
const MAX_STROKES = 20000;
const MAX_NUMBERS = 1e6;
const MAX_SIZE = 2048;
const MAX_TEXT = 1000;

/** What is no edit; the text says where. */
export class DocumentError extends Error {}

/** @param {string} model @param {PhotographFacts} photograph @param {FaceEdit[]} faces @returns {Edit} */
export function makeEdit(model, photograph, faces) {
  return { format: FORMAT, version: VERSION, model, photograph, faces };
}

/** Read a document; it may come from a stranger. @param {string} text @returns {Edit} */
export function parseEdit(text) {
  if (text.length > MAX_BYTES) fail(`longer than ${MAX_BYTES >> 20} MB`);
  let given;
  try {
    given = JSON.parse(text);
  } catch {
    fail("no JSON");
  }
  only(given, "the edit", ["format", "version", "model", "faces", "photograph"]);
  if (given.format !== FORMAT) fail("its format is another one");
  if (given.version !== VERSION) fail(`its version is ${given.version}, not ${VERSION}`);
  const model = given.model ?? "";
  if (typeof model !== "string" || model.length > MAX_TEXT) fail("its model is no URI");
  const { faces } = given;
  if (!Array.isArray(faces) || !faces.length || faces.length > MAX_FACES) fail("it has no list of faces");
  const budget = { strokes: MAX_STROKES, numbers: MAX_NUMBERS };
  faces.forEach((one, at) => checkFace(one, `face ${at}`, budget));
  return {
    ...given,
    model,
    photograph: photographOf(given.photograph),
    faces: faces.map((/** @type {any} */ one) => ({
      square: { x: 0.5, y: 0.5, side: 1, angle: 0, ...one.square }, seed: one.seed ?? 0, strokes: one.strokes,
    })),
  };
}

/** @param {any} given @returns {PhotographFacts | undefined} */
function photographOf(given) {
  if (!given || typeof given.name !== "string" || !(given.width > 0) || !(given.height > 0)) return undefined;
  return { name: given.name.slice(0, MAX_TEXT), width: given.width, height: given.height };
}

/** @param {any} face @param {string} where @param {{strokes: number, numbers: number}} budget */
function checkFace(face, where, budget) {
  only(face, where, ["square", "seed", "strokes"]);
  const square = face.square ?? {};
  only(square, `${where}: the square`, ["x", "y", "side", "angle"]);
  const { x = 0.5, y = 0.5, side = 1, angle = 0 } = square;
  const inside = [x, y, side, angle].every(Number.isFinite) && Math.abs(x) <= 16 && Math.abs(y) <= 16
    && side >= 1e-4 && side <= 16 && Math.abs(angle) <= 2 * Math.PI;
  if (!inside) fail(`${where}: the square lies outside any photograph`);
  integer(face.seed ?? 0, `${where}: seed`, 0, Number.MAX_SAFE_INTEGER);
  if (!Array.isArray(face.strokes)) fail(`${where} has no list of strokes`);
  budget.strokes -= face.strokes.length;
  if (budget.strokes < 0) fail(`more than ${MAX_STROKES} strokes`);
  face.strokes.forEach((/** @type {any} */ one, /** @type {number} */ at) => {
    checkStroke(one, `${where}, stroke ${at}`, budget);
  });
}

/** @param {any} stroke @param {string} where @param {{numbers: number}} budget */
function checkStroke(stroke, where, budget) {
  only(stroke, where, ["layer", "kind", "erase", "color", "width", "points", "size", "runs", "colors"]);
  const { kind, layer, erase = false } = stroke;
  if (!Object.hasOwn(KINDS, kind) || !LAYERS.includes(layer) || typeof erase !== "boolean") {
    fail(`${where}: its kind or layer is unknown`);
  }
  const perPoint = KINDS[/** @type {keyof KINDS} */ (kind)];
  if (perPoint) {
    numbers(stroke.points, where, perPoint, -UNITS, 2 * UNITS, budget);
    if (!stroke.points.length || (kind === "bucket" && stroke.points.length > 2)) fail(`${where}: its points`);
  }
  if (kind === "line") {
    integer(stroke.width, `${where}: width`, 1, UNITS);
    for (let at = 2; at < stroke.points.length; at += 3) integer(stroke.points[at], `${where}: pressure`, 1, MAX_PRESSURE);
  }
  if (layer === "color" && !erase && perPoint) color(stroke.color, where);
  if (kind === "map") checkMap(stroke, where, budget);
}

/** @param {any} stroke @param {string} where @param {{numbers: number}} budget */
function checkMap(stroke, where, budget) {
  integer(stroke.size, `${where}: size`, 1, MAX_SIZE);
  numbers(stroke.runs, where, 2, 0, MAX_SIZE ** 2, budget);
  let length = 0, most = 0;
  for (let at = 0; at < stroke.runs.length; at += 2) {
    most = Math.max(most, stroke.runs[at]);
    length += stroke.runs[at + 1];
  }
  if (length !== stroke.size ** 2) fail(`${where}: its runs have another length`);
  if (stroke.layer !== "color" || stroke.erase) return;
  if (!Array.isArray(stroke.colors)) fail(`${where}: it has no colors`);
  budget.numbers -= stroke.colors.length;
  stroke.colors.forEach((/** @type {any} */ one) => color(one, where));
  if (most > stroke.colors.length) fail(`${where}: its runs name more colors than it has`);
}

/** @param {any} given @param {string} where @param {string[]} names */
function only(given, where, names) {
  if (!given || typeof given !== "object" || Array.isArray(given)) fail(`${where} is no object`);
  const unknown = Object.keys(given).find((name) => !names.includes(name));
  if (unknown !== undefined) fail(`${where} has an unknown "${unknown.slice(0, 80)}"`);
}

/** @param {any} given @param {string} where @param {number} least @param {number} most */
function integer(given, where, least, most) {
  if (!Number.isInteger(given) || given < least || given > most) fail(`${where} is no integer from ${least} to ${most}`);
}

/** @param {any} given @param {string} where @param {number} perPoint @param {number} least @param {number} most
 * @param {{numbers: number}} budget */
function numbers(given, where, perPoint, least, most, budget) {
  if (!Array.isArray(given) || given.length % perPoint) fail(`${where}: a list of numbers is missing`);
  budget.numbers -= given.length;
  if (budget.numbers < 0) fail(`more than ${MAX_NUMBERS} numbers`);
  for (const one of given) integer(one, where, least, most);
}

/** @param {any} given @param {string} where */
function color(given, where) {
  if (typeof given !== "string" || !/^#[0-9a-f]{6}$/i.test(given)) fail(`${where}: a color is missing`);
}

/** @param {string} text @returns {never} */
function fail(text) {
  throw new DocumentError(text);
}
