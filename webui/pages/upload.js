// Uploads images from this machine into a folder of the project, in pieces; a broken upload resumes where it stopped.
const say = SAY;
const PIECE = PIECE_BYTES;
const MOST_HASHED = 2 ** 28; // bytes; a browser hashes a file as a whole
const AT_ONCE = 3; // files; small ones wait longer than they take to send
const PAUSES = [1, 2, 4, 8, 15]; // seconds before a piece is sent again
const root = element.closest(".sdxl-lora");
const zone = element.querySelector(".drop");
zone.innerHTML = `<p></p><div class="picks"><button type="button" data-pick="files"></button>
  <button type="button" data-pick="folder"></button></div>
  <input type="file" multiple hidden data-of="files"><input type="file" webkitdirectory multiple hidden data-of="folder">
  <div class="sending" hidden><progress value="0" max="1"></progress>
  <button type="button" data-stop></button></div>
  <p class="said" role="status" aria-live="polite"></p><button type="button" data-on hidden></button>
  <details hidden><summary></summary><ul></ul></details>`;
const part = (selector) => zone.querySelector(selector);
part("p").textContent = say("Drop images or a folder here, with captions (.txt) if you have any.");
part("[data-pick=files]").textContent = say("Choose images");
part("[data-pick=folder]").textContent = say("Choose a folder");
part("[data-stop]").textContent = say("Stop the upload");
part("[data-on]").textContent = say("Continue the upload");
part("progress").setAttribute("aria-label", say("Upload progress"));
let sending = null; // the upload in progress, or the one that broke off

const field = (name) => root.querySelector(`#${name} input, #${name} textarea`).value;
const megabytes = (bytes) => (bytes / 1e6).toLocaleString(undefined, { maximumFractionDigits: 1 });

// Returns the server's answer to one request; null if it cannot be reached or has no answer.
const asked = async (facts, piece = "") => {
  const { root: home, api_prefix } = window.gradio_config;
  const body = JSON.stringify({ data: [JSON.stringify(facts), piece] });
  const headers = { "Content-Type": "application/json" };
  try {
    const answer = await fetch(`${home}${api_prefix}/run/sdxl_lora_upload`, { method: "POST", headers, body });
    return answer.ok ? JSON.parse((await answer.json()).data[0]) : null;
  } catch {
    return null; // not reached, broken off within the answer, or a proxy's own page
  }
};

const insisted = async (now, facts, piece) => {
  for (const pause of [...PAUSES, null]) {
    const answer = await asked(facts, piece);
    if (answer || pause === null || now.stopped) return answer;
    part(".said").textContent = say("The page's server is not responding: trying again.");
    for (const end = Date.now() + 1000 * pause; Date.now() < end && !now.stopped; )
      await new Promise((done) => setTimeout(done, 100));
    if (now.stopped) return null;
  }
};

// Returns a file's hash in hex; null if the browser cannot compute it: from other machines it requires https.
const sha256 = async (file) => {
  if (!window.crypto?.subtle || file.size > MOST_HASHED) return null;
  try {
    const bytes = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
    return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  } catch {
    return null;
  }
};

const base64 = (blob) => new Promise((done) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => done(null);
  reader.readAsDataURL(blob);
});

const show = (now) => {
  const facts = { done: now.done, count: now.count, sent: megabytes(now.sent), size: megabytes(now.size) };
  part("progress").value = now.size ? now.sent / now.size : 0;
  part(".said").textContent = say("{done} of {count} files, {sent} of {size} MB", facts);
};

const refused = (now, name, why) => {
  now.refused.push(`${name}: ${why}`);
};

// Sends one file, piece by piece. A failure that stops all files is set in `now.broken`.
const send = async (now, { file, path }, { state, at }) => {
  let next = at;
  now.sent += next;
  let hash = state === "there" ? await sha256(file) : null; // avoids sending an existing file
  while (!now.stopped && !now.broken) {
    const piece = hash ? "" : await base64(file.slice(next, next + PIECE));
    if (piece === null) return refused(now, path, say("it cannot be read"));
    const which = hash ? { sha256: hash } : { at: next };
    const answer = await insisted(now, { ...now.into, file: [path, file.size, file.lastModified], ...which }, piece);
    if (!answer && now.stopped) return;
    if (!answer) now.broken ??= say("The page's server is not responding.");
    else if (answer.error) now.broken ??= answer.error;
    else if (answer.state === "refused") return refused(now, answer.name, answer.why);
    else {
      now.sent += answer.at - next;
      [next, hash] = [answer.at, null]; // the existing file may be gone: then it is sent
      if (answer.state === "done") {
        now.done += 1;
        now.there += state === "there";
      }
      show(now);
      if (answer.state === "done") return;
    }
  }
};

