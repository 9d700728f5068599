"""The comparison page, as text and in a real headless Chromium: a machine without one skips these, CI never."""

import gzip
import json
import math
import re
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser

import pytest
from comparisons import NAMES, comparison, picture

from mim.lab.comparison.result import Comparison, Entry
from mim.lab.comparison.views.numbers import styles_of
from mim.lab.comparison.views.page import render
from mim.ops.intervals import Estimate

HOSTILE = (
    "<script>window.broken = 1</script>",
    "\"quoted\" & 'single' </script><img src=x onerror=window.broken=2>",
    "{{ 7*7 }} {% raw %} ${window.broken = 3} `x`",
    "a" * 300,
    "日本語 \u2028 \u202e rtl </style> <!-- ",
    "\udcff\x00",
)
SECTIONS = {  # the part of a comparison, and the section that shows it
    "warnings": "warnings",
    "curves": "curves",
    "budgets": "budgets",
    "tests": "tests",
    "settings": "settings",
    "sheets": "reconstructions",
    "notes": "notes",
    "left_out": "left-out",
}
AXES = {"images_seen": "Images seen", "flops": "FLOPs spent", "seconds": "Time spent"}
VIEWS = [
    *((1280, "light"), (360, "dark")),
    *(
        pytest.param(*view, marks=pytest.mark.slow)
        for view in [(1280, "dark"), (390, "light"), (390, "dark"), (360, "light")]
    ),
]


LOW_CONTRAST = """() => {  // WCAG's contrast: 4.5 of text, 3 of lines
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (value) => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const contrast = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + .05) / (low + .05);
  };
  const behind = (node) => {
    const ground = numbers(getComputedStyle(node).backgroundColor);
    return ground.length === 3 || ground[3] === 1 ? ground : behind(node.parentElement);
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    if (!node.checkVisibility() || node.closest(".unseen")) continue;
    const style = getComputedStyle(node);
    const ink = node.ownerSVGElement ? style.fill : style.color;
    const words = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (words && contrast(numbers(ink), behind(node)) < 4.5) found.push(`${node.tagName} ${node.textContent} ${ink}`);
    const line = node.matches("#chart .means_marks path, .interval_marks line") ? numbers(style.stroke) : null;
    if (line && contrast(line, behind(node)) < 3) found.push(`line ${line}`);
  }
  return found;
}"""
SMALL = """() => [...document.querySelectorAll("button, select, summary, .controls label")]
  .filter((node) => node.checkVisibility() && node.getBoundingClientRect().height < 40)
  .map((node) => node.textContent)"""


