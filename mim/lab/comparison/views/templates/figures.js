// Charts: curves drawn by Vega-Lite from this file's specifications, values read off them, and figures saved as files.
"use strict";

(async () => {
  const source = document.getElementById("figures");
  if (!source) return;
  const section = document.getElementById("curves");
  const OPTIONS = { actions: false, ast: true, defaultStyle: false, hover: false, logLevel: 1, mode: "vega-lite", renderer: "svg", tooltip: false };
  const LISTED = 12; // entries in a reading, at most
  const state = { metric: "", axis: "", log: false, hidden: new Set(), cursor: null };

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  const { names, figures, lines } = JSON.parse(await unpack("figures"));
  const library = document.createElement("script"); // the policy of this file names its hash
  library.textContent = await unpack("library");
  document.head.append(library);

  // Rows and specifications

  const curveRows = ({ metric, axis }) =>
    lines.filter((line) => line.metric === metric && axis in line.at).flatMap((line) =>
      line.values.map((value, index) => ({
        recipe: line.recipe, seed: line.seed, x: line.at[axis][index], value, low: line.lowest?.[index] ?? null, high: line.highest?.[index] ?? null,
      })));

  const chosen = (figure) => figure.metric !== undefined;
  const rowsOf = (figure) => figure.rows ?? curveRows(figure).filter((row) => !state.hidden.has(row.recipe));

  function specOf(figure, look) {
    const spec = structuredClone(figure.looks[look]);
    spec.data = { name: "rows", values: rowsOf(figure) };
    if (chosen(figure) && state.log) for (const { encoding } of spec.layer) if (encoding.y) encoding.y.scale = { type: "log", nice: false };
    return spec;
  }

  // Files

  function keep(name, address) {
    const link = document.createElement("a");
    link.download = name;
    link.href = address;
    link.click();
  }

  const text = (content, type) => URL.createObjectURL(new Blob([content], { type }));
  const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

  function table(figure) {
    const keys = Object.keys(figure.headings);
    const rows = rowsOf(figure).map((row) => keys.map((key) => row[key] ?? ""));
    return [Object.values(figure.headings), ...rows].map((row) => row.map((value) => quoted(String(value))).join(",")).join("\n") + "\n";
  }

  async function save(figure, kind, look) {
    const name = `${figure.name}${look === "wide" ? "-wide" : ""}.${kind}`;
    if (kind === "csv") return keep(`${figure.name}.csv`, text(table(figure), "text/csv"));
    if (kind === "pdf") return keep(name, `data:application/pdf;base64,${figure.pdf[look]}`);
    const { view } = await vegaEmbed(document.createElement("div"), specOf(figure, look), OPTIONS);
    if (kind === "png") return keep(name, await view.toImageURL("png", 300 / 72));
    const inches = (whole, side, points) => `${side}="${(points / 72).toFixed(3)}in"`;
    const svg = (await view.toSVG()).replace(/\b(width)="([\d.]+)"/, inches).replace(/\b(height)="([\d.]+)"/, inches);
    keep(name, text(svg, "image/svg+xml"));
  }

  const figureNow = () => figures.find(({ metric, axis }) => metric === state.metric && axis === state.axis);
  for (const bar of document.querySelectorAll(".save")) {
    for (const button of bar.querySelectorAll("button")) {
      const figure = () => figures.find(({ name }) => name === bar.dataset.figure) ?? figureNow();
      button.addEventListener("click", () => save(figure(), button.dataset.kind, bar.querySelector("select").value));
    }
    bar.hidden = false;
  }
  if (!section) return;

  // The chart of curves

  const chart = document.getElementById("chart");
  const plot = chart.querySelector(".plot-area");
  const reading = chart.querySelector(".reading");
  let view = null;
  let queue = Promise.resolve();
  const draw = () => (queue = queue.then(drawNow));

  async function drawNow() {
    const figure = figureNow();
    view?.finalize();
    view = null;
    const rows = rowsOf(figure);
    if (!rows.length) plot.textContent = state.hidden.size ? "No recipe is chosen." : "Nothing to draw.";
    else {
      const spec = specOf(figure, "page");
      spec.width = chart.clientWidth || 800;
      spec.height = Math.round(Math.min(420, Math.max(270, 0.45 * spec.width)));
      plot.setAttribute("aria-label", figure.text);
      view = (await vegaEmbed(plot, spec, OPTIONS)).view;
    }
    point(state.cursor);
  }

  // Reading values

  const means = () => {
    const known = new Map();
    for (const row of rowsOf(figureNow())) if (row.seed === "mean") known.set(row.recipe, [...(known.get(row.recipe) ?? []), row]);
    return known;
  };
  const stops = () => [...new Set([...means().values()].flat().map(({ x }) => x))].sort((a, b) => a - b);

  // The value of a line at a position, by linear interpolation; null beyond its ends.
  function read(line, x) {
    const after = line.findIndex((row) => row.x >= x);
    if (after < 0 || (after === 0 && line[0].x > x)) return null;
    if (line[after].x === x) return line[after].value;
    const [left, right] = [line[after - 1], line[after]];
    return left.value + ((right.value - left.value) * (x - left.x)) / (right.x - left.x);
  }

  // Shows the values at a position on the axis; hides them for null.
  function point(x) {
    state.cursor = x;
    reading.hidden = x === null || view === null;
    const values = reading.hidden ? [] : [...means()].map(([recipe, line]) => ({ recipe, value: read(line, x) })).filter(({ value }) => value !== null);
    const { factor, unit } = figureNow();
    view?.data("reading", values.map((value) => ({ ...value, x, at: x / factor }))).run();
    if (reading.hidden) return;
    values.sort((a, b) => b.value - a.value);
    const head = document.createElement("b");
    head.textContent = `${state.axis === "images_seen" ? Math.round(x).toLocaleString("en") : Number((x / factor).toPrecision(3))} ${unit}`;
    reading.replaceChildren(head, ...values.slice(0, LISTED).map(entry));
    if (values.length > LISTED) reading.append(`and ${values.length - LISTED} more`);
    const at = view.origin()[0] + view.scale("x")(x / factor);
    const left = at < chart.clientWidth / 2;
    reading.style.left = left ? `${at + 14}px` : "auto";
    reading.style.right = left ? "auto" : `${chart.clientWidth - at + 14}px`;
  }

  function entry({ recipe, value }) {
    const [element, name, number] = ["div", "bdi", "span"].map((tag) => document.createElement(tag));
    name.textContent = recipe;
    number.textContent = Math.abs(value) >= 10 ? value.toFixed(2) : value.toPrecision(4);
    element.append(section.querySelector(`.legend [data-entry="${names.indexOf(recipe)}"] .swatch`).cloneNode(true), name, number);
    return element;
  }

  function follow(event) {
    if (!view) return;
    const x = view.scale("x").invert(event.clientX - plot.getBoundingClientRect().left - view.origin()[0]) * figureNow().factor;
    point(stops().reduce((best, stop) => (Math.abs(stop - x) < Math.abs(best - x) ? stop : best)));
  }

  function walk(event) {
    if (event.key === "Escape") point(null);
    if (!view || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    const positions = stops();
    const here = state.cursor === null ? -1 : positions.findIndex((position) => position >= state.cursor);
    const next = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: positions.length - 1 }[event.key];
    point(positions[Math.min(Math.max(next, 0), positions.length - 1)]);
  }

  // Choices

  const radios = [...section.querySelectorAll("[name=axis]")];
  const log = document.getElementById("log");
  const select = document.getElementById("metric");
  const toggles = [...section.querySelectorAll(".legend [data-entry]")];

  function update() {
    const ours = figures.filter(({ metric }) => metric === state.metric);
    for (const radio of radios) radio.disabled = !ours.some(({ axis }) => axis === radio.value);
    const radio = radios.find(({ checked, disabled }) => checked && !disabled) ?? radios.find(({ disabled }) => !disabled);
    radio.checked = true;
    if (state.axis !== radio.value) state.cursor = null;
    state.axis = radio.value;
    const { positive, absent } = figureNow();
    log.disabled = !positive;
    state.log = log.checked && positive;
    for (const toggle of toggles) toggle.setAttribute("aria-pressed", String(!state.hidden.has(names[toggle.dataset.entry])));
    document.getElementById("unknown").textContent = absent;
    draw();
  }

  for (const { metric, title } of figures) {
    if (metric && ![...select.options].some(({ value }) => value === metric)) select.append(new Option(title, metric));
  }
  state.metric = select.value;
  select.addEventListener("change", () => {
    state.metric = select.value;
    state.cursor = null;
    update();
  });
  for (const control of [...radios, log]) control.addEventListener("change", update);
  for (const toggle of toggles) {
    const name = names[toggle.dataset.entry];
    toggle.addEventListener("click", () => {
      if (!state.hidden.delete(name)) state.hidden.add(name);
      update();
    });
    for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]]) {
      toggle.addEventListener(event, () => view?.signal("lit", on && !state.hidden.has(name) ? name : null).run());
    }
  }
  for (const every of section.querySelectorAll("[data-every]")) {
    every.addEventListener("click", () => {
      state.hidden = new Set(every.dataset.every === "true" ? [] : names);
      update();
    });
  }
  chart.addEventListener("pointermove", follow);
  chart.addEventListener("pointerdown", follow);
  chart.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && point(null));
  plot.addEventListener("keydown", walk);
  plot.addEventListener("blur", () => point(null));

  section.querySelector(".drawn").hidden = false;
  update();
  let before = chart.clientWidth;
  new ResizeObserver(() => {
    if (chart.clientWidth && chart.clientWidth !== before) draw();
    before = chart.clientWidth;
  }).observe(chart);
})();
