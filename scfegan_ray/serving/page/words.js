// @ts-check
// What the page says, in the person's language.

import { setSetting, setting } from "./storage.js";
import en from "./words_en.js";
import de from "./words_de.js";
import ko from "./words_ko.js";
import zh from "./words_zh.js";

/** @typedef {keyof typeof en} Word */

/** @type {Record<string, Record<string, string>>} */
export const LANGUAGES = { en, de, "zh-Hans": zh, ko };

/** @returns {string} the first of the browser's languages that there are words in */
function preferred() {
  for (const tag of navigator.languages ?? [navigator.language]) {
    const base = tag.split("-")[0].toLowerCase();
    const found = Object.keys(LANGUAGES).find((one) => one.split("-")[0] === base);
    if (found) return found;
  }
  return "en";
}

const chosen = setting("language", "");
let language = Object.hasOwn(LANGUAGES, chosen) ? chosen : preferred();

export const currentLanguage = () => language;

/** @param {string} name */
export function setLanguage(name) {
  language = name;
  setSetting("language", name);
}

/** @param {string} word @param {Record<string, string | number>} [facts] @returns {string} */
export function say(word, facts = {}) {
  const text = LANGUAGES[language][word] ?? /** @type {Record<string, string>} */ (en)[word];
  return text.replace(/\{(\w+)\}/g, (_, name) => String(facts[name] ?? ""));
}

/** Put words into elements that ask for them. @param {ParentNode} [root] @param {Record<string, string>} [keys] what
 * shortcut an action has */
export function fillWords(root = document, keys = {}) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-word]")) {
    element.textContent = say(/** @type {HTMLElement} */ (element).dataset.word ?? "");
  }
  for (const element of root.querySelectorAll("[data-label]")) {
    const { label = "", act = "" } = /** @type {HTMLElement} */ (element).dataset;
    element.setAttribute("aria-label", say(label));
    if (!(element instanceof HTMLButtonElement)) continue;
    element.title = keys[act] ? `${say(label)} (${keys[act]})` : say(label);
    if (keys[act]) element.setAttribute("aria-keyshortcuts", keys[act].replace("Ctrl", "Control"));
  }
}
