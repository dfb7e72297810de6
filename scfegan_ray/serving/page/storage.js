// @ts-check
// What the browser keeps, so that work survives a reload: the photograph and the document.

/** @typedef {{photograph: Blob, name: string, edit: string, opened: import("./backend.js").Opened,
 *   face: number}} Work */

const DATABASE = "scfegan-editor";
const STORE = "work";
const KEY = "current";

/** @returns {Promise<IDBDatabase>} */
function connect() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/**
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} act
 * @returns {Promise<T>}
 */
async function inStore(mode, act) {
  const database = await connect();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = act(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

/** @param {Work} work */
export const keep = (work) => inStore("readwrite", (store) => store.put(work, KEY));

/** @returns {Promise<Work | undefined>} */
export const kept = () => inStore("readonly", (store) => store.get(KEY));

/** @param {string} name @param {string} fallback a small setting */
export function setting(name, fallback) {
  try {
    return localStorage.getItem(name) ?? fallback;
  } catch {
    return fallback; // where storage is forbidden
  }
}

/** @param {string} name @param {string} value */
export function setSetting(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // It lasts until the page is closed.
  }
}
