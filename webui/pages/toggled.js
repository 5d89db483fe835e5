// The names of the images not to use with the one that was pressed among them, or no longer.
(text) => {
  const [name, names] = [window.sdxlLoraLeaveOut, (text ?? "").split("\n").filter(Boolean)];
  return [(names.includes(name) ? names.filter((one) => one !== name) : [...names, name]).join("\n")];
}
