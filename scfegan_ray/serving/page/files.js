// @ts-check
// Files in and out: the button, drop, paste; downloads and the clipboard.

const element = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** Take files however they come. @param {(file: File) => void} onFile */
export function takeFiles(onFile) {
  const input = /** @type {HTMLInputElement} */ (element("file"));
  input.addEventListener("change", () => {
    const [file] = input.files ?? [];
    input.value = "";
    if (file) onFile(file);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (!file) return;
    event.preventDefault();
    onFile(file);
  });
  let inside = 0;
  const show = (/** @type {number} */ more) => {
    inside = Math.max(inside + more, 0);
    element("drop").classList.toggle("shown", inside > 0);
  };
  const hasFile = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files") ?? false;
  addEventListener("dragenter", (event) => hasFile(event) && show(1));
  addEventListener("dragleave", (event) => hasFile(event) && show(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    show(-inside);
    const [file] = event.dataTransfer?.files ?? [];
    if (file) onFile(file);
  });
}

/** Ask whether work that is not saved may be left. @returns {Promise<boolean>} */
export function mayLeave() {
  const dialog = /** @type {HTMLDialogElement} */ (element("leave"));
  dialog.returnValue = "";
  dialog.showModal();
  dialog.onclick = (event) => {
    const button = /** @type {HTMLElement} */ (event.target).closest("button");
    if (button) dialog.close(button.dataset.answer);
  };
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
  });
}

/** @param {File} file */
export const isEdit = (file) => file.type === "application/json" || file.name.toLowerCase().endsWith(".json");

/** @param {Blob} blob @param {string} name */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** A picture that is still to come may be copied, too. @param {Promise<Blob>} picture */
export function copy(picture) {
  return navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
}

/** @param {string} name @param {string} ending @returns {string} */
export function editedName(name, ending) {
  return `${name.replace(/\.[^.]*$/, "") || "photograph"}-edited.${ending}`;
}
