// Keys and clicks within a dataset: Ctrl+Enter and Ctrl+Down go to the next caption, Ctrl+Up to the previous one, also
// across pages; a clicked tag becomes the search; a turned page is shown from its top.
const root = element.closest(".sdxl-lora");
const box = (number) => root.querySelector(`#caption-${number} textarea`);
const isSeen = (part) => part && part.offsetParent !== null;
const button = (name) => root.querySelector(`#dataset-${name}`);
const which = () => root.querySelector("#dataset-about [data-which]")?.dataset.which;

const turn = (name, to) => {
  const next = button(name);
  if (!isSeen(next) || next.disabled) return;
  const before = which();
  next.click();
  const started = Date.now();
  const wait = setInterval(() => {
    if (which() === before && Date.now() - started < 10000) return;
    clearInterval(wait);
    if (which() === before) return;
    const boxes = [...Array(CARDS).keys()].map(box).filter(isSeen);
    boxes.at(to)?.focus();
  }, 50);
};

root.addEventListener("keydown", (event) => {
  const number = Number(event.target.closest?.("[id^=caption-]")?.id.slice("caption-".length) ?? NaN);
  const by = { Enter: 1, ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (Number.isNaN(number) || !by || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  event.stopPropagation();
  const next = box(number + by);
  if (isSeen(next)) next.focus();
  else turn(by > 0 ? "forth" : "back", by > 0 ? 0 : -1);
}, true);

root.addEventListener("click", (event) => {
  if (event.target.closest("#dataset-back, #dataset-forth")) root.querySelector("#dataset-about")?.scrollIntoView();
  const tag = event.target.closest("button.tag")?.dataset.tag;
  if (tag === undefined) return;
  for (const [field, text] of [["bulk-what", tag], ["dataset-search", `[${tag}]`]]) {
    const input = root.querySelector(`#${field} input, #${field} textarea`);
    input.value = text;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    input.dispatchEvent(new Event("blur"));
  }
});
