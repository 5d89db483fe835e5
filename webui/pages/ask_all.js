// Asks before all captions of a dataset are replaced; passes nothing on if the answer is no.
(name) => {
  const say = SAY;
  return confirm(say("Redo all captions, even those written by hand?")) ? name : "";
}
