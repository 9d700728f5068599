"""Training in a kernel of Jupyter: the bar and the log, a second call, and an interrupted one."""

import re
from pathlib import Path

import pytest
from processes import RECIPE, TINY

pytest.importorskip("ipykernel")
pytestmark = pytest.mark.slow

SETUP = """
import logging
import mim
keys = {keys!r}
def train(folder, **more):
    return mim.train({recipe!r}, {{**keys, **more.pop("keys", {{}})}}, folder, **more)
"""
HANDLERS = "print([type(handler).__name__ for handler in logging.getLogger('mim').handlers])"


class Kernel:
    """A kernel of its own process, in a folder."""

    def __init__(self, folder: Path):
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(folder))

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code: str, interrupt_at: str = "") -> dict[str, list[str]]:
        """What a cell shows: text, html (new outputs), updates of these, errors. It is interrupted after a text."""
        outputs: dict[str, list[str]] = {"text": [], "html": [], "updates": [], "errors": []}
        request = self.client.execute(code)
        while True:
            message = self.client.get_iopub_msg(timeout=300)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                outputs["text"].append(content["text"])
                if interrupt_at and interrupt_at in "".join(outputs["text"]):
                    interrupt_at = ""
                    self.manager.interrupt_kernel()
            elif kind in ("display_data", "execute_result"):
                outputs["html"].append(content["data"].get("text/html", ""))
            elif kind == "update_display_data":
                outputs["updates"].append(content["data"].get("text/html", ""))
            elif kind == "error":
                outputs["errors"].append(f"{content['ename']}: {content['evalue']}")
            elif kind == "status" and content["execution_state"] == "idle":
                return outputs


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    kernel = Kernel(tmp_path_factory.mktemp("notebook"))
    keys = {**TINY, "DATA.workers": 0, "EVALUATE.reconstructions": 2}
    assert kernel.run(SETUP.format(keys=keys, recipe=str(RECIPE)))["errors"] == []
    yield kernel
    kernel.close()


def test_run_in_a_notebook_has_one_bar_a_log_in_one_piece_and_a_result_that_is_shown(kernel):
    output = kernel.run("result = train('first')\nresult")
    assert output["errors"] == []
    bar, result = output["html"]
    assert bar.startswith("<progress")
    assert "step 0 of 14" in bar
    assert "step 14 of 14" in output["updates"][-1]
    assert "loss " in output["updates"][-1]
    assert "<svg" in result
    assert "data:image/png;base64," in result
    lines = "".join(output["text"]).splitlines()
    steps = [line for line in lines if re.match(r"epoch .* step +\d+ ", line)]
    assert len(steps) == len(set(steps)) == 14
    assert not any("\x1b" in line for line in lines)


def test_second_run_in_a_kernel_logs_once_and_a_quiet_one_shows_the_bar_alone(kernel):
    text = "".join(kernel.run(f"second = train('second')\n{HANDLERS}")["text"])
    assert len(re.findall(r"^epoch .* step +14 ", text, flags=re.MULTILINE)) == 1
    assert text.strip().endswith("['ConsoleHandler']")
    quiet = kernel.run(
        f"again = train('third', quiet=True)\n{HANDLERS}\nprint(again['val/loss'] == second['val/loss'])"
    )
    assert "".join(quiet["text"]).split("\n")[:2] == ["['NullHandler']", "True"]
    assert len(quiet["html"]) == 1


def test_interrupted_kernel_has_a_checkpoint_and_is_usable(kernel):
    long = {"TRAIN.epochs": 400, "CHECKPOINT.every_epochs": 0, "EVALUATE.every_epochs": 0}
    output = kernel.run(f"train('long', keys={long!r})", interrupt_at="step    3")
    assert len(output["errors"]) == 1
    assert output["errors"][0].startswith("RunInterrupted: ended on SIGINT after step ")
    code = "import os, signal\nprint(os.listdir('long/checkpoints'), signal.getsignal(signal.SIGINT).__name__)"
    text = "".join(kernel.run(code)["text"])
    assert re.search(r"'step-\d+\.pt'", text)
    assert "default_int_handler" in text
    resumed = kernel.run(f"train('long', keys={long!r})", interrupt_at="epoch ")
    assert "resumed from" in "".join(resumed["text"])
