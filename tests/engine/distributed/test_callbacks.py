"""Callbacks on several ranks: the main rank alone calls them, and all ranks end together."""

import json
import textwrap

import pytest
from processes import RECIPE, TINY, last_state, rows

PROGRAM = """
    import os
    from pathlib import Path

    import mim

    class Failing(mim.Callback):
        def on_step(self, progress, metrics):
            assert os.environ["RANK"] == "0"
            if progress.step == 3:
                raise ZeroDivisionError("by the callback")

    folder = Path({folder!r})
    try:
        mim.train({recipe!r}, {keys!r}, folder / "run", quiet=True, callbacks=[Failing()])
    except Exception as error:
        (folder / os.environ["RANK"]).write_text(f"{{type(error).__name__}}: {{error}}")
"""


@pytest.mark.slow
def test_callback_that_fails_on_the_main_rank_ends_all_with_a_checkpoint(tmp_path, warm):
    script = tmp_path / "program.py"
    keys = json.loads(json.dumps({**TINY, "DATA.workers": 0, "DATA.batch_size": 48}))
    script.write_text(textwrap.dedent(PROGRAM).format(folder=str(tmp_path), recipe=str(RECIPE), keys=keys))
    code, output = warm.run_program(script, 2, [], script.with_suffix(".log"))
    assert code == 0, output
    assert (tmp_path / "0").read_text() == "ZeroDivisionError: by the callback"
    other = (tmp_path / "1").read_text()
    assert other.startswith("RunInterrupted: ended on a request to another rank after step 4 of 14")
    assert last_state(tmp_path / "run")["step"] == rows(tmp_path / "run")[-1]["step"] == 4
