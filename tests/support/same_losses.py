"""Same losses: whether a change leaves what training computes as it was.

  python tests/support/same_losses.py record --output before.json [--images FOLDER] [--only NAME ...]
  python tests/support/same_losses.py compare before.json after.json

`record`, run from the root of a checkout, trains shipped recipes for a few seeded steps and keeps the loss, rate and
gradient norm of each, and the figures of every evaluation. `compare` exits 0 only where two records are equal to the
bit. FOLDER holds train/<class>/ and val/<class>/ for the CIFAR-10 recipes, which are left out without it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SHORT = {"LOG.tensorboard": "false", "LOG.every_steps": "1", "SCHEDULE.warmup_epochs": "1", "CHECKPOINT.keep": "1"}
FULL = {"TRAIN.precision": "fp32", "TRAIN.epochs": "2"}
CIFAR = {"DATA.name": "folder", "TRAIN.batch": "128", "DATA.batch_size": "64", "DATA.workers": "1"}
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "quickstart mae, bf16": ("quickstart/mae_digits", {"TRAIN.precision": "bf16", "TRAIN.epochs": "2"}),
    "quickstart simmim": ("quickstart/simmim_digits", FULL),
    "cifar10 mae vit": ("cifar10/mae_vit_tiny", FULL | CIFAR),
    "cifar10 simmim vit": ("cifar10/simmim_vit_tiny", FULL | CIFAR),
    "cifar10 simmim swin": ("cifar10/simmim_swin_tiny", FULL | CIFAR),
    "finetune digits": ("finetune/digits", FULL),
    "probe digits": ("probe/digits", FULL | {"PROBE.choose_share": "0"}),  # as before 0.2.0
    "finetune cifar10": ("finetune/cifar10_vit_tiny_modern", FULL | CIFAR | {"DATA.workers": "0"}),
}
PREFIXES = ("train/", "val/", "knn/", "best/")  # prefixes of the metrics that are compared


def record(output: Path, images: Path | None, only: list[str]) -> None:
    """Writes {case: [metrics of each row]}. Raises RuntimeError where a run fails."""
    losses = {}
    for case, (recipe, keys) in CASES.items():
        if only and case not in only:
            continue
        if "cifar10" in case:
            if images is None:
                print(f"{case}: left out, no --images")
                continue
            keys = keys | {"DATA.path": str(images)}
        losses[case] = _train(recipe, keys)
        print(f"{case}: {len(losses[case])} rows, first {losses[case][0]}")
    output.write_text(json.dumps(losses, indent=1))


def compare(before: Path, after: Path) -> int:
    """Prints, for each case of both records, the largest difference. Gives 1 where any differs, or none is shared."""
    one, other = (json.loads(path.read_text()) for path in (before, after))
    shared = [case for case in one if case in other]
    unequal = 0
    for case in shared:
        differences = [
            abs(row.get(name, float("inf")) - there.get(name, float("inf")))
            for row, there in zip(one[case], other[case], strict=False)
            for name in row.keys() | there.keys()
            if row.get(name) != there.get(name)
        ]
        equal = one[case] == other[case]
        unequal += not equal
        rows = f"{len(one[case])} rows" if len(one[case]) == len(other[case]) else "another number of rows"
        print(
            f"{case}: {'equal to the bit' if equal else f'differs by up to {max(differences, default=0):.3g}'}, {rows}"
        )
    return int(unequal > 0 or not shared)


def _train(recipe: str, keys: dict[str, str]) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        words = [word for pair in (SHORT | keys).items() for word in pair]
        command = [sys.executable, "tools/train.py", "--config", f"configs/{recipe}.yaml", "--output", folder, *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(f"{recipe} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name.startswith(PREFIXES)} for row in rows]


def main() -> int:
    """Exit codes: 0 recorded, or equal; 1 different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    recording = commands.add_parser("record", help="train, and keep what came out")
    recording.add_argument("--output", type=Path, required=True)
    recording.add_argument("--images", type=Path)
    recording.add_argument("--only", nargs="*", default=[], metavar="NAME", choices=list(CASES))
    comparing = commands.add_parser("compare", help="compare two records")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.what == "compare":
        return compare(args.before, args.after)
    record(args.output, args.images, args.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
