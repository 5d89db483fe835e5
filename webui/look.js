// What the page does once a second: asks the server what has changed, and gives Gradio that and nothing else.
// Not an event of Gradio's: each of those makes its browser side look up every widget that ever took part in one, four
// times over, whatever it answers.
async (session, ...chosen) => {
  const looks = (window.sdxlLoraLooks ??= { underway: false, anew: "" });
  if (!session || looks.underway) return [];
  looks.underway = true;
  try {
    const { root, api_prefix } = window.gradio_config;
    const answer = await fetch(`${root}${api_prefix}/run/sdxl_lora_look`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ data: [null, null, ...chosen, looks.anew], session_hash: session }),
    });
    if (!answer.ok) throw new Error(answer.statusText);
    const { data } = await answer.json();
    looks.anew = "";
    // What has not changed, as gr.skip() comes for a component, for an HTML, and for what only the server keeps.
    const skips = ['{"__type__":"update"}', '{"props":{"__type__":"update"},"__type__":"update"}', "null"];
    return data.map((value) => (skips.includes(JSON.stringify(value)) ? undefined : value));
  } catch {
    const told = looks.anew;
    looks.anew = "anew"; // what was sent may be lost, and is asked for again
    const french = navigator.language.startsWith("fr");
    return told ? [] : [`<div class="now idle">${french ? FRENCH : ENGLISH}</div>`];
  } finally {
    looks.underway = false;
  }
}
