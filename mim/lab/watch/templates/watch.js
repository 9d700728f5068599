// The page of mim-watch: asks for the state of the runs every few seconds and draws what has changed.
"use strict";

(() => {
  const EVERY_MS = 3000;
  const OPEN = 6; // runs that are unfolded at first, at most
  const HEIGHT = 190; // px of a chart
  const BOX = { top: 8, right: 10, bottom: 22, left: 46 };
  const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const cards = new Map(); // by the id of a run: its element, and what it shows
  const place = document.getElementById("runs");
  let lastLook = "no look yet"; // when the server last answered

  // Texts

  const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
  const exact = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

  function duration(seconds) {
    const index = UNITS.findIndex(([size]) => seconds >= size);
    if (index < 0) return "0 s";
    const [size, unit] = UNITS[index];
    if (index > 1) return `${Math.round(seconds / size)} ${unit}`;
    const [small, smallUnit] = UNITS[index + 1];
    return `${Math.floor(seconds / size)} ${unit} ${Math.floor((seconds % size) / small)} ${smallUnit}`;
  }

  function facts(run) {
    const known = (value, text) => (value === null ? null : text(value));
    return [
      ["Task", run.task || null],
      ["Images seen", short.format(run.images_seen)],
      ["Time so far", known(run.seconds, duration)],
      ["Time left", known(run.eta_s, (value) => `about ${duration(value)}`)],
      ["Images a second", known(run.images_per_s, (value) => exact.format(value))],
      ["Waiting for images", known(run.data_share, (value) => `${(100 * value).toFixed(0)}% of the time`)],
      ["Last written", known(run.quiet_s, (value) => `${duration(value)} ago`)],
    ].filter(([, text]) => text !== null);
  }

  function brief(run) {
    if (run.state === "unreadable") return "";
    const epochs = `epoch ${exact.format(run.epoch)} of ${exact.format(run.epochs)}`;
    return run.eta_s === null ? epochs : `${epochs}, about ${duration(run.eta_s)} left`;
  }

  // Elements

  function element(tag, attributes, parent, text) {
    const made = document.createElement(tag);
    return finish(made, attributes, parent, text);
  }

  function drawn(tag, attributes, parent, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    return finish(made, attributes, parent, text);
  }

  function finish(made, attributes, parent, text) {
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    parent?.append(made);
    return made;
  }

  // Charts

  function ticks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    const first = Math.ceil(low / step - 1e-9) + 0; // not -0
    const values = [];
    for (let index = first; index * step <= high + 1e-9 * step; index += 1) values.push(index * step);
    return values;
  }

  function scales(lines, width) {
    const values = lines.flatMap((line) => line.values);
    const last = Math.max(...lines.flatMap((line) => line.images)) || 1;
    let [low, high] = [Math.min(...values), Math.max(...values)];
    const pad = 0.06 * (high - low) || 0.1 * Math.abs(high) || 0.1;
    [low, high] = [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad];
    const x = (value) => BOX.left + ((width - BOX.left - BOX.right) * value) / last;
    const y = (value) => HEIGHT - BOX.bottom - ((HEIGHT - BOX.top - BOX.bottom) * (value - low)) / (high - low);
    return { last, low, high, x, y };
  }

  function frame(svg, scale, width) {
    for (const value of ticks(scale.low, scale.high, 4)) {
      const y = scale.y(value);
      drawn("line", { class: "grid", x1: BOX.left, x2: width - BOX.right, y1: y, y2: y }, svg);
      drawn("text", { x: BOX.left - 6, y: y + 4, "text-anchor": "end" }, svg, exact.format(value));
    }
    for (const value of ticks(0, scale.last, Math.max(2, Math.floor(width / 110)))) {
      const anchor = scale.x(value) > width - 30 ? "end" : "middle";
      const x = anchor === "end" ? width : scale.x(value);
      drawn("text", { x, y: HEIGHT - 5, "text-anchor": anchor }, svg, short.format(value));
    }
  }

  // Draws into a box that has its final width.
  function chart(content, box) {
    element("h2", {}, box, content.title);
    const width = Math.max(220, box.clientWidth);
    const names = content.lines.map((line) => line.name).join(", ");
    const label = `${content.title} over images seen: ${names}`;
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": label }, box);
    const scale = scales(content.lines, width);
    frame(svg, scale, width);
    const legend = element("ul", { class: "legend" }, box);
    const numbers = content.lines.map((line, index) => {
      const points = line.images.map((images, at) => `${scale.x(images).toFixed(1)},${scale.y(line.values[at]).toFixed(1)}`);
      drawn("polyline", { class: `line s${index % 6}`, points: points.join(" ") }, svg);
      const [x, y] = points.at(-1).split(",");
      drawn("circle", { class: `dot s${index % 6}`, cx: x, cy: y, r: 3 }, svg);
      const item = element("li", { class: `s${index % 6}` }, legend, `${line.name} `);
      return element("b", {}, item, exact.format(line.values.at(-1)));
    });
    const at = element("li", { class: "at" }, legend);
    at.hidden = true;
    read(svg, scale, width, content.lines, numbers, at);
  }

  // Shows the values under the pointer in the legend; without one, the last values.
  function read(svg, scale, width, lines, numbers, at) {
    const cursor = drawn("line", { class: "cursor", y1: BOX.top, y2: HEIGHT - BOX.bottom, visibility: "hidden" }, svg);
    const nearest = (images, wanted) => images.reduce((best, value, index) => (Math.abs(value - wanted) < Math.abs(images[best] - wanted) ? index : best), 0);
    const show = (wanted) => {
      lines.forEach((line, index) => {
        const chosen = wanted === null ? line.values.length - 1 : nearest(line.images, wanted);
        numbers[index].textContent = exact.format(line.values[chosen]);
      });
      cursor.setAttribute("visibility", wanted === null ? "hidden" : "visible");
      at.hidden = wanted === null;
      if (wanted === null) return;
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, scale.x(wanted));
      at.textContent = `at ${short.format(wanted)} images`;
    };
    svg.addEventListener("pointermove", (event) => {
      const bounds = svg.getBoundingClientRect();
      const x = ((event.clientX - bounds.left) * width) / bounds.width;
      const wanted = ((x - BOX.left) / (width - BOX.left - BOX.right)) * scale.last;
      show(Math.min(Math.max(wanted, 0), scale.last));
    });
    svg.addEventListener("pointerleave", () => show(null));
  }

  // Runs

  function card(run, open) {
    const part = document.getElementById("card").content.cloneNode(true).firstElementChild;
    const made = { part, version: null, picture: null, charts: [], run };
    part.open = open;
    part.addEventListener("toggle", () => part.open && guard(() => unfold(made)));
    return made;
  }

  function update(shown, run) {
    const { part } = shown;
    const find = (name) => part.querySelector(name);
    shown.run = run;
    part.className = `run ${run.state}`;
    part.dataset.id = run.id;
    find(".state").textContent = run.state;
    find(".name").textContent = run.name;
    find(".brief").textContent = brief(run);
    find(".note").textContent = run.note;
    find("progress").value = run.epochs ? Math.min(1, run.epoch / run.epochs) : 0;
    const list = facts(run).map(([title, text]) => {
      const pair = element("div", {});
      element("dt", {}, pair, title);
      element("dd", {}, pair, text);
      return pair;
    });
    find(".facts").replaceChildren(...list);
  }

  // Fetches and draws what an unfolded run shows, where it has changed.
  async function unfold(shown) {
    const { part, run } = shown;
    picture(part.querySelector(".picture"), shown);
    if (shown.version === run.version) return;
    shown.charts = await ask(`charts/${run.id}`);
    shown.version = run.version;
    draw(shown);
  }

  function picture(figure, shown) {
    const { id, name, picture: newest } = shown.run;
    figure.hidden = newest === null;
    if (newest === null) return;
    const address = `pictures/${id}/${newest.kind}/${newest.name}?${newest.version}`;
    if (shown.picture === address) return;
    shown.picture = address;
    figure.querySelector("img").src = address;
    figure.querySelector("img").alt = `${newest.kind} of ${name} after step ${newest.step}`;
    figure.querySelector("a").href = address;
    figure.querySelector("figcaption").textContent = `${newest.kind}, after step ${newest.step.toLocaleString("en")}`;
  }

  function draw({ part, charts }) {
    const parent = part.querySelector(".charts");
    parent.replaceChildren();
    const boxes = charts.map(() => element("div", { class: "chart" }, parent));
    charts.forEach((content, index) => chart(content, boxes[index]));
  }

  async function ask(address) {
    const answer = await fetch(address);
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    return answer.json();
  }

  async function look() {
    const { runs, paths } = await ask("runs.json");
    const ids = new Set(runs.map((run) => run.id));
    for (const [id, { part }] of cards) if (!ids.has(id)) part.remove(), cards.delete(id);
    runs.forEach((run, index) => {
      if (!cards.has(run.id)) cards.set(run.id, card(run, index < OPEN));
      const { part } = cards.get(run.id);
      update(cards.get(run.id), run);
      if (place.children[index] !== part) place.insertBefore(part, place.children[index] ?? null);
    });
    const running = runs.filter((run) => run.state === "running").length;
    document.title = `${running} running of ${runs.length} - mim-watch`;
    document.getElementById("summary").textContent = runs.length
      ? `${running} running of ${runs.length} in ${paths.join(", ")}`
      : `No run yet in ${paths.join(", ")}`;
    for (const shown of cards.values()) if (shown.part.open) await unfold(shown);
  }

  // Runs a step; where the server does not answer, the page says so and goes on asking.
  async function guard(step) {
    const problem = document.getElementById("problem");
    try {
      await step();
      problem.hidden = true;
    } catch (error) {
      problem.textContent = `mim-watch does not answer (${error.message}). What is shown is from ${lastLook}.`;
      problem.hidden = false;
    }
  }

  async function again() {
    if (!document.hidden) {
      await guard(async () => {
        await look();
        lastLook = new Date().toLocaleTimeString();
      });
    }
    setTimeout(again, EVERY_MS);
  }

  let width = document.body.clientWidth;
  window.addEventListener("resize", () => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    for (const shown of cards.values()) if (shown.part.open) draw(shown);
  });
  again();
})();
