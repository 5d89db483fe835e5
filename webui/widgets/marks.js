// Marks refused fields as invalid for screen readers, and goes to the field of a clicked complaint.
{
  const root = element.closest(".sdxl-lora");
  let before = "";
  const mark = () => {
    const ids = [...root.querySelectorAll("[data-refused]")].flatMap((one) => one.dataset.refused.split(" ").filter(Boolean));
    if (ids.join() === before) return;
    before = ids.join();
    const refused = new Set(ids.map((id) => root.querySelector(`#${CSS.escape(id)} :is(input, textarea)`)));
    root.querySelectorAll("[aria-invalid=true]").forEach((one) => refused.has(one) || one.removeAttribute("aria-invalid"));
    refused.forEach((one) => one?.setAttribute("aria-invalid", "true"));
    root.dispatchEvent(new Event("refused"));
  };
  root.addEventListener("click", (event) => {
    const id = event.target.closest("[data-field]")?.dataset.field;
    const field = id && root.querySelector(`#${CSS.escape(id)} :is(input, textarea)`);
    field?.scrollIntoView({ block: "center" });
    field?.focus({ preventScroll: true });
  });
  new MutationObserver(mark).observe(root, { subtree: true, childList: true, attributeFilter: ["data-refused"] });
}
