"""Train: `python tools/train.py --config FILE [--output DIR] [--resume [CHECKPOINT]] [KEY VALUE ...]`.

Runs on one CPU or GPU as it is, on several under torchrun. A folder that holds an unfinished run is resumed.
"""

import argparse
import sys
from pathlib import Path

from mim.config.load import load_config
from mim.engine.checkpoint import last
from mim.engine.distributed.heartbeat import LOST
from mim.errors import DataLost, RanksLost, RunInterrupted, RunStopped
from mim.run import train


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 finished; 2 something for the user to mend; 3 training could not go on; 4 another rank was lost;
    75 ended on SIGTERM, SIGUSR1 or Ctrl-C with a checkpoint, from which the same command goes on.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--config", required=True, type=Path, help="a YAML recipe, such as configs/quickstart/mae_digits.yaml"
    )
    parser.add_argument("--output", type=Path, help="run folder; default: runs/<name of the config>")
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="CHECKPOINT",
        help="insist on resuming: from CHECKPOINT, or from the last one of the run folder\n"
        "(a folder with a checkpoint is resumed without this flag, too)",
    )  # fmt: skip
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help='such as TRAIN.epochs 2 DATA.image_size "[96,160]"'
    )
    args = parser.parse_intermixed_args(arguments)
    output = args.output or Path("runs") / args.config.stem
    try:
        resume = Path(args.resume) if args.resume else None
        if args.resume == "" and last(output / "checkpoints") is None:
            raise ValueError(f"--resume: {output} holds no checkpoint")
        train(load_config(args.config, args.overrides), output, resume)
    except RunInterrupted as error:
        print(error, file=sys.stderr)
        return 75  # EX_TEMPFAIL of sysexits.h: try again later
    except (ValueError, RunStopped, DataLost, RanksLost, OSError) as error:
        if args.traceback:
            raise
        print(f"error: {_words(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else LOST if isinstance(error, RanksLost) else 3
    return 0


def _words(error: Exception) -> str:
    """Of an error of the system, such as a full disk, the file and what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