const bring = async (files) => {
  if (!files.length || sending?.active) return;
  const into = { project: field("project"), folder: field("upload-folder") };
  const now = { files, into, active: true, done: 0, there: 0, count: 0, sent: 0, size: 0, refused: [] };
  sending = now;
  zone.querySelectorAll("[data-pick]").forEach((button) => (button.disabled = true));
  part(".sending").hidden = false;
  part("[data-on]").hidden = part("details").hidden = true;
  show(now);
  const begun = await insisted(now, { ...into, begin: files.map(({ file, path }) => [path, file.size, file.lastModified]) });
  if (!begun) now.broken = now.stopped ? null : say("The page's server is not responding.");
  else if (begun.error) now.broken = begun.error;
  else {
    const wanted = [];
    begun.files.forEach((answer, at) =>
      answer.state === "refused" ? refused(now, answer.name, answer.why) : wanted.push([files[at], answer]));
    now.count = wanted.length;
    now.size = wanted.reduce((sum, [{ file }]) => sum + file.size, 0);
    const worker = async () => {
      while (wanted.length && !now.stopped && !now.broken) await send(now, ...wanted.shift());
    };
    await Promise.all([...Array(AT_ONCE)].map(worker));
  }
  now.active = false;
  finish(now);
};

const finish = (now) => {
  zone.querySelectorAll("[data-pick]").forEach((button) => (button.disabled = false));
  part(".sending").hidden = true;
  const facts = { done: now.done, there: now.there, count: now.count };
  const here = now.there
    ? say("{done} files are in the folder, {there} of them from before.", facts)
    : say("{done} files are in the folder.", facts);
  const why = now.broken ?? (now.stopped ? say("Stopped.") : "");
  part(".said").textContent = why ? `${why} ${here}` : here;
  part(".said").classList.toggle("bad", Boolean(why));
  part("[data-on]").hidden = !why;
  part("details").hidden = !now.refused.length;
  part("summary").textContent = say("Files not accepted: {count}", { count: now.refused.length });
  part("ul").replaceChildren(...now.refused.slice(0, 200).map((line) => {
    const item = document.createElement("li");
    item.textContent = line;
    return item;
  }));
  part("details").open = now.refused.length > 0 && now.done === 0;
  if (now.done) trigger("brought");
};

const ofInput = (input) => [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
const entries = (reader) => new Promise((done) => reader.readEntries(done, () => done([])));
const within = async (entry) => {
  const path = entry.fullPath.replace(/^\//, "");
  if (entry.isFile) return new Promise((done) => entry.file((file) => done([{ file, path }]), () => done([])));
  const [reader, found] = [entry.createReader(), []];
  for (let some = await entries(reader); some.length; some = await entries(reader)) found.push(...some); // 100 at a time
  return (await Promise.all(found.map(within))).flat();
};

zone.addEventListener("click", ({ target }) => {
  if (target.dataset.pick) part(`[data-of=${target.dataset.pick}]`).click();
  if (target.dataset.stop !== undefined && sending) sending.stopped = true;
  if (target.dataset.on !== undefined && sending) bring(sending.files);
});
zone.addEventListener("change", ({ target }) => {
  if (!target.dataset.of) return;
  const files = ofInput(target);
  target.value = ""; // allows choosing the same files again
  bring(files);
});
for (const kind of ["dragenter", "dragover"])
  zone.addEventListener(kind, (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
zone.addEventListener("dragleave", (event) => zone.contains(event.relatedTarget) || zone.classList.remove("over"));
zone.addEventListener("drop", async (event) => {
  event.preventDefault();
  zone.classList.remove("over");
  const dropped = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  bring((await Promise.all(dropped.map(within))).flat());
});
window.addEventListener("beforeunload", (event) => sending?.active && event.preventDefault());
