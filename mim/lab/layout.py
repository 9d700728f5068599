"""Layout: the folders of a study and the files of a comparison. A run folder is mim.engine.run_folder.RunFolder's.

STUDY/pretraining/TRIAL-seed0/    a run of each trial and seed
STUDY/PROTOCOL/TRIAL-seed0/       a run that starts from it, for each protocol
STUDY/results.json  results.md  comparison/
"""

import re
from pathlib import Path

PRETRAINING = "pretraining"  # stands beside a folder for each protocol
RESULTS, RESULTS_TABLE = "results.json", "results.md"
PAGE, ENTRIES, RUNS = "comparison.html", "comparison.csv", "comparison_runs.csv"
FIGURES = "figures"  # a folder beside the page
TABLES = {"latex": "comparison.tex", "markdown": "comparison.md"}  # of results, by format


def study_run(study: Path, protocol: str, trial: str, seed: int) -> Path:
    """The folder of a run in a study. An empty protocol means pretraining."""
    return study / (slug(protocol) if protocol else PRETRAINING) / f"{slug(trial)}-seed{seed}"


def slug(name: str) -> str:
    """A name as the name of a folder: small letters, digits and points, with a hyphen for anything else."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def seedless(folder: str) -> str:
    """The name of a folder without its seed: `mae` for `mae-seed0`."""
    return re.sub(r"[-_. ]?seed[-_=. ]?\d+", "", folder, flags=re.IGNORECASE)
