// Asks before a card's caption is replaced; passes nothing on if the answer is no.
(key) => {
  const say = SAY;
  const isEmpty = key?.startsWith("{") && JSON.parse(key).text === "";
  return isEmpty || confirm(say("Replace this caption? The old one is kept in .preprocess/before_recaption.jsonl.")) ? key : "";
}
