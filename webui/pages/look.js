// Asks the server once a second for changes, and passes only these to Gradio. This is no event of Gradio's: each of
// those makes its browser side look up every widget that ever took part in one, four times over, whatever the answer.
async (session, view, ...chosen) => {
  const looks = (window.sdxlLoraLooks ??= { underway: false, seen: "", later: {}, unsaved: [], news: [] });
  looks.at = Date.now(); // see watch.js
  if (!session || looks.underway || !window.sdxlLoraNews) return;
  // The last news was not taken, for instance because Gradio had lost the server: it would not be sent again.
  if (looks.news.length) return window.sdxlLoraNews();
  looks.underway = true;

  // A caption's box is left alone while someone types in it, and while its text is not saved.
  const shown = () => document.querySelector("#dataset-about [data-which]")?.dataset.which ?? "";
  const box = (number) => document.querySelector(`#caption-${number} textarea`);
  const words = (text) => text.replace(/\s+/g, " ").trim(); // as they are saved
  const isUnsaved = (number) => {
    const text = document.querySelector(`#card-${number} [data-text]`)?.dataset.text;
    return text !== undefined && box(number) !== null && words(box(number).value) !== words(text);
  };
  const isHeld = (number) => isUnsaved(number) || (box(number) !== null && document.activeElement === box(number));
  const numbers = [...Array(CARDS).keys()];
  const cards = DATASET_AT + 2; // after the dataset's facts and the view; four outputs each

  const mark = () => {
    for (const number of numbers) {
      const unsaved = isUnsaved(number) && document.activeElement !== box(number);
      // Saving takes a moment: text is marked only when it is unsaved for the second time.
      if (unsaved && looks.unsaved[number]) box(number).dataset.unsaved = "";
      else if (!unsaved && box(number)?.dataset.unsaved !== undefined) delete box(number).dataset.unsaved;
      looks.unsaved[number] = unsaved;
      // Names the image of a button for screen readers.
      const name = document.querySelector(`#caption-${number} label`);
      for (const button of document.querySelectorAll(`#recaption-${number}, #delete-${number}`))
        if (name) button.ariaLabel = `${button.textContent.trim()}: ${name.textContent.trim()}`;
    }
  };
  if (!looks.asks) {
    looks.asks = (event) => numbers.some(isUnsaved) && event.preventDefault();
    window.addEventListener("beforeunload", looks.asks);
  }

  // The newest dataset goes into the training form only while the field holds what the page itself has put there. The
  // field is created when the tab is first opened.
  const training = document.querySelector("#train-train_data_dir input");
  if (training) looks.dataset ??= training.value;
  const withoutChosen = (data) => {
    const at = DATASET_AT - 1;
    if (!training || data[at]?.value === undefined) return data;
    if (["", looks.dataset].includes(training.value)) looks.dataset = data[at].value;
    else delete data[at].value;
    return data;
  };

  const withoutHeld = (data) => {
    const asked = view ? JSON.parse(view).which ?? "" : "";
    const news = data[DATASET_AT + 1];
    if (news !== undefined) {
      const comes = JSON.parse(news || "{}").which ?? "";
      const isOther = comes !== shown();
      // The page was turned meanwhile, or other rows would come while a box is held: the server is asked again.
      if (asked !== shown() || (isOther && numbers.some(isHeld))) {
        for (let at = DATASET_AT; at < data.length; at++) data[at] = undefined;
      } else {
        looks.later = {};
      }
    }
    looks.of ??= shown();
    if (looks.of !== shown()) [looks.of, looks.later] = [shown(), {}];
    for (const number of numbers) {
      const [from, to] = [cards + 4 * number, cards + 4 * number + 4];
      const part = data.slice(from, to);
      if (part.some((value) => value !== undefined)) looks.later[number] = part;
      if (!looks.later[number]) continue;
      const held = isHeld(number);
      for (let at = from; at < to; at++) data[at] = held ? undefined : looks.later[number][at - from];
      if (!held) delete looks.later[number];
    }
    return data;
  };

  const tell = (data) => {
    looks.news = data;
    window.sdxlLoraNews();
  };

  try {
    const { root, api_prefix } = window.gradio_config;
    const answer = await fetch(`${root}${api_prefix}/run/sdxl_lora_look`, {
      method: "POST",
      signal: AbortSignal.timeout(30_000), // a machine that is gone or asleep never ends the answer
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ data: [looks.seen, view, ...chosen], session_hash: session }),
    });
    if (!answer.ok) throw new Error(answer.statusText);
    const [text, ...lists] = (await answer.json()).data;
    looks.isLost = false;
    mark();
    if (!text && Object.keys(looks.later).length === 0) return;
    const { seen, news } = text ? JSON.parse(text) : { seen: looks.seen, news: {} };
    const data = Array.from({ length: DATASET_AT + DATASET_OUTPUTS }, (_, place) => news[place]);
    const isSkip = (value) => JSON.stringify(value) === '{"__type__":"update"}';
    LISTS.forEach((place, at) => (data[place] = isSkip(lists[at]) ? undefined : lists[at]));
    if (text) looks.seen = JSON.stringify(seen);
    tell(withoutHeld(withoutChosen(data)));
  } catch {
    const told = looks.isLost;
    looks.isLost = true;
    looks.seen = ""; // the answer may be lost, so all is asked for again
    const say = SAY;
    if (!told) tell([`<div class="now idle">${say("The page's server is not responding. Jobs continue.")}</div>`]);
  } finally {
    looks.underway = false;
  }
}
