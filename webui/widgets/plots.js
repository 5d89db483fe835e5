// Plots the numbers of runs over their steps with uPlot in every `.charts[data-runs]` of the page; asks for new numbers
// whenever the page has changed, and keeps the zoom.
{
  const say = SAY;
  const root = element.closest(".sdxl-lora");
  const COLORS = ["#0f8f80", "#c2571a", "#6d5bd0", "#b8860b", "#2f6fd0", "#b03a7a", "#5a7d1f", "#7a5a45"];
  const BY_TIMESTEP = /^loss_timesteps_(\d+)_(\d+)$/;
  const known = new Map(); // by run: the server's data
  const state = { smoothing: 0.9, log: false };
  let [underway, again] = [false, null];

  // The numbers in each plot of a run, and whether they are smoothed. Several runs show fewer.
  const named = (run, pattern) =>
    Object.keys(run.rows).filter((name) => pattern.test(name)).sort((a, b) => a.match(pattern)[1] - b.match(pattern)[1]);
  const PLOTS = [
    { title: say("Loss"), of: () => ["loss"], isSmooth: true, hasRaw: true, dots: "validation_loss" },
    { title: say("Loss by timesteps"), of: (run) => named(run, BY_TIMESTEP), isSmooth: true, isOfOne: true },
    { title: say("Gradient norm"), of: () => ["grad_norm"], isSmooth: true, hasRaw: true },
    { title: say("Learning rate"), of: () => ["learning_rate"] },
  ];

  // A moving average with an unbiased beginning, as TensorBoard draws it.
  const smoothed = (values) => {
    let [average, weight] = [0, 0];
    return values.map((value) => {
      if (value === null || value === undefined) return null;
      average = state.smoothing * average + (1 - state.smoothing) * value;
      weight = state.smoothing * weight + (1 - state.smoothing);
      return average / weight;
    });
  };
  const short = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    return value && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : value.toLocaleString(undefined, { maximumSignificantDigits: 4 });
  };

  const linesOf = (plot, names) => {
    const lines = [];
    const isOne = names.length === 1;
    if (plot.isOfOne && !isOne) return lines;
    names.forEach((name, at) => {
      const run = known.get(name);
      if (!run) return;
      plot.of(run).forEach((column, place) => {
        const values = run.rows[column];
        if (!values?.some((value) => value !== null)) return;
        const range = column.match(BY_TIMESTEP);
        const color = COLORS[(isOne ? place : at) % COLORS.length];
        const label = range ? `${range[1]}–${range[2]}` : isOne ? plot.isSmooth ? say("smoothed") : plot.title : name;
        const line = { label, color, steps: run.rows.step };
        if (isOne && plot.hasRaw) lines.push({ ...line, label: say("each step"), color: `${color}55`, values, width: 1 });
        lines.push({ ...line, values: plot.isSmooth ? smoothed(values) : values, width: 2 });
      });
      const held = plot.dots && run.validations[plot.dots];
      if (held?.length) {
        const label = isOne ? say("held out") : `${name}, ${say("held out")}`;
        lines.push({ label, color: COLORS[(isOne ? 1 : at) % COLORS.length], steps: run.validations.step, values: held, dots: true });
      }
    });
    return lines;
  };

  // All lines over one axis of steps, in uPlot's format.
  const table = (lines) => {
    const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
    const place = new Map(steps.map((step, at) => [step, at]));
    const columns = lines.map((line) => {
      const column = new Array(steps.length).fill(undefined);
      line.steps.forEach((step, at) => (column[place.get(step)] = state.log && !(line.values[at] > 0) ? null : line.values[at]));
      return column;
    });
    return [steps, ...columns];
  };

  // The range of the visible values without the outermost hundredth, with some margin.
  const range = (chart) => {
    const [from, to] = [chart.scales.x.min ?? -Infinity, chart.scales.x.max ?? Infinity];
    const inSight = chart.data[0].map((step) => step >= from && step <= to);
    const values = chart.data.slice(1).flatMap((column, at) =>
      chart.series[at + 1].show ? column.filter((value, row) => inSight[row] && Number.isFinite(value)) : []);
    if (!values.length) return state.log ? [0.1, 1] : [0, 1];
    values.sort((a, b) => a - b);
    const cut = Math.floor(values.length / 100);
    const [low, high] = [values[cut], values[values.length - 1 - cut]];
    if (state.log) return [low / 1.2, high * 1.2];
    const room = (high - low) * 0.08 || Math.abs(high) * 0.5 || 1;
    return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
  };

  const options = (lines, width) => {
    const style = getComputedStyle(root);
    const [ink, grid] = [style.getPropertyValue("--body-text-color-subdued"), style.getPropertyValue("--border-color-primary")];
    const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const live = (chart, value, at, row) => short(row === null ? chart.data[at].findLast((one) => one !== null && one !== undefined) : value);
    return {
      width, height: 210, padding: [8, 20, 0, 0],
      scales: { x: { time: false }, y: { distr: state.log ? 3 : 1, range } },
      axes: [{ ...axis, size: 26, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick.toLocaleString() : "")) },
        { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) }],
      cursor: { drag: { x: true, y: false, dist: 5 }, sync: { key: "sdxl-lora" }, points: { size: 6 } },
      series: [{ label: say("step"), value: (chart, step, _, row) => short(row === null ? chart.data[0].at(-1) : step) },
        ...lines.map((line) => ({ label: line.label, stroke: line.color, width: line.dots ? 0 : line.width, spanGaps: true, value: live,
          points: line.dots ? { show: true, size: 7, fill: line.color } : { show: lines.every((one) => one.steps.length === 1) } }))],
      hooks: { setSelect: [(chart) => (chart.isZoomed = chart.select.width > 0)] },
    };
  };

  const drawPlot = (figure, plot, names) => {
    const lines = linesOf(plot, names);
    figure.hidden = !lines.length;
    figure.dataset.points = lines.reduce((most, line) => Math.max(most, line.steps.length), 0);
    if (!lines.length || !figure.clientWidth) return;
    const [data, shape] = [table(lines), JSON.stringify([lines.map((line) => [line.label, line.color]), state.log])];
    if (figure.chart && figure.shape === shape) {
      figure.chart.setData(data, !figure.chart.isZoomed);
      if (figure.chart.isZoomed) figure.chart.redraw();
      return;
    }
    figure.chart?.destroy();
    figure.shape = shape;
    figure.chart = new uPlot(options(lines, figure.clientWidth - 24), data, figure);
    figure.chart.over.addEventListener("dblclick", () => (figure.chart.isZoomed = false));
  };

  const draw = (charts) => {
    const names = JSON.parse(charts.dataset.runs);
    PLOTS.forEach((plot, at) => drawPlot(charts.querySelectorAll("figure")[at], plot, names));
    const isEmpty = names.every((name) => !known.get(name)?.rows.step?.length);
    charts.querySelector(".empty").hidden = !isEmpty;
    charts.querySelector(".choices").hidden = isEmpty;
  };

  const make = (charts) => {
    charts.innerHTML = `<div class="choices"><label>${say("Smoothing")} <input type="range" min="0" max="0.99" step="0.01"></label>
      <label><input type="checkbox"> ${say("Logarithmic scale")}</label><span class="hint">${say("Drag over a plot to zoom in, double-click to zoom out.")}</span></div>
      <p class="empty">${say("Nothing to plot yet: no step is done.")}</p><div class="plots"></div>`;
    const redraw = () => root.querySelectorAll(".charts[data-runs]").forEach((one) => one.firstChild && draw(one));
    const [smoothing, log] = charts.querySelectorAll("input");
    [smoothing.value, log.checked] = [state.smoothing, state.log];
    smoothing.addEventListener("input", () => ((state.smoothing = Number(smoothing.value)), redraw()));
    log.addEventListener("change", () => ((state.log = log.checked), redraw()));
    PLOTS.forEach((plot) => {
      const figure = document.createElement("figure");
      figure.className = "chart";
      figure.innerHTML = `<figcaption>${plot.title}</figcaption>`;
      charts.querySelector(".plots").append(figure);
    });
    new ResizeObserver(() => {
      charts.querySelectorAll("figure").forEach((figure) =>
        figure.chart && figure.clientWidth && figure.chart.setSize({ width: figure.clientWidth - 24, height: 210 }));
      if (charts.isConnected) draw(charts);
    }).observe(charts);
  };

  const add = (name, told) => {
    const before = told.is_new ? undefined : known.get(name);
    const joined = (old, more) => {
      const [count, rows] = [old?.step?.length ?? 0, { ...old }];
      for (const column of new Set([...Object.keys(rows), ...Object.keys(more)]))
        rows[column] = [...(rows[column] ?? new Array(count).fill(null)), ...(more[column] ?? new Array(more.step.length).fill(null))];
      return rows;
    };
    known.set(name, { ...told, rows: joined(before?.rows, told.rows), validations: joined(before?.validations, told.validations) });
  };

  const look = async () => {
    const all = [...root.querySelectorAll(".charts[data-runs]")];
    for (const charts of all) if (!charts.firstChild) make(charts);
    const version = JSON.stringify([all.map((one) => one.dataset.runs), root.querySelector("[data-version]")?.dataset.version]);
    if (underway || again || version === look.version) return;
    underway = true;
    try {
      const names = [...new Set(all.flatMap((one) => JSON.parse(one.dataset.runs)))];
      const asked = names.map((name) => {
        const { token, step, validation } = known.get(name) ?? {};
        return [name, { token, step, validation }];
      });
      const { root: address, api_prefix } = window.gradio_config;
      const answer = await fetch(`${address}${api_prefix}/run/sdxl_lora_curves`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ data: [JSON.stringify(Object.fromEntries(asked))] }),
      });
      if (!answer.ok) throw new Error(answer.statusText);
      Object.entries(JSON.parse((await answer.json()).data[0])).forEach(([name, told]) => add(name, told));
      all.filter((charts) => charts.isConnected).forEach(draw);
      look.version = version;
    } catch {
      again = setTimeout(() => ((again = null), look()), 2000); // the server does not answer: one retry
      return;
    } finally {
      underway = false;
    }
    look(); // for changes in the meantime
  };

  // Gradio writes new versions into the existing element.
  new MutationObserver(look).observe(root, { subtree: true, childList: true, attributeFilter: ["data-runs", "data-version"] });
  look();
}
