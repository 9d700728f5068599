"""Commands: every tool on the device, on runs that are trained where their folder is not there yet."""

import importlib
from functools import partial
from pathlib import Path

from guard import guard_steps
from runs import MAE, RUNS, Keys, folder, pairs, run_of
from values import plausible_reads

KEYS: dict[str, Keys] = {"[mae]": RUNS["mae"][1], "[short]": {"DATA.batch_size": 60}}
NO_STEPS = ("TRAIN.batch", "TRAIN.epochs")  # have no effect on a benchmark
COMMANDS: dict[str, str] = {  # path: command and its words; {name} is the folder of that run
    "resume": f"train --config {MAE} --output {{mae}} --extend 2 [mae]",
    "evaluate knn": "evaluate knn {mae}",
    "evaluate logistic": "evaluate logistic {mae}",
    "evaluate features": "evaluate features {mae} --output {here}/features.npz",
    "evaluate dense": "evaluate dense {mae} --output {here}/dense",
    "evaluate retrieval": "evaluate retrieval {mae} --output {here}/retrieval",
    "evaluate patches": (
        "evaluate dense {mae} --output {here}/patches DATA.name folder DATA.path "
        "{here}/pictures LABELS.masks {here}/masks LABELS.names [paper,ink] --k 10 --c 1"
    ),
    "evaluate classify": "evaluate classify {finetune}",
    "evaluate corruptions": "evaluate corruptions {finetune} --images 16 --only noise --output {here}/corruptions",
    "evaluate predict": "evaluate predict {finetune} {here}/pictures --output {here}/predictions.csv",
    "evaluate predict masks": "evaluate predict {segmentation} {here}/pictures --output {here}/answers",
    "reconstruct": "reconstruct {mae} {here}/pictures/000.png --output {here}/sheet.png",
    "reconstruct held-out": "reconstruct {mae} --ratio 0.5 0.75 --output {here}/held_out.png",
    "export encoder": "export {mae} --output {here}/encoder.pt2 --features pooled",
    "export predictor": "export {finetune} --output {here}/predictor.pt2",
    "benchmark": f"benchmark --config {MAE} --folder {{here}}/benchmark --rounds 1 --steps 1 [short]",
    "plan": f"plan --config {MAE} [mae]",
    "plan measured": f"plan --config {MAE} --measure 2 --benchmarks {{here}}/steps.jsonl [mae]",
}


def command_of(name: str, here: Path) -> str:
    """Runs a command in this process. Raises RuntimeError with its exit code where it failed."""
    command, *words = COMMANDS[name].split()
    for run in RUNS:
        if f"{{{run}}}" in words and not (folder(run, here) / "summary.json").exists():
            run_of(run, here)
    arguments = [each for word in words for each in _words(word, here)]
    with plausible_reads(), guard_steps():
        code = importlib.import_module(f"mim_toolkit.{command}").main([*arguments, "--traceback"])
    if code:
        raise RuntimeError(f"exit code {code}")
    return "done"


PATHS = {name: partial(command_of, name) for name in COMMANDS}


def _words(word: str, here: Path) -> list[str]:
    """A word of COMMANDS as the command is given it; [mae] and [short] stand for keys."""
    if word in KEYS:
        keys = pairs(KEYS[word], here)
        return [each for pair in keys.items() for each in pair if word == "[mae]" or pair[0] not in NO_STEPS]
    for run in RUNS:
        word = word.replace(f"{{{run}}}", str(folder(run, here)))
    return [word.replace("{here}", str(here))]
