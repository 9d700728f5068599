// The chart of curves: a thick line an entry over the axis that is chosen; behind it its seeds, and the band between them.
"use strict";

(() => {
  const { extent, read, mean, ends, trim, digits, ticks, powers, amount, STEPS } = numbers;
  const source = document.getElementById("curve-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const section = document.getElementById("curves");
  const chart = document.getElementById("chart");
  const TITLES = { images_seen: "Images seen", flops: "FLOPs spent on training", seconds: "Time spent on training and evaluation" };
  const ABSENT = { images_seen: "images seen", flops: "FLOPs", seconds: "seconds" };
  const DIRECT = 8; // entries that are labelled beside their lines, at most
  const ROOMY = 620; // px of width below which they are not
  const LISTED = 12; // entries in a reading, at most
  const PAPER = 800; // px of width in print
  const state = { metric: 0, axis: null, log: false, hidden: new Set(), cursor: null };
  let view = null; // what is drawn: its lines, its scales and how it writes values

  // Values

  const curves = () => data.curves.filter((curve) => curve.metric === state.metric);

  function points(curve) {
    const positions = curve.at[state.axis] ?? [];
    const pairs = positions.map((x, index) => [x, curve.values[index]]);
    return pairs.filter(([x, y]) => x !== null && y !== null && (!state.log || y > 0));
  }

  // The lines in the chart: {entry, singles, line}, in the order of the entries.
  function visible() {
    const singlesOf = new Map();
    for (const curve of curves()) {
      const line = points(curve);
      if (line.length && !state.hidden.has(curve.entry)) singlesOf.set(curve.entry, [...(singlesOf.get(curve.entry) ?? []), line]);
    }
    const lines = [...singlesOf].map(([entry, singles]) => ({ entry, singles, line: mean(singles) }));
    return lines.filter(({ line }) => line.length).sort((a, b) => a.entry - b.entry);
  }

  // Drawing

  const svg = node("svg", { role: "img", tabindex: 0 });
  const reading = document.createElement("div");
  reading.className = "reading";
  reading.setAttribute("role", "status");
  reading.hidden = true;

  function node(tag, attributes, parent, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    parent?.append(element);
    return element;
  }

  const pen = document.createElement("canvas").getContext("2d");
  function wide(text) {
    pen.font = `600 12px ${getComputedStyle(document.body).fontFamily}`;
    return pen.measureText(text).width;
  }

  function shorten(text, most) {
    const letters = [...text.slice(0, 200)];
    if (letters.length === text.length && wide(text) <= most) return text;
    while (letters.length > 1 && wide(`${letters.join("")}…`) > most) letters.pop();
    return `${letters.join("")}…`;
  }

  const series = (entry) => `s${entry % 8} d${Math.floor(entry / 8) % 5}`;
  const path = (line, x, y) => line.map((point, index) => `${index ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("");

  // Scales and ticks for lines in a chart so many px wide.
  function plan(lines, width) {
    const height = Math.round(Math.min(420, Math.max(270, 0.45 * width)));
    const values = lines.flatMap(({ singles }) => singles.flat());
    let [low, high] = extent(values.map(([, y]) => y));
    const last = extent(values.map(([x]) => x))[1] || 1;
    const change = state.log ? Math.log10 : (value) => value;
    const pad = 0.04 * (change(high) - change(low)) || 0.05 * Math.abs(change(high)) || 0.5;
    const floor = low < 0 ? -Infinity : 0; // no axis goes where a metric cannot
    const ceiling = data.metrics[state.metric].endsWith("%") ? Math.max(high, 100) : Infinity;
    const ends_of = state.log ? [low / 10 ** pad, high * 10 ** pad] : [low - pad, high + pad];
    [low, high] = [Math.max(ends_of[0], floor), Math.min(ends_of[1], ceiling)];
    const rows = state.log ? powers(low, high, height / 45) : ticks(low, high, height / 55);
    const digitsAfterPoint = state.log ? 1 + digits(rows[0] ?? low) : digits(rows[1] - rows[0] || 1);
    const labels = rows.map((row) => (state.log ? trim(row) : row.toFixed(digitsAfterPoint)));
    const direct = lines.length <= DIRECT && width >= ROOMY;
    const names = lines.map(({ entry }) => wide(data.entries[entry]));
    const right = direct ? Math.min(0.24 * width, Math.max(...names) + 42) : 14;
    const box = { left: Math.max(...labels.map(wide), 8) + 12, top: 30, right: width - right, bottom: height - 50 };
    const [from, to] = [change(low), change(high)];
    const x = (value) => box.left + ((box.right - box.left) * value) / last;
    const y = (value) => box.bottom - ((box.bottom - box.top) * (change(value) - from)) / (to - from);
    const columns = ticks(0, last, (box.right - box.left) / 95, state.axis === "seconds" ? STEPS : []);
    return { lines, width, height, box, x, y, last, rows, labels, columns, direct, digitsAfterPoint };
  }

  function draw(width = chart.clientWidth || PAPER) {
    const lines = visible();
    svg.replaceChildren();
    svg.classList.remove("lit");
    view = null;
    if (!lines.length) {
      svg.setAttribute("viewBox", `0 0 ${width} 120`);
      const message = state.hidden.size ? "No recipe is chosen." : "Nothing to draw.";
      node("text", { x: width / 2, y: 60, "text-anchor": "middle" }, svg, message);
      return point(null);
    }
    view = plan(lines, width);
    svg.setAttribute("viewBox", `0 0 ${width} ${view.height}`);
    const metric = data.metrics[state.metric];
    svg.setAttribute("aria-label", `${metric} over ${TITLES[state.axis].toLowerCase()}, ${lines.length} recipes`);
    frame(metric);
    for (const { entry, singles } of lines) {
      if (singles.length < 2) continue;
      const [lowest, highest] = ends(singles);
      const outline = path([...highest, ...lowest.reverse()], view.x, view.y);
      node("path", { class: `band ${series(entry)}`, d: `${outline}Z` }, svg);
      for (const line of singles) node("path", { class: `single ${series(entry)}`, d: path(line, view.x, view.y) }, svg);
    }
    for (const { entry, line } of lines) {
      const group = node("g", { class: series(entry), "data-entry": entry }, svg);
      node("path", { class: "line", d: path(line, view.x, view.y) }, group);
      const [x, y] = line.at(-1);
      node("use", { href: `#m${entry % 6}`, x: view.x(x), y: view.y(y) }, group);
    }
    if (view.direct) label();
    point(state.cursor);
  }

  function frame(metric) {
    const { box, width, height, last } = view;
    view.rows.forEach((row, index) => {
      node("line", { class: "grid", x1: box.left, x2: box.right, y1: view.y(row), y2: view.y(row) }, svg);
      node("text", { class: "row", x: box.left - 8, y: view.y(row) + 4, "text-anchor": "end" }, svg, view.labels[index]);
    });
    node("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }, svg);
    for (const column of view.columns) {
      const x = view.x(column);
      node("line", { class: "axis", x1: x, x2: x, y1: box.bottom, y2: box.bottom + 5 }, svg);
      const text = amount(state.axis, column, view.columns.at(-1));
      const middle = Math.min(x, width - wide(text) / 2 - 1);
      node("text", { class: "column", x: middle, y: box.bottom + 20, "text-anchor": "middle" }, svg, text);
    }
    node("text", { class: "title metric-title", x: 0, y: 14 }, svg, shorten(metric, width));
    const centre = (box.left + box.right) / 2;
    node("text", { class: "title axis-title", x: centre, y: height - 8, "text-anchor": "middle" }, svg, TITLES[state.axis]);
  }

  // Names beside the ends of lines, moved apart where ends are close.
  function label() {
    const { box, lines, width } = view;
    const step = 17;
    const ends = lines.map(({ entry, line }) => ({ entry, x: view.x(line.at(-1)[0]), y: view.y(line.at(-1)[1]) }));
    ends.sort((a, b) => a.y - b.y);
    let free = box.top;
    for (const end of ends) free = (end.at = Math.max(end.y, free)) + step;
    let room = box.bottom;
    for (const end of ends.reverse()) room = (end.at = Math.min(end.at, room)) - step;
    for (const { entry, x, y, at } of ends) {
      const group = node("g", { class: series(entry) }, svg);
      if (Math.abs(at - y) > 3 || box.right - x > 12) {
        node("path", { class: "leader", d: `M${x + 7} ${y}L${box.right + 7} ${y}L${box.right + 15} ${at}` }, group);
      }
      node("use", { href: `#m${entry % 6}`, x: box.right + 22, y: at }, group);
      const text = shorten(data.entries[entry], width - box.right - 32);
      node("text", { class: "label", x: box.right + 31, y: at + 4 }, group, text);
    }
  }

  // Dims all but one entry.
  function light(entry, on) {
    const group = svg.querySelector(`[data-entry="${entry}"]`);
    group?.classList.toggle("lit", on);
    svg.classList.toggle("lit", on && group !== null);
  }

  // Reading values

  // Shows the values at a position on the axis; hides them for null.
  function point(x) {
    svg.querySelector(".cursor")?.remove();
    state.cursor = x;
    reading.hidden = x === null || view === null;
    if (reading.hidden) return;
    const { box, lines, width } = view;
    const values = lines.map(({ entry, line }) => ({ entry, value: read(line, x) })).filter(({ value }) => value !== null);
    values.sort((a, b) => b.value - a.value);
    const group = node("g", { class: "cursor" }, svg);
    node("line", { x1: view.x(x), x2: view.x(x), y1: box.top, y2: box.bottom }, group);
    for (const { entry, value } of values) {
      node("circle", { class: series(entry), cx: view.x(x), cy: view.y(value), r: 3.5 }, group);
    }
    const head = document.createElement("b");
    head.textContent = state.axis === "images_seen" ? `${Math.round(x).toLocaleString("en")} images` : amount(state.axis, x);
    reading.replaceChildren(head, ...values.slice(0, LISTED).map(row));
    if (values.length > LISTED) reading.append(`and ${values.length - LISTED} more`);
    const share = (view.x(x) / width) * 100;
    const left = share < 50;
    reading.style.left = left ? `calc(${share}% + 14px)` : "auto";
    reading.style.right = left ? "auto" : `calc(${100 - share}% + 14px)`;
  }

  function row({ entry, value }) {
    const element = document.createElement("div");
    const name = document.createElement("bdi");
    const number = document.createElement("span");
    name.textContent = data.entries[entry];
    number.textContent = Math.abs(value) >= 0.001 || value === 0 ? value.toFixed(view.digitsAfterPoint + 1 + (view.digitsAfterPoint > 0)) : value.toPrecision(3);
    element.append(section.querySelector(`.legend [data-entry="${entry}"] .swatch`).cloneNode(true), name, number);
    return element;
  }

  const stops = () => [...new Set(view.lines.flatMap(({ line }) => line.map(([x]) => x)))].sort((a, b) => a - b);

  function follow(event) {
    if (!view) return;
    const bounds = svg.getBoundingClientRect();
    const { box, width, last } = view;
    const x = (((event.clientX - bounds.left) * (width / bounds.width) - box.left) / (box.right - box.left)) * last;
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
    const ours = curves();
    for (const radio of radios) radio.disabled = !ours.some((curve) => radio.value in curve.at);
    const chosen = radios.find((radio) => radio.checked && !radio.disabled) ?? radios.find((radio) => !radio.disabled);
    if (chosen) chosen.checked = true;
    if (state.axis !== chosen?.value) state.cursor = null;
    state.axis = chosen?.value ?? "images_seen";
    log.disabled = ours.some((curve) => curve.values.some((value) => value !== null && value <= 0));
    state.log = log.checked && !log.disabled;
    for (const toggle of toggles) toggle.setAttribute("aria-pressed", String(!state.hidden.has(Number(toggle.dataset.entry))));
    const there = new Set(ours.filter((curve) => points(curve).length).map((curve) => curve.entry));
    const absent = data.entries.filter((_, entry) => !there.has(entry));
    document.getElementById("unknown").textContent = absent.length ? `No values over ${ABSENT[state.axis]}: ${absent.join(", ")}.` : "";
    draw();
  }

  data.metrics.forEach((name, index) => select.append(new Option(name, index)));
  select.addEventListener("change", () => {
    state.metric = Number(select.value);
    state.cursor = null;
    update();
  });
  for (const control of [...radios, log]) control.addEventListener("change", update);
  for (const toggle of toggles) {
    const entry = Number(toggle.dataset.entry);
    toggle.addEventListener("click", () => {
      if (!state.hidden.delete(entry)) state.hidden.add(entry);
      update();
    });
    for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]]) {
      toggle.addEventListener(event, () => light(entry, on));
    }
  }
  for (const every of section.querySelectorAll("[data-every]")) {
    every.addEventListener("click", () => {
      state.hidden = new Set(every.dataset.every === "true" ? [] : data.entries.keys());
      update();
    });
  }
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && point(null));
  svg.addEventListener("keydown", walk);
  svg.addEventListener("blur", () => point(null));

  section.querySelector(".drawn").hidden = false;
  chart.append(svg, reading);
  update();
  let before = chart.clientWidth;
  new ResizeObserver(() => {
    if (chart.clientWidth && chart.clientWidth !== before) draw();
    before = chart.clientWidth;
  }).observe(chart);
  matchMedia("print").addEventListener("change", (event) => draw(event.matches ? PAPER : undefined));
})();
