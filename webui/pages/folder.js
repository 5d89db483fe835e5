// Says which press on an image of the folder it was, and gives the focus back to its button, which the answer makes anew.
element.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-leave-out], [data-more]");
  if (!button) return;
  window.sdxlLoraLeaveOut = button.dataset.leaveOut;
  trigger(button.dataset.more === undefined ? "toggled" : "more");
});
new MutationObserver(() => {
  const name = window.sdxlLoraLeaveOut;
  const button = name === undefined ? null : element.querySelector(`[data-leave-out="${CSS.escape(name)}"]`);
  if (button && document.activeElement === document.body) button.focus({ preventScroll: true });
}).observe(element, { childList: true, subtree: true });

// What stands in the form as one of these fields is gone into: listed.js brings it along. An event of Gradio's comes too
// late for who only passes through.
const root = element.closest(".sdxl-lora");
const held = (name) => root.querySelector(`#prepare-${name} :is(input, textarea)`)?.value;
root.addEventListener("focusin", ({ target }) => {
  if (target.closest("#prepare-input_dir, #prepare-output_dir"))
    window.sdxlLoraBefore = { folder: held("input_dir"), dataset: held("output_dir") };
});
