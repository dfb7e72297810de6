// @ts-check
// Language, appearance, and the help that lists the shortcuts.

import { SHORTCUTS } from "./keys.js";
import { setSetting, setting } from "./storage.js";
import { LANGUAGES, currentLanguage, say, setLanguage } from "./words.js";

const element = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** What an action is called where that is not its name. @type {Record<string, string>} */
const CALLED = {
  "layer-mask": "mask", "layer-sketch": "sketch", "layer-color": "color", "shape-brush": "brush",
  "shape-lasso": "lasso", "shape-bucket": "bucket", "shape-picker": "picker", erase: "eraser", smaller: "key_size",
  larger: "key_size", view: "key_view", "mode-compare": "view_compare", layers: "key_layers", "zoom-in": "zoom_in",
  "zoom-out": "zoom_out", overview: "faces", "save-png": "save_png",
};

/** Those that no single action has. */
const OTHERS = [
  ["← ↑ → ↓", "key_cursor"], ["Space, Enter", "key_draw"], ["Esc", "key_escape"], ["Shift", "key_line"],
  ["Alt", "key_pick"],
];

/** @param {() => void} onLanguage */
export function preparePreferences(onLanguage) {
  const language = /** @type {HTMLSelectElement} */ (element("language"));
  for (const [tag, words] of Object.entries(LANGUAGES)) language.add(new Option(words.name, tag));
  language.value = currentLanguage();
  language.addEventListener("change", () => {
    setLanguage(language.value);
    onLanguage();
  });
  const theme = /** @type {HTMLSelectElement} */ (element("theme"));
  const show = () => {
    document.documentElement.dataset.theme = theme.value;
  };
  theme.value = setting("theme", "");
  show();
  theme.addEventListener("change", () => {
    setSetting("theme", theme.value);
    show();
  });
}

/** List the shortcuts. */
export function drawHelp() {
  /** @type {Map<string, string[]>} */
  const rows = new Map();
  for (const [key, act] of SHORTCUTS) {
    const word = CALLED[act] ?? act;
    rows.set(word, [...(rows.get(word) ?? []), key]);
  }
  for (const [key, word] of OTHERS) rows.set(word, [key]);
  const list = document.createElement("dl");
  for (const [word, keys] of rows) {
    const row = document.createElement("div"), name = document.createElement("dt"), held = document.createElement("dd");
    name.textContent = say(word);
    held.append(...keys.map((key) => {
      const shown = document.createElement("kbd");
      shown.textContent = key;
      return shown;
    }));
    row.append(name, held);
    list.append(row);
  }
  element("shortcuts").replaceChildren(list);
}
