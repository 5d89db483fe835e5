// Reports which image of the folder was clicked, and returns the focus to its button, which the answer recreates.
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

// Records the form's values when one of these fields gets the focus; listed.js sends them. An event of Gradio's would
// come too late if the focus only passes through.
const root = element.closest(".sdxl-lora");
const held = (name) => root.querySelector(`#prepare-${name} :is(input, textarea)`)?.value;
root.addEventListener("focusin", ({ target }) => {
  if (target.closest("#prepare-input_dir, #prepare-output_dir"))
    window.sdxlLoraBefore = { folder: held("input_dir"), dataset: held("output_dir") };
});
