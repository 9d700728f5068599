"""Watch: a local page that follows runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mim import cli

TEXT = """Shows running and finished runs on one page in a browser: state, progress, time left, images a second,
the share of the time that training waits for images, curves, and the newest picture. The page is read from the run
folders alone, which are not changed, and updates itself. It listens on 127.0.0.1 only, and its address holds a secret
that is new each time. Ctrl-C ends it."""
EXAMPLES = ("", "runs/my_study", "runs/mae runs/simmim --port 8080")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    parser = cli.Parser("watch", TEXT, EXAMPLES)
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="a run folder, or a folder of run folders; default: runs"
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of 127.0.0.1; default: any that is free")
    return cli.run(parser, _watch, arguments)


def _watch(args: argparse.Namespace) -> None:
    if not 0 <= args.port < 2**16:
        raise ValueError(f"--port is {args.port}: it must be from 0 to 65535")
    from mim.lab.watch import WatchServer

    with WatchServer(args.runs or [Path("runs")], args.port) as server:
        print(f"{server.url}\nCtrl-C ends this.", flush=True)
        server.serve_forever()
