"""Commands: one file each. Console scripts, `python -m mim` and tools/*.py start them through `run`.

A command imports torch only once it has read its arguments and its config. This package is outside `mim` because
openmim has a package of that name, too. Where one hides or overwrites the other, the first line of the error says so.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {  # name: purpose
    "train": "pretrains, fine-tunes or probes, as TASK of the config says",
    "plan": "shows what a run will be and cost, before it starts",
    "masks": "draws what a masker hides, with AvgDist",
    "reconstruct": "draws what a pretrained model predicts for images",
    "evaluate": "kNN, accuracy, features, patches, nearest images of a checkpoint",
    "compare": "compares runs in tables and on one HTML page",
    "watch": "shows running and finished runs on a page in the browser",
    "sweep": "trains a study: many settings, protocols and seeds",
    "convert": "converts weights to and from other code bases",
    "export": "writes an encoder or predictor as ONNX or for torch.export",
    "backbones": "tells which models of timm can be pretrained, in which ways",
    "pack": "turns images into a packed data set, resized",
    "benchmark": "measures the speed of a config on this machine",
    "quickstart": "pretrains MAE and SimMIM on digits and compares them",
}


def run(command: str, arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code. arguments: the words after its name; default: those of this process."""
    problem = _foreign_package()
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    from mim import cli

    if command not in COMMANDS:
        return cli.list_commands(COMMANDS, command)
    cli.let_threads_sleep()
    return importlib.import_module(f"mim_toolkit.{command}").main(arguments)


def script() -> int:
    """A console script: mim-train runs the command `train`."""
    return run(Path(sys.argv[0]).stem.removeprefix("mim-"))


def main() -> int:
    """`python -m mim COMMAND ...`; without a command it lists them."""
    command, *arguments = sys.argv[1:] or ["--help"]
    return run(command, arguments)


def _foreign_package() -> str:
    """Why `mim` is not the package of this toolkit; empty where it is."""
    clone = Path(__file__).resolve().parents[2]
    if (clone / "tools" / "mim_toolkit").is_dir():
        sys.path.append(str(clone))  # where nothing is installed
    try:
        import mim
    except ImportError as error:
        return f"the package mim cannot be imported ({error}): install this toolkit, as with `pip install -e .`"
    if getattr(mim, "DISTRIBUTION", None) == "mim-toolkit":
        return ""
    where = getattr(mim, "__file__", None) or next(iter(getattr(mim, "__path__", [])), "unknown")
    return (
        f"another package named mim, such as openmim, is imported in place of this toolkit: {where}. Install "
        "mim-toolkit into an environment of its own, or remove the other one from this environment and from PYTHONPATH"
    )
