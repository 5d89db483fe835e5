// Asks before all captions of a dataset are replaced; hands on nothing where the answer is no.
(name) => {
  const say = SAY;
  return confirm(say("Redo all captions, even those written by hand?")) ? name : "";
}
