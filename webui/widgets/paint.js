// Paints a mask over an image of a dataset: painted areas are not learned. The mask is a canvas of the image's own
// size, red where it hides; as a file it is black there and white elsewhere. All strokes are kept, so that each can be
// undone.
const say = SAY;
const root = element.closest(".sdxl-lora");
const dialog = document.createElement("dialog");
dialog.className = "viewer painter";
dialog.innerHTML = `<p class="how"></p>
  <div class="stage"><div class="sheet"><img alt=""><canvas tabindex="0" role="application"></canvas><i></i></div></div>
  <div class="bar-below"><button type="button" data-brush="over" aria-pressed="true"></button>
  <button type="button" data-brush="off" aria-pressed="false"></button>
  <label><span></span> <input type="range" min="1" max="100" value="30"></label>
  <button type="button" data-back></button><button type="button" data-swap></button>
  <button type="button" data-clear></button>
  <p role="status" aria-live="polite"></p><button type="button" data-save></button>
  <button type="button" data-close></button></div>`;
root.append(dialog);
const part = (selector) => dialog.querySelector(selector);
const [image, canvas, circle, size, sheet] = ["img", "canvas", "i", "input", ".sheet"].map(part);
const said = part("[role=status]");
const pen = canvas.getContext("2d", { willReadFrequently: true });
for (const [selector, text] of Object.entries({
  "[data-brush=over]": say("Paint over"), "[data-brush=off]": say("Erase"), "label span": say("Brush size"),
  "[data-back]": say("Undo stroke"), "[data-swap]": say("Swap"), "[data-clear]": say("Learn everything"),
  "[data-save]": say("Save the mask"), "[data-close]": say("Close"),
})) part(selector).textContent = text;
const name = say("Mask: the arrow keys move the brush, by one pixel with Shift, and the space bar paints");
canvas.setAttribute("aria-label", name);
const COLOUR = "#f0006e";
let [asked, base, strokes, stroke, at, saving] = [null, null, [], null, [0, 0], false];

const asks = async (name, data) => {
  const { root: home, api_prefix } = window.gradio_config;
  const headers = { "Content-Type": "application/json" };
  try {
    const body = JSON.stringify({ data });
    const answer = await fetch(`${home}${api_prefix}/run/sdxl_lora_${name}`, { method: "POST", headers, body });
    return answer.ok ? (await answer.json()).data[0] : null;
  } catch {
    return null; // not reached, or broken off within the answer
  }
};

const loaded = async (path) => {
  const { root: home, api_prefix } = window.gradio_config;
  const file = await asks("image", [path]);
  if (!file) return null;
  const one = new Image();
  one.src = `${home}${api_prefix}/file=${encodeURI(file)}`;
  return one.decode().then(() => one, () => null);
};

const width = () => Math.max(1, (size.value / 100) ** 2 * Math.max(canvas.width, canvas.height)); // in pixels of the image

const draw = (one) => {
  pen.globalCompositeOperation = { over: "source-over", off: "destination-out", swap: "xor", clear: "destination-out" }[one.kind];
  pen.fillStyle = pen.strokeStyle = COLOUR;
  if (one.points) {
    pen.lineWidth = one.width;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    const [x, y] = one.points[0];
    pen.moveTo(x, y);
    pen.lineTo(x + 0.01, y); // a line of no length is not drawn
    one.points.forEach((point) => pen.lineTo(...point));
    pen.stroke();
  } else pen.fillRect(0, 0, canvas.width, canvas.height);
};

const drawAll = () => {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (base) pen.putImageData(base, 0, 0);
  strokes.forEach(draw);
};

const hidden = () => { // share of the image that is not learned
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0;
  for (let place = 3; place < data.length; place += 4) sum += data[place];
  return sum / 255 / (canvas.width * canvas.height);
};

const tell = (words) => {
  const percent = hidden().toLocaleString(undefined, { style: "percent", maximumFractionDigits: 1 });
  said.textContent = words ?? say("{percent} of the image is not learned.", { percent });
  said.classList.toggle("bad", Boolean(words));
  part("[data-back]").disabled = !strokes.length;
};

const did = (one) => {
  strokes.push(one);
  drawAll();
  tell();
};

const fit = () => {
  const stage = part(".stage");
  const scale = Math.min((stage.clientWidth - 8) / canvas.width, (stage.clientHeight - 8) / canvas.height);
  sheet.style.width = `${canvas.width * scale}px`;
  sheet.style.height = `${canvas.height * scale}px`;
  ring();
};

const ring = () => { // the brush where it is
  const scale = sheet.clientWidth / canvas.width;
  circle.style.width = circle.style.height = `${width() * scale}px`;
  circle.style.left = `${at[0] * scale}px`;
  circle.style.top = `${at[1] * scale}px`;
};

const place = (event) => {
  const { left, top, width: wide, height: high } = canvas.getBoundingClientRect();
  return [((event.clientX - left) / wide) * canvas.width, ((event.clientY - top) / high) * canvas.height];
};

const brush = (kind) =>
  dialog.querySelectorAll("[data-brush]").forEach((one) => one.setAttribute("aria-pressed", one.dataset.brush === kind));
