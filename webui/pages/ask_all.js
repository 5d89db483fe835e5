// Asks before all captions of a dataset are replaced; hands on nothing where the answer is no.
(name) => {
  const say = SAY;
  return confirm(say("Make all captions anew, those written by hand too?")) ? name : "";
}
