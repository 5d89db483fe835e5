// Says so where the looks have ended for good: once Gradio has lost the server it does nothing more, and leaves the page
// as it was until it is loaded anew, which it does by itself unless the person wants to keep what is typed.
{
  const texts = LOST; // by language
  const lost = document.createElement("p");
  lost.className = "problems lost";
  lost.hidden = true;
  lost.setAttribute("role", "alert");
  element.closest(".sdxl-lora").prepend(lost);
  setInterval(() => {
    const at = window.sdxlLoraLooks?.at;
    const isLost = at !== undefined && !document.hidden && Date.now() - at > 10_000;
    if (isLost === !lost.hidden) return;
    lost.hidden = !isLost;
    lost.textContent = isLost ? (texts[navigator.language.slice(0, 2)] ?? texts.en) : "";
  }, 1000);
}
