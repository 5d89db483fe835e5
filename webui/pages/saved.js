// Shows that a caption is saved, unless the card has become another row's; what was typed since then stays.
(saved, key, text) => {
  const now = JSON.parse(saved || "{}");
  if (now.of !== key) return [undefined, undefined, undefined];
  return [now.html, now.key, text === now.sent ? now.text : undefined];
}
