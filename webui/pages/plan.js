// Removes the plan as soon as something in the form changes.
for (const kind of ["input", "mousedown"])
  element.closest(".sdxl-lora").addEventListener(kind, (event) => {
    const isChoice = event.target.closest("[role=option]") || kind === "input";
    if (isChoice && event.target.closest("[id^=train-]")) element.querySelector(".card")?.remove();
  });
