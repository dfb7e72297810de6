// @ts-check
// What the browser keeps, so that work survives a reload: the photograph and the document.

/** @typedef {{id: string, photograph: Blob, name: string, opened: import("./backend.js").Opened}} Photograph */
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

/**
 * Keep a photograph and what was drawn on it, in place of the last ones; not twice at a time.
 * @param {Work} work
 * @param {Photograph} photograph
 */
export async function keep(work, photograph) {
  const [id] = await inStore("readwrite", (store) => {
    const request = store.get("id");
    // A page in another window may have kept its own photograph since.
    request.onsuccess = () => request.result === photograph.id && store.put(work, "work");
    return [request];
  });
  if (id === photograph.id) return;
  // As bytes: WebKit keeps no Blob in a private window.
  const bytes = { ...photograph, photograph: await photograph.photograph.arrayBuffer() };
  await inStore("readwrite", (store) => {
    return [store.put(photograph.id, "id"), store.put(bytes, "photograph"), store.put(work, "work")];
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