class Reader(HTMLParser):
    """The elements of a page, each as tag and attributes, and what stands in its style and script elements."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.inside = [], {}, None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = len(self.elements) - 1 if tag in ("script", "style", "bdi", "title") else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside is not None:
            self.text[self.inside] = self.text.get(self.inside, "") + data

    def texts(self, tag):
        return [self.text.get(index, "") for index, (name, _) in enumerate(self.elements) if name == tag]


def unpacked(html, name):
    packed = re.search(rf'<script type="text/plain" id="{name}">(.*?)</script>', html)[1]
    return gzip.decompress(b64decode(packed)).decode()


def lines_in(html):
    """The lines of seeds that the page embeds."""
    return [line for line in json.loads(unpacked(html, "figures"))["lines"] if line["seed"] != "mean"]


# As text


def test_render_is_deterministic():
    assert render(comparison()) == render(comparison())


def test_render_shows_names_as_text_alone():
    html = render(
        replace(comparison(HOSTILE), title=HOSTILE[1], warnings=HOSTILE, left_out=((HOSTILE[0], HOSTILE[1]),))
    )
    page, plain = Reader(html), Reader(render(comparison(tuple("abcdef"))))
    assert [tag for tag, _ in page.elements if tag in ("script", "style")] == ["style", *["script"] * 3]
    tags = {tag for tag, _ in plain.elements}
    assert {tag for tag, _ in page.elements} == tags
    assert {name for _, attributes in page.elements for name in attributes} == {
        name for _, attributes in plain.elements for name in attributes
    }
    for name in HOSTILE[:5]:
        assert name in page.texts("bdi")
        assert name not in html or "<" not in name
    assert page.texts("title") == [HOSTILE[1]]
    html.encode("utf-8")


def test_render_embeds_the_curves_to_seven_digits():
    result = comparison(NAMES)
    lines = lines_in(render(result))
    assert len(lines) == len(result.curves)
    curves = {(curve.entry, str(curve.seed), curve.metric): curve for curve in result.curves}
    for line in lines:
        curve = curves[line["recipe"], line["seed"], line["metric"]]
        assert line["values"] == pytest.approx(curve.values, rel=1e-6)
        assert {axis: pytest.approx(values, rel=1e-6) for axis, values in curve.at.items()} == line["at"]


def test_render_leaves_values_that_are_not_finite_out_of_curves():
    result = comparison()
    curve = replace(result.curves[0], values=(math.nan, math.inf, *result.curves[0].values[2:]))
    (line,) = lines_in(render(replace(result, curves=(curve,))))
    assert line["values"] == pytest.approx(curve.values[2:])
    assert line["at"]["images_seen"] == pytest.approx(curve.at["images_seen"][2:])


def test_render_refers_to_nothing_outside():
    html = render(comparison())
    page = Reader(html)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert tag not in ("link", "iframe", "object") or attributes.get("rel") == "icon"
        assert not {"style", *(name for name in attributes if name.startswith("on"))} & attributes.keys()
    assert not re.search(r"url\(|@import|//[a-z]+\.", page.texts("style")[0])
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|fetch\(|import\(|eval\(|innerHTML", html)


def test_render_names_the_hashes_of_style_and_scripts_in_its_policy():
    html = render(comparison())
    page = Reader(html)
    policy = next(attributes["content"] for tag, attributes in page.elements if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    texts = (page.texts("style")[0], page.texts("script")[-1], unpacked(html, "library"))
    style, script, library = (f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in texts)
    assert f"style-src {style};" in policy
    assert f"script-src {script} {library};" in policy


def test_render_holds_the_bytes_of_pictures():
    images = [attributes for tag, attributes in Reader(render(comparison())).elements if tag == "img"]
    kind, _, content = images[0]["src"].partition(",")
    assert (kind, b64decode(content)) == ("data:image/png;base64", picture())
    assert (images[0]["width"], images[0]["height"], images[0]["alt"]) == ("640", "200", "Digits, masked and predicted")


@pytest.mark.parametrize("part", SECTIONS)
def test_render_leaves_a_section_without_content_out(part):
    def ids(html):
        return {attributes.get("id") for tag, attributes in Reader(html).elements if tag == "section"}

    also = {"evidence": ()} if part == "warnings" else {}
    full, less = ids(render(comparison())), ids(render(replace(comparison(), **{part: (), **also})))
    assert full - less == {SECTIONS[part]}


def test_render_of_one_run_compares_nothing():
    entry = Entry("MAE", "", (0,), ("runs/mae",), {"knn/top1": Estimate(96.4, None, 1)})
    html = render(Comparison("MAE", "2026-03-02T14:05:31", (entry,), comparison().columns))
    sections = [attributes["id"] for tag, attributes in Reader(html).elements if tag == "section"]
    assert sections == ["results"]
    text = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.S)
    assert "96.4" in text
    for word in ("±", "Bold", "interval", "<strong>", 'class="plot"'):
        assert word not in text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda result: {"curves": (replace(result.curves[0], entry="BEiT"),)}, "'BEiT'"),
        (lambda result: {"tests": (replace(result.tests[0], column="probe"),)}, "'probe'"),
        (lambda result: {"sheets": (replace(result.sheets[0], png=b"GIF89a"),)}, "'The same images' is not a PNG"),
    ],
)
def test_render_refuses_what_has_no_place(wrong, message):
    result = comparison()
    with pytest.raises(ValueError, match=message):
        render(replace(result, **wrong(result)))


# In a browser


@pytest.fixture
def visit(chromium, tmp_path):
    """Opens a page from disk, offline. What the browser complains of or asks for meanwhile fails the test, unless it is
    `expected`; it is listed in `page.problems`.
    """
    contexts, unexpected = [], []

    def look(result, width=1280, scheme="light", change=lambda html: html, expected=False, **context):
        file = tmp_path / f"comparison-{len(contexts)}.html"
        file.write_text(change(render(result)), encoding="utf-8")
        size = {"width": width, "height": 900}
        contexts.append(chromium.new_context(viewport=size, color_scheme=scheme, offline=True, **context))
        page = contexts[-1].new_page()
        page.problems = [] if expected else unexpected
        page.on("console", lambda message: page.problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("dialog", lambda dialog: (page.problems.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url == file.as_uri() or page.problems.append(request.url))
        page.goto(file.as_uri())
        if result.curves and context.get("java_script_enabled", True):
            page.locator("#chart svg").first.wait_for()
        return page

    yield look
    for browser_context in contexts:
        browser_context.close()
    assert unexpected == []


def column(page, table, title):
    """The texts of a column, from the top."""
    titles = page.locator(f"{table} thead tr:last-child > *").all_inner_texts()
    index = next(index for index, text in enumerate(titles) if text.startswith(title))
    return [text.strip() for text in page.locator(f"{table} tbody tr > :nth-child({index + 1})").all_inner_texts()]


def head(page, table, title):
    return page.locator(f"{table} thead tr:last-child > *").filter(has_text=title)


MEANS, SEEDS, BANDS = (f"#chart .{name}_marks path" for name in ("means", "seeds", "band"))
ROWS = "#chart .role-axis-label text[text-anchor=end]"
COLUMNS = "#chart .role-axis-label text:not([text-anchor=end])"


def paths(page):
    return [path.get_attribute("d") for path in page.locator(MEANS).all()]


def settle(page):
    """Waits until the chart is drawn; drawing starts at once, and ends in a later task."""
    page.wait_for_timeout(400)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_page_loads_without_a_complaint_and_fits(visit, width, scheme):
    page = visit(comparison(), width, scheme)
    assert page.locator(MEANS).count() == len(NAMES)
    assert page.locator(SEEDS).count() == 3 * len(NAMES)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_contrast(visit, scheme):
    page = visit(comparison(tuple(f"recipe {number}" for number in range(8))), 1280, scheme)
    page.locator("label").filter(has_text="FLOPs").click()
    settle(page)
    assert page.evaluate(LOW_CONTRAST) == []


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 390])
def test_page_switches_the_axis(visit, width):
    page = visit(comparison(), width)
    drawn = {}
    for axis, title in AXES.items():
        page.locator(f"label:has(input[value={axis}])").click()
        page.locator("#chart .role-axis-title text", has_text=title).wait_for()
        drawn[axis] = tuple(paths(page))
    assert len(set(drawn.values())) == 3
    page.locator("#chart .role-axis-title text", has_text=", s").wait_for()


@pytest.mark.slow
def test_page_switches_the_axis_by_keyboard(visit):
    page = visit(comparison())
    page.locator("input[name=axis]").first.focus()
    page.keyboard.press("ArrowRight")
    page.locator("#chart .role-axis-title text", has_text=AXES["flops"]).wait_for()


@pytest.mark.slow
def test_page_reads_means_off_the_curves(visit):
    result = comparison()
    page = visit(result)
    page.locator("#metric").select_option(label="Held-out loss")
    settle(page)
    page.locator(".plot-area").focus()
    for key, index in (("End", -1), ("Home", 0), ("ArrowRight", 1)):
        page.keyboard.press(key)
        means = {
            name: sum(values) / len(values)
            for name in NAMES
            if (
                values := [
                    curve.values[index] for curve in result.curves if (curve.entry, curve.metric) == (name, "val/loss")
                ]
            )
        }
        rows = [row.inner_text().split("\n") for row in page.locator(".reading div").all()]
        assert [name for name, _ in rows] == sorted(NAMES, key=lambda name: -means[name])
        assert {name: float(value) for name, value in rows} == pytest.approx(means, abs=6e-4)
        images = result.curves[0].at["images_seen"][index]
        assert page.locator(".reading b").inner_text() == f"{images:,.0f} images"
    page.keyboard.press("Escape")
    assert not page.locator(".reading").is_visible()


@pytest.mark.slow
def test_page_means_curves_of_unequal_length_where_all_have_values(visit):
    result = comparison(NAMES[:1])
    full, other, _ = (curve for curve in result.curves if curve.metric == "val/loss")
    at = {"images_seen": (0.0, 2874.0, 14370.0)}  # of every second value, and half as long
    short = replace(other, at=at, values=(other.values[0], other.values[2], other.values[10]))
    page = visit(replace(result, curves=(full, short)))
    page.locator(".plot-area").focus()
    for key, images, expected in (
        ("End", "14,370", (full.values[10] + other.values[10]) / 2),
        ("Home", "0", (full.values[0] + other.values[0]) / 2),
        ("ArrowRight", "1,437", (full.values[1] + (other.values[0] + other.values[2]) / 2) / 2),
    ):
        page.keyboard.press(key)
        assert page.locator(".reading b").inner_text() == f"{images} images"
        assert float(page.locator(".reading div").inner_text().split("\n")[1]) == pytest.approx(expected, abs=6e-4)


@pytest.mark.slow
def test_page_reads_values_under_the_pointer(visit):
    page = visit(comparison(), 390, has_touch=True)
    page.locator(".plot-area").scroll_into_view_if_needed()
    box = page.locator(".plot-area").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5)
    reading = page.locator(".reading")
    assert reading.locator("div").count() == len(NAMES)
    inside = reading.bounding_box()
    assert inside["x"] >= 0
    assert inside["x"] + inside["width"] <= 390


def heights_of(page, values):
    """Where the grid of the chart puts these values."""
    grid = page.locator("#chart .role-axis-grid line[x2]:not([x2='0'])").all()
    heights = [float(re.search(r",([\d.]+)", line.get_attribute("transform"))[1]) for line in grid]
    rows = dict(zip(map(float, page.locator(ROWS).all_text_contents()), heights, strict=True))
    (low, at_low), (high, at_high) = min(rows.items()), max(rows.items())
    return [at_low + (value - low) * (at_high - at_low) / (high - low) for value in values]


def points(path):
    """The heights of the points of a path."""
    return [float(pair.split(",")[1]) for pair in re.findall(r"[\d.]+,[\d.]+", path)]


@pytest.mark.slow
def test_page_draws_lines_where_the_values_are(visit):
    result = comparison()
    page = visit(replace(result, curves=tuple(curve for curve in result.curves if curve.seed == 0)))
    for name, path in zip(NAMES, paths(page), strict=True):
        values = next(curve.values for curve in result.curves if curve.entry == name)
        assert points(path) == pytest.approx(heights_of(page, values), abs=1)


@pytest.mark.slow
def test_page_shows_chosen_entries_and_a_log_scale(visit):
    page = visit(comparison())
    toggle = page.get_by_role("button", name="SimMIM", exact=True)
    before = paths(page)
    toggle.click()
    settle(page)
    assert toggle.get_attribute("aria-pressed") == "false"
    assert page.locator(MEANS).count() == 2
    page.get_by_role("button", name="None").click()
    settle(page)
    assert "No recipe is chosen" in page.locator("#chart").text_content()
    page.get_by_role("button", name="All").click()
    settle(page)
    assert paths(page) == before
    page.locator("#metric").select_option(label="Held-out loss")
    settle(page)
    linear = paths(page)
    page.get_by_label("Log scale").check()
    settle(page)
    assert paths(page) != linear
    assert len(page.locator(ROWS).all()) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("keyboard", [False, True])
def test_page_sorts_by_a_column_and_back(visit, keyboard):
    result = comparison()
    page = visit(result)
    for table, title, key, first in (
        ("#results table", "Fine-tuning", "finetune/top1", -1),
        ("#results table", "Held-out loss", "val/loss", 1),
        ("#cost table", "Time", "seconds", 1),
    ):
        heading = head(page, table, title)
        for sign in (first, -first):
            if keyboard:
                heading.get_by_role("button").focus()
                page.keyboard.press("Enter")
            else:
                heading.get_by_role("button").click()
            expected = sorted(result.entries, key=lambda entry: sign * entry.metrics[key].mean)
            assert column(page, table, "Recipe") == [entry.name for entry in expected]
            assert heading.get_attribute("aria-sort") == ("ascending" if sign == 1 else "descending")
        assert page.locator(f"{table} [aria-sort]").count() == 1


@pytest.mark.slow
def test_page_sorts_what_has_no_value_last(visit):
    result = comparison()
    lacking = replace(result.entries[0], metrics={**result.entries[0].metrics, "knn/top1": Estimate(math.nan, None, 3)})
    page = visit(replace(result, entries=(lacking, *result.entries[1:])))
    for _ in range(2):
        head(page, "#results table", "kNN").get_by_role("button").click()
        assert column(page, "#results table", "kNN")[-1] == "not finite"


@pytest.mark.slow
def test_page_shows_the_metrics_of_the_comparison(visit):
    result = comparison()
    page = visit(result)
    units = {"knn/top1": ("kNN", 1), "finetune/top1": ("Fine-tuning", 1), "val/loss": ("Held-out loss", 1)}
    cost = {"parameters": ("Parameters", 1e6), "peak_memory_bytes": ("Peak memory", 2**20), "seconds": ("Time", 60)}
    for table, columns in (("#results table", units), ("#cost table", cost)):
        for key, (title, unit) in columns.items():
            for text, entry in zip(column(page, table, title), result.entries, strict=True):
                mean, *half = (float(number) for number in re.findall(r"[\d.]+", text.replace(",", "")))
                assert mean == pytest.approx(entry.metrics[key].mean / unit, rel=5e-3)
                assert half == (
                    [pytest.approx(entry.metrics[key].half / unit, rel=0.2, abs=0.06)] if key != "parameters" else []
                )
    best = [cell.split()[0] for cell in page.locator("#results td.best").all_inner_texts()]
    style = styles_of(result.columns[:2], result.entries)["knn/top1"]
    assert best == [
        style.text(max(entry.metrics[key].mean for entry in result.entries)) for key in ("knn/top1", "finetune/top1")
    ]
    for text, test in zip(column(page, "#tests table", "Difference"), result.tests, strict=True):
        mean, half = (float(number) for number in re.findall(r"[−+]?[\d.]+", text.replace("−", "-").replace("-", "-")))
        assert abs(mean) == pytest.approx(abs(test.result.difference.mean), abs=0.06)
        assert half == pytest.approx(test.result.difference.half, abs=0.06)
        assert text.startswith("−" if test.result.difference.mean < 0 else "+")
    for text, test in zip(column(page, "#tests table", "p"), result.tests, strict=True):
        assert text == ("< 0.001" if test.result.p < 0.001 else f"{test.result.p:.3f}")
    for setting in result.settings:
        row = page.locator("#settings tr", has=page.locator("code", has_text=re.compile(f"^{re.escape(setting.key)}$")))
        assert tuple(row.locator("td").all_inner_texts()) == setting.values


@pytest.mark.slow
def test_page_plots_dots_where_the_values_are(visit):
    def places(marks):
        return [float(re.search(r"\(([\d.]+)", mark.get_attribute("transform"))[1]) for mark in marks.all()]

    result = comparison()
    page = visit(result)
    for plot, key in zip(page.locator(".plot").all(), ("knn/top1", "finetune/top1"), strict=True):
        means = places(plot.locator(".means_marks path"))
        values = [entry.metrics[key].mean for entry in result.entries]
        slope = (means[1] - means[0]) / (values[1] - values[0])

        def at(value, start=means[0], first=values[0], slope=slope):
            return pytest.approx(start + (value - first) * slope, abs=0.1)

        assert means == [at(value) for value in values]
        runs = [value for entry in result.entries for value in entry.values[key]]
        assert places(plot.locator(".seeds_marks path")) == [at(value) for value in runs]
        texts = plot.locator(".role-axis-label text[text-anchor=start]").all_text_contents()
        assert [float(text.split()[0]) for text in texts[: len(values)]] == pytest.approx(values, abs=0.06)


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 390])
def test_page_shows_hostile_names_as_text(visit, width):
    names = HOSTILE[:5]
    result = replace(
        comparison(names), title=HOSTILE[0], warnings=names, left_out=tuple((name, name) for name in names)
    )
    page = visit(result, width)
    assert page.title() == HOSTILE[0]
    assert page.evaluate("window.broken") is None
    assert page.locator("#results tbody bdi").all_text_contents() == list(names)
    assert page.locator(".entries bdi").all_text_contents() == list(names)
    page.locator(".plot-area").focus()
    page.keyboard.press("End")
    assert set(page.locator(".reading bdi").all_text_contents()) == set(names)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelectorAll('img').length") == 2


@pytest.mark.slow
def test_page_policy_blocks_what_is_added(visit):
    added = '<img src="https://example.invalid/x.png"><script>window.broken = 1</script></body>'
    page = visit(comparison(), change=lambda html: html.replace("</body>", added), expected=True)
    assert page.evaluate("window.broken") is None
    problems = " ".join(page.problems)
    assert "img-src" in problems
    assert "script-src" in problems


@pytest.mark.slow
def test_page_prints_every_section_in_light_colours_without_controls(visit):
    page = visit(comparison(), scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    ids = page.locator("section").evaluate_all("(sections) => sections.map((section) => section.id)")
    assert set(ids) == {"results", "cost", *SECTIONS.values()}
    for section in ids:
        assert page.locator(f"#{section}").is_visible()
    assert page.locator(MEANS).first.is_visible()
    assert page.locator("footer dd").first.is_visible()
    for control in (".controls", ".every", ".hint"):
        assert not page.locator(control).first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".scroll").first.evaluate("(box) => getComputedStyle(box).overflowX") == "visible"
    notes = "(list) => [getComputedStyle(list).breakBefore, getComputedStyle(list).breakInside]"
    assert page.locator("ol.notes").first.evaluate(notes) == ["avoid", "avoid"]  # notes stay with their table
    assert page.pdf(format="A4").startswith(b"%PDF")


OVERLAPS = """() => {  // labels of ticks that touch each other, in every plot and in the chart
  const touching = [];
  for (const axis of document.querySelectorAll(".drawing .role-axis-label, #chart .role-axis-label")) {
    const group = [...axis.querySelectorAll("text")].filter((text) => text.getAttribute("opacity") !== "0");
    if (new Set(group.map((text) => text.getBoundingClientRect().top)).size > 1) continue;
    const boxes = group.map((node) => node.getBoundingClientRect()).sort((a, b) => a.left - b.left);
    for (let index = 1; index < boxes.length; index += 1)
      if (boxes[index].left < boxes[index - 1].right + 4)
        touching.push(group.map((node) => node.textContent).join(" "));
  }
  return touching;
}"""


@pytest.mark.parametrize(
    ("width", "media"),
    [
        pytest.param(710, "print", id="letter", marks=pytest.mark.slow),
        pytest.param(688, "print", id="a4"),
        pytest.param(1280, "screen", id="desktop", marks=pytest.mark.slow),
        pytest.param(1000, "screen", id="tablet", marks=pytest.mark.slow),
        pytest.param(390, "screen", id="phone"),
    ],
)
def test_page_keeps_ticks_apart_on_paper_and_screens(visit, width, media):
    result = comparison()
    close = {"knn/top1": (97.0, 97.3, 97.55), "finetune/top1": (20.0, 40.0, 80.0)}  # ticks of many and of few digits
    entries = tuple(
        replace(
            each,
            metrics={**each.metrics, **{key: Estimate(values[index], 0.02, 3) for key, values in close.items()}},
            values={**each.values, **{key: (values[index],) * 3 for key, values in close.items()}},
        )
        for index, each in enumerate(result.entries)
    )
    page = visit(replace(result, entries=entries), width)
    page.emulate_media(media=media)
    assert page.locator(".plot .role-axis-label text").count() >= 6
    assert page.evaluate(OVERLAPS) == []


@pytest.mark.slow
def test_page_shows_what_the_numbers_cannot_bear_before_anything_else(visit):
    result = comparison()
    page = visit(result)
    assert page.locator("main > section").first.get_attribute("id") == "warnings"
    assert page.locator("#warnings li").all_inner_texts() == [*result.evidence, *result.warnings]


@pytest.mark.slow
def test_page_marks_nothing_where_nothing_is_separated(visit):
    page = visit(replace(comparison(), best={}))
    assert page.locator("td.best, #results td strong, .plot text[font-weight=bold]").count() == 0
    assert "No best value is marked" in page.locator("#results .lead").inner_text()


@pytest.mark.slow
def test_page_draws_a_band_from_the_lowest_to_the_highest_seed(visit):
    result = comparison()
    page = visit(result)
    assert page.locator(BANDS).count() == len(NAMES)
    assert "Band: from the lowest to the highest seed." in page.locator("#curves .key").inner_text()
    outline = page.locator(BANDS).first.get_attribute("d")
    heights = points(outline)
    seeds = [each.values for each in result.curves if (each.entry, each.metric) == (NAMES[0], "knn/top1")]
    edges = [*map(max, zip(*seeds, strict=True)), *reversed([*map(min, zip(*seeds, strict=True))])]
    assert sorted(heights) == pytest.approx(sorted(heights_of(page, edges)), abs=1)


@pytest.mark.slow
def test_page_chart_ends_where_the_metric_ends(visit):
    result = comparison()
    curves = tuple(replace(each, values=tuple(99.9 for _ in each.values)) for each in result.curves)
    page = visit(replace(result, curves=curves))
    assert max(float(text) for text in page.locator(ROWS).all_text_contents()) <= 100


@pytest.mark.slow
def test_page_needs_no_script_for_tables_settings_and_pictures(visit):
    page = visit(comparison(), java_script_enabled=False)
    assert page.locator("noscript").inner_text().startswith("Curves are drawn by a script")
    assert not page.locator(".controls").is_visible()
    for selector in ("#results table", ".plot", "#cost table", "#settings table", "#reconstructions img"):
        assert page.locator(selector).first.is_visible()


@pytest.mark.slow
def test_page_enlarges_pictures(visit):
    page = visit(comparison(), 390)
    page.get_by_role("button", name="Enlarge").click()
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    assert dialog.locator("img").evaluate("(image) => [image.naturalWidth, image.width]") == [640, 640]
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


@pytest.mark.slow
def test_page_has_room_for_fingers_and_for_many_entries(visit):
    page = visit(comparison(tuple(f"MASKER.ratio={number / 40} HEAD.depth=8" for number in range(40)), (0,)), 390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(MEANS).count() == 40
    assert page.evaluate(SMALL) == []
    looks = page.locator(".legend .swatch").evaluate_all(
        "(all) => all.map((one) => one.getAttribute('class') + one.querySelector('use').getAttribute('href'))"
    )
    assert len(set(looks)) == 40
