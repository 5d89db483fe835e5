// Shows the settings of a form that apply beside the others, that a search finds, or that a person has changed. It all
// happens here: no field is written, and the server is not asked.
{
  const say = SAY;
  const language = navigator.language.slice(0, 2);
  const root = element.closest(".sdxl-lora");
  const bar = element.querySelector(".finder");
  const { prefix, settings } = JSON.parse(bar.dataset.form);
  const names = Object.keys(settings);
  const sections = [...new Set(names.map((name) => settings[name].section))];
  const [search, tick, said, sheet] = ["[type=search]", "[type=checkbox]", "[role=status]", "style"].map((part) => bar.querySelector(part));
  search.placeholder = search.ariaLabel = say("Find a setting");
  tick.after(` ${say("Only what I changed")}`);
  let values = Object.fromEntries(names.map((name) => [name, settings[name].default]));
  const begun = { ...values }; // values before a person's changes: defaults, or a preset's
  const opened = new Set(); // folds that were opened here and will be closed again

  const { components = [], i18n_translations: dictionaries } = window.gradio_config ?? {};
  const props = new Map(components.map((one) => [one.props?.elem_id, one.props]));
  const keyOf = (text) => text?.key ?? (/^__i18n__/.test(text) ? JSON.parse(text.slice(8)).key : text ?? "");
  const labelOf = (name) => {
    const key = keyOf(props.get(`${prefix}-${name}`)?.label);
    return dictionaries?.[language]?.[key] ?? (key || name);
  };
  const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
  const textsOf = (name) => {
    const { label, info } = props.get(`${prefix}-${name}`) ?? {};
    const keys = [label, info].map(keyOf);
    const told = Object.values(dictionaries ?? {}).flatMap((one) => keys.map((key) => one[key] ?? ""));
    return plain([name, name.replaceAll("_", " "), ...keys, ...told].join("\n"));
  };
  const searched = Object.fromEntries(names.map((name) => [name, textsOf(name)]));

  const shown = (value) => (Array.isArray(value) ? value.join("\n") : String(value ?? "")).trim();
  const isSame = (one, other) => {
    const both = [shown(one), shown(other)];
    const numbers = both.map((text) => Number(text.replace(",", ".")));
    return both[0] === both[1] || (!both.includes("") && !numbers.some(Number.isNaN) && numbers[0] === numbers[1]);
  };
  const isSet = (value) => !["", "false"].includes(shown(value)) && Number(shown(value)) !== 0;
  const holds = ([name, wanted]) => (wanted.length ? wanted.some((one) => isSame(one, values[name])) : isSet(values[name]));
  const applies = (name) => !settings[name].when.length || settings[name].when.some(holds);
  const rule = (name) =>
    settings[name].when.map(([other, wanted]) => [labelOf(other), wanted.map((one) => one || "—").join(", ")].filter(Boolean).join(": ")).join(" / ");

  const fold = (section) => root.querySelector(`#${prefix}-section-${section} button.label-wrap`);
  const open = (section) => {
    const button = fold(section);
    if (!button || button.classList.contains("open")) return false;
    button.click();
    return true;
  };
  const look = (event) => {
    const asked = plain(search.value).split(/\s+/).filter(Boolean);
    const isFiltered = asked.length > 0 || tick.checked;
    const refused = new Set([...root.querySelectorAll("[data-refused]")].flatMap((one) => one.dataset.refused.split(" ")));
    const isFound = (name) =>
      asked.every((word) => searched[name].includes(word)) && (!tick.checked || !isSame(values[name], begun[name]));
    // A changed value is sent, so its field stays visible unless the person searches for something else.
    const isInPlace = (name) => applies(name) || !isSame(values[name], settings[name].default);
    const held = document.activeElement?.closest(`[id^="${prefix}-"]`)?.id; // the focused field never disappears
    const isNeeded = (id) => id === held || refused.has(id);
    const inSight = names.filter((name) => isNeeded(`${prefix}-${name}`) || (isFiltered ? isFound(name) : isInPlace(name)));
    const hidden = names.filter((name) => !inSight.includes(name)).map((name) => `${prefix}-${name}`);
    const full = new Set(inSight.map((name) => settings[name].section));
    hidden.push(...sections.filter((section) => !full.has(section)).map((section) => `${prefix}-section-${section}`));
    const notes = inSight.filter((name) => !applies(name)).map((name) => {
      const note = say("Only with {rule}", { rule: rule(name) });
      return `.sdxl-lora #${prefix}-${name}::before{content:${JSON.stringify(note)};display:block;color:var(--warm);padding-bottom:.2rem;font-size:.85rem}`;
    });
    const css = `${hidden.map((id) => `.sdxl-lora #${id}`).join(",") || "none"}{display:none!important}${notes.join("")}`;
    if (sheet.textContent !== css) sheet.textContent = css;
    const count = say("{count} of {all} settings", { count: inSight.length, all: names.length });
    const told = isFiltered ? (inSight.length ? count : say("No settings found.")) : "";
    if (said.textContent !== told) said.textContent = told;
    if (event?.type === "refused") for (const name of names) if (refused.has(`${prefix}-${name}`)) open(settings[name].section);
    if (event?.target !== search && event?.target !== tick) return;
    if (isFiltered) full.forEach((section) => open(section) && opened.add(section));
    for (const section of opened)
      if (!isFiltered || !full.has(section)) {
        if (fold(section)?.classList.contains("open")) fold(section).click();
        opened.delete(section);
      }
  };

  // Fields that have not been on screen yet have no element: Gradio itself is asked for all values.
  (window.sdxlLoraFinders ??= {})[prefix] = {
    ask: () => trigger("values"),
    begin: (some, held) => {
      some.forEach((name, at) => (begun[name] = held[at]));
      trigger("values");
    },
    take: (all) => {
      values = Object.fromEntries(names.map((name, at) => [name, all[at]]));
      look();
    },
  };
  let timer;
  const ask = (event) => {
    if (bar.contains(event.target)) return look(event);
    clearTimeout(timer);
    timer = setTimeout(() => trigger("values"), 150);
  };
  for (const kind of ["input", "change", "click"]) root.addEventListener(kind, ask);
  root.addEventListener("refused", look);
  look();
  trigger("values");
}
