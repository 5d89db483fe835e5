// Adds the clicked image to the names of images not to use, or removes it.
(text) => {
  const [name, names] = [window.sdxlLoraLeaveOut, (text ?? "").split("\n").filter(Boolean)];
  return [(names.includes(name) ? names.filter((one) => one !== name) : [...names, name]).join("\n")];
}
