// @ts-check
// What the browser keeps, so that work survives a reload: the photograph and the document.

/** @typedef {{photograph: Blob, name: string, opened: import("./backend.js").Opened}} Photograph */
/** @typedef {{edit: string, face: number}} Work */

const DATABASE = "scfegan-editor";
const VERSION = 2;
const STORE = "work";

/** @returns {Promise<IDBDatabase>} */
function connect() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, VERSION);
    request.onupgradeneeded = () => {
      const database = request.result;
      if (database.objectStoreNames.contains(STORE)) database.deleteObjectStore(STORE); // of an older page
      database.createObjectStore(STORE);
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/**
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest[]} act
 * @returns {Promise<any[]>} results of the requests
 */
async function inStore(mode, act) {
  const database = await connect();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const requests = act(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(requests.map((one) => one.result));
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

/** The last that is kept, or was: one waits for the other, so that the newest stays. */
let keeping = Promise.resolve();

/** @param {Work} work @param {Photograph | null} photograph null where it is kept already @returns {Promise<void>} */
export function keep(work, photograph) {
  keeping = keeping.catch(() => undefined).then(() => write(work, photograph));
  return keeping;
}

/** @param {Work} work @param {Photograph | null} photograph */
async function write(work, photograph) {
  // As bytes: WebKit keeps no Blob in a private window.
  const bytes = photograph && { ...photograph, photograph: await photograph.photograph.arrayBuffer() };
  await inStore("readwrite", (store) => {
    return [store.put(work, "work"), ...(bytes ? [store.put(bytes, "photograph")] : [])];
  });
}

/** @returns {Promise<(Work & Photograph) | null>} */
export async function kept() {
  const [work, photograph] = await inStore("readonly", (store) => [store.get("work"), store.get("photograph")]);
  return work && photograph ? { ...work, ...photograph, photograph: new Blob([photograph.photograph]) } : null;
}

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
