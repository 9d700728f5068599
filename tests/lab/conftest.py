"""A real headless Chromium for the pages of the lab: a machine without one skips their tests, CI never."""

import importlib.util
import os
import shutil

import pytest


@pytest.fixture(scope="module")
def chromium():
    lacking = pytest.fail if "CI" in os.environ else pytest.skip
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        lacking("no chromium, chromium-browser or google-chrome on the path")
    if importlib.util.find_spec("playwright") is None:
        lacking("playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()
