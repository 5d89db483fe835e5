// Reports that the looks have ended for good: once Gradio has lost the server, it leaves the page as it is until a
// reload. It reloads by itself unless the person wants to keep what is typed.
{
  const say = SAY;
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
    lost.textContent = isLost ? say("This page has lost its server: reload it to see the current state.") : "";
  }, 1000);
}
