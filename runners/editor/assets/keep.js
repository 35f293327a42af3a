// What this browser keeps of the work, so that a reload or a crash loses nothing.

const NAME = "foley-editor";
const STORES = ["project", "files"]; // files: the clip, and the sounds by the ids of their takes

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => STORES.forEach((name) => request.result.createObjectStore(name));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Run `work` on the stores in one transaction, and return what its request has as result. */
async function run(mode, work) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(STORES, mode);
      const request = work(...STORES.map((name) => transaction.objectStore(name)));
      transaction.oncomplete = () => resolve(request?.result);
      transaction.onerror = () => reject(transaction.error);
      transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

export const keepProject = (project) => run("readwrite", (projects) => projects.put(project, "current"));
export const keepFile = (id, blob) => run("readwrite", (_, files) => files.put(blob, id));
export const loadProject = () => run("readonly", (projects) => projects.get("current"));
export const loadFile = (id) => run("readonly", (_, files) => files.get(id));

/** Remove the files that are not among these ids. */
export async function dropFiles(ids) {
  const kept = new Set(ids);
  const all = await run("readonly", (_, files) => files.getAllKeys());
  const useless = all.filter((id) => !kept.has(id));
  if (useless.length) await run("readwrite", (_, files) => useless.forEach((id) => files.delete(id)));
}

export const forgetAll = () => run("readwrite", (projects, files) => { projects.clear(); files.clear(); });
