"""The page of mim-watch in a real headless Chromium while a real run is writing, and what it says of other runs."""

import re
import shutil
import signal
import subprocess
from contextlib import contextmanager
from threading import Thread

import pytest
from processes import TINY, command, rows, start
from run_folders import real_runs

from mim.lab.watch import WatchServer

WAIT_MS = 60_000
STEP_MS = 100
VIEWS = [(1280, "light"), (390, "dark")]
KEYS = {
    **TINY,
    "TRAIN.epochs": 400,
    "EVALUATE.every_epochs": 1,
    "EVALUATE.reconstructions": 4,
    "EVALUATE.at_start": True,
}

pytestmark = pytest.mark.slow


@contextmanager
def serving(folder):
    with WatchServer([folder]) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def visiting(chromium, url, width, scheme, problems):
    """An open page. What the browser complains of is added to `problems`, and what it asks elsewhere."""
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith(url) or problems.append(request.url))
    page.goto(url)
    try:
        yield page
    finally:
        context.close()


def wait_until(page, condition):
    """Waits until `condition` holds. The page's policy forbids eval, so wait_for_function cannot poll in it."""
    for _ in range(WAIT_MS // STEP_MS):
        if condition():
            return
        page.wait_for_timeout(STEP_MS)
    pytest.fail("the page did not change in time")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A folder of a finished run, and of one that a process is writing."""
    folder = tmp_path_factory.mktemp("watched")
    shutil.copytree(real_runs().probe, folder / "probe")
    process = start(command(folder / "mae", KEYS))
    drain = Thread(target=process.stdout.read)
    drain.start()
    yield folder, process
    process.kill()
    drain.join()


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_page_follows_a_run_that_is_writing(chromium, running, width, scheme, tmp_path):
    folder, process = running
    problems = []
    with serving(folder) as server, visiting(chromium, server.url, width, scheme, problems) as page:
        run = page.locator(".run.running")
        run.locator("img").wait_for(timeout=WAIT_MS)
        assert process.poll() is None
        wait_until(page, lambda: run.locator("img").evaluate("image => image.naturalWidth") > 0)
        run.locator("h2", has_text="Scores, %").wait_for(timeout=WAIT_MS)
        run.locator("dt", has_text="Time left").wait_for(timeout=WAIT_MS)
        facts = run.locator(".facts").inner_text()
        assert re.search(r"Images a second\s+[\d,.]+", facts)
        assert re.search(r"Waiting for images\s+\d+% of the time", facts)
        assert re.search(r"epoch [\d.]+ of 400, about .* left", run.locator(".brief").inner_text())
        first = {
            "points": run.locator(".chart polyline").first.get_attribute("points"),
            "picture": run.locator("img").get_attribute("src"),
            "progress": run.locator("progress").evaluate("bar => bar.value"),
        }
        wait_until(page, lambda: run.locator("img").get_attribute("src") != first["picture"])
        assert run.locator("progress").evaluate("bar => bar.value") > first["progress"]
        assert run.locator(".chart polyline").first.get_attribute("points") != first["points"]
        assert page.locator(".run.finished .brief").inner_text() == "epoch 2 of 2"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
        page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert problems == []


def test_page_says_that_a_run_ended_and_that_the_server_did(chromium, tmp_path):
    shutil.copytree(real_runs().pretraining, tmp_path / "other")
    process = start(command(tmp_path / "mae", {**KEYS, "EVALUATE.reconstructions": 0}))
    problems = []
    try:
        with serving(tmp_path) as server, visiting(chromium, server.url, 800, "light", problems) as page:
            page.locator(".run.running dt", has_text="Images a second").wait_for(timeout=WAIT_MS)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            assert process.returncode == 75
            run = page.locator(".run.interrupted")
            run.wait_for(timeout=WAIT_MS)
            assert "ended on SIGTERM" in run.locator(".note").inner_text()
            epoch = rows(tmp_path / "mae")[-1]["epoch"]
            assert run.locator(".brief").inner_text() == f"epoch {epoch:.4g} of 400"
            shutil.rmtree(tmp_path / "other")
            wait_until(page, lambda: page.locator(".run").count() == 1)
            assert problems == []
            server.shutdown()
            server.server_close()
            page.locator("#problem").wait_for(timeout=WAIT_MS)
            assert "does not answer" in page.locator("#problem").inner_text()
    except subprocess.TimeoutExpired:
        pytest.fail("the run did not end")
    finally:
        process.kill()


def test_page_shows_hostile_names_as_text(chromium, tmp_path):
    names = ("<img src=x onerror=window.broken=1>", "a'\"&b" + "c" * 100, "{{7*7}}", "日本語")
    for name in names:
        shutil.copytree(real_runs().pretraining, tmp_path / name)
    problems = []
    with serving(tmp_path) as server, visiting(chromium, server.url, 390, "light", problems) as page:
        wait_until(page, lambda: page.locator(".run svg").count() >= 2 * len(names))
        titles = {text.rpartition("/")[2] for text in page.locator(".name").all_text_contents()}
        assert titles == set(names)
        assert page.evaluate("window.broken") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert problems == []


def test_page_reads_values_under_the_pointer(chromium, tmp_path):
    shutil.copytree(real_runs().pretraining, tmp_path / "mae")
    losses = [row["train/loss"] for row in rows(tmp_path / "mae") if "train/loss" in row]
    problems = []
    with serving(tmp_path) as server, visiting(chromium, server.url, 1280, "light", problems) as page:
        chart = page.locator(".chart").first
        chart.locator("svg").wait_for(timeout=WAIT_MS)
        number = chart.locator(".legend b").first
        assert float(number.inner_text()) == pytest.approx(losses[-1], rel=1e-3)
        box = chart.locator("svg").bounding_box()
        page.mouse.move(box["x"] + 50, box["y"] + 60)
        assert float(number.inner_text()) == pytest.approx(losses[0], rel=1e-3)
        assert chart.locator(".at").is_visible()
        page.mouse.move(0, 0)
        assert float(number.inner_text()) == pytest.approx(losses[-1], rel=1e-3)
    assert problems == []
