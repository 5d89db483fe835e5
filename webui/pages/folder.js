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
