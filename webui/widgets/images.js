// Opens an image at full size over the page. The arrow keys and buttons go to its neighbours, Escape closes it.
const say = SAY;
const root = element.closest(".sdxl-lora");
const dialog = document.createElement("dialog");
dialog.className = "viewer";
dialog.innerHTML = `<div class="stage"><img alt=""></div><div class="bar-below"><p aria-live="polite"></p>
  <button type="button" data-go="0,-1">←</button><button type="button" data-go="0,1">→</button>
  <button type="button" data-go="-1,0">↑</button><button type="button" data-go="1,0">↓</button>
  <button type="button" data-size></button><a download></a><button type="button" data-close></button></div>`;
root.append(dialog);
const image = dialog.querySelector("img");
const about = dialog.querySelector("p");
const save = dialog.querySelector("a");
save.textContent = say("Save");
dialog.querySelector("[data-close]").textContent = say("Close");
dialog.querySelector("[data-size]").textContent = say("Full size");
[say("Left"), say("Right"), say("Up"), say("Down")].forEach((name, at) =>
  dialog.querySelectorAll("[data-go]")[at].setAttribute("aria-label", name));
let [rows, row, column] = [[], 0, 0];

// Returns all images around one, by row: the visible ones, and in a run's samples also those of all other steps.
const rowsAround = (button) => {
  const shown = (one) => ({ path: one.dataset.path, words: one.dataset.words });
  const all = (part) => [...part.querySelectorAll("button.image")].filter((one) => one.offsetParent).map(shown);
  const table = button.closest("table");
  if (!table) return [all(button.closest(".cards") ?? button.parentElement)];
  const steps = JSON.parse(table.dataset.steps ?? "[]"); // [words, part of the name]
  const named = (line) =>
    steps.map(([step, part]) => ({ path: line.dataset.path.replace("*", part), words: `${line.dataset.words}, ${step}` }));
  return [...table.rows].map((line) => (line.dataset.path ? named(line) : all(line))).filter((line) => line.length);
};

const show = async () => {
  const wanted = rows[row][column];
  about.textContent = wanted.words;
  const { root, api_prefix } = window.gradio_config;
  const answer = await fetch(`${root}${api_prefix}/run/sdxl_lora_image`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ data: [wanted.path] }),
  }).catch(() => ({ ok: false }));
  const [file] = answer.ok ? (await answer.json()).data : [""];
  if (wanted !== rows[row][column]) return; // another image is shown meanwhile
  image.hidden = save.hidden = !file;
  if (!file) {
    about.textContent = `${wanted.words}: ${say("This image cannot be shown: it may have been deleted.")}`;
    return;
  }
  image.src = save.href = `${root}${api_prefix}/file=${encodeURI(file)}`;
  image.alt = wanted.words;
  save.download = wanted.words.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 90) + wanted.path.slice(wanted.path.lastIndexOf("."));
};

const go = (down, right) => {
  const to = [row + down, Math.min(column, (rows[row + down] ?? []).length - 1) + right];
  if (rows[to[0]]?.[to[1]]) [row, column] = to;
  show();
};

root.addEventListener("click", (event) => {
  const button = event.target.closest("button.image");
  if (!button) return;
  rows = rowsAround(button);
  row = Math.max(0, rows.findIndex((line) => line.some((one) => one.path === button.dataset.path)));
  column = Math.max(0, rows[row].findIndex((one) => one.path === button.dataset.path));
  dialog.classList.remove("whole");
  image.removeAttribute("src");
  dialog.showModal();
  show();
});
dialog.addEventListener("click", (event) => {
  const { go: by, close, size } = event.target.dataset;
  if (by) go(...by.split(",").map(Number));
  if (size !== undefined || event.target === image) dialog.classList.toggle("whole");
  if (close !== undefined || event.target === dialog) dialog.close();
});
dialog.addEventListener("keydown", (event) => {
  const ways = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (!ways[event.key] || dialog.classList.contains("whole")) return;
  event.preventDefault();
  go(...ways[event.key]);
});