const kind = () => part("[aria-pressed=true]").dataset.brush;

canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  event.preventDefault();
  canvas.focus();
  canvas.setPointerCapture(event.pointerId);
  stroke = { kind: kind(), width: width(), points: [place(event)], pointer: event.pointerId };
  strokes.push(stroke);
  draw(stroke);
});
canvas.addEventListener("pointermove", (event) => {
  at = place(event);
  ring();
  if (stroke?.pointer !== event.pointerId) return;
  for (const one of event.getCoalescedEvents?.() ?? [event]) stroke.points.push(place(one));
  draw({ ...stroke, points: stroke.points.slice(-1 - (event.getCoalescedEvents?.().length ?? 1)) });
});
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, (event) => {
    if (stroke?.pointer !== event.pointerId) return;
    stroke = null;
    tell();
  });

canvas.addEventListener("keydown", (event) => {
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const by = ways[event.key];
  if (by) {
    const step = event.shiftKey ? 1 : Math.max(1, width() / 2);
    const ends = [canvas.width, canvas.height];
    at = at.map((value, axis) => Math.min(ends[axis], Math.max(0, value + by[axis] * step)));
    ring();
  } else if (event.key === " ") did({ kind: kind(), width: width(), points: [at] });
  else return;
  event.preventDefault();
});
dialog.addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  part("[data-back]").click();
});
size.addEventListener("input", ring);
new ResizeObserver(() => dialog.open && fit()).observe(part(".stage"));

const png = () => {
  const [sheet_, dark] = [0, 1].map(() => Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height }));
  const [light, ink] = [sheet_.getContext("2d"), dark.getContext("2d")];
  ink.drawImage(canvas, 0, 0);
  ink.globalCompositeOperation = "source-in";
  ink.fillRect(0, 0, canvas.width, canvas.height);
  light.fillStyle = "#fff";
  light.fillRect(0, 0, canvas.width, canvas.height);
  light.drawImage(dark, 0, 0);
  return sheet_.toDataURL("image/png").split(",")[1];
};

const save = async () => {
  if (!strokes.length) return dialog.close();
  if (saving) return;
  saving = part("[data-save]").disabled = true;
  const facts = { dataset: asked.dataset, file: asked.file, seen: asked.seen };
  const text = await asks("mask", [JSON.stringify(facts), png()]);
  saving = part("[data-save]").disabled = false;
  const answer = text ? JSON.parse(text) : { error: say("The page's server is not responding.") };
  if (answer.error) return tell(answer.error);
  strokes = [];
  dialog.close();
};

const close = () => {
  if (!saving && (!strokes.length || confirm(say("Leave without saving the mask?")))) dialog.close();
};

root.addEventListener("click", async ({ target }) => {
  const button = target.closest("button.paint");
  if (!button) return;
  asked = { ...button.dataset };
  [base, strokes, stroke] = [null, [], null];
  canvas.width = canvas.height = 1;
  image.removeAttribute("src");
  said.textContent = "";
  part("[data-save]").disabled = true;
  part(".how").textContent = say("What you paint over is not learned; the rest of the image is. Masks are used only if “{label}” is on.", { label: asked.label });
  dialog.setAttribute("aria-label", `${name}: ${asked.words}`);
  dialog.showModal();
  const wanted = asked;
  const [shown, mask] = await Promise.all([loaded(asked.path), asked.mask ? loaded(asked.mask) : null]);
  if (wanted !== asked || !dialog.open) return;
  if (!shown || (asked.mask && !mask)) return tell(say("This image cannot be shown: it may have been deleted."));
  [canvas.width, canvas.height] = [shown.naturalWidth, shown.naturalHeight];
  image.src = shown.src;
  image.alt = asked.words;
  if (mask) {
    pen.globalCompositeOperation = "source-over";
    pen.drawImage(mask, 0, 0, canvas.width, canvas.height);
    base = pen.getImageData(0, 0, canvas.width, canvas.height);
    const [red, green, blue] = [1, 3, 5].map((from) => parseInt(COLOUR.slice(from, from + 2), 16));
    for (let from = 0; from < base.data.length; from += 4)
      base.data.set([red, green, blue, 255 - base.data[from]], from);
  }
  at = [canvas.width / 2, canvas.height / 2];
  brush("over");
  drawAll();
  fit();
  tell();
  part("[data-save]").disabled = false;
  canvas.focus();
});
dialog.addEventListener("click", ({ target }) => {
  if (target.dataset.brush) brush(target.dataset.brush);
  if (target.dataset.back !== undefined) {
    strokes.pop();
    drawAll();
    tell();
  }
  if (target.dataset.swap !== undefined) did({ kind: "swap" });
  if (target.dataset.clear !== undefined) did({ kind: "clear" });
  if (target.dataset.save !== undefined) save();
  if (target.dataset.close !== undefined) close();
});
dialog.addEventListener("cancel", (event) => {
  event.preventDefault();
  close();
});
window.addEventListener("beforeunload", (event) => dialog.open && strokes.length && event.preventDefault());
