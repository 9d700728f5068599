"""Link: seconds that a slow link adds to a step of two processes, measured, and by the formula of a plan.

  python benchmarks/link.py --config RECIPE [--rates 400 1600] [--rounds 5] [--steps 1] [KEY VALUE ...]

For root on Linux with iproute2. Two processes of one thread each, in network namespaces of their own, take steps on
random images through a veth pair: without a limit, and at each rate, in turns. The kernel ends both processes with this
one, and removes their namespaces and the pair. A rate is in Mbit/s, of both ends (tc, tbf). DATA.batch_size is that of
a micro-batch; the accumulation is this script's.

Added is a step at a rate less the step of the same round without a limit. The formula is the wait of mim/lab/plan at
the rate, with the passes as they take without exchange. Nothing hidden is its exchange, one collective after another,
each as fast as alone in that round. From both, the same without a limit is taken, by the speeds of collectives alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from threading import Event, Thread
from typing import Any, NamedTuple, Self

from link_process import CASES, INTERFACE, PLAIN, PROCESSES, Case, Speeds, Step, config, serve
from targets import spread

from mim.cost.flops import Work
from mim.engine.settings import DistributedSettings
from mim.lab.dryrun.task import dry_task
from mim.lab.plan.hardware import GIGA, Hardware, sent
from mim.lab.plan.scaling import FP32, MIB, TERA, ModelSizes, cost, model_sizes, replica_bytes, shard_bytes

BUCKET = round(DistributedSettings.bucket_mb * MIB)  # bytes
MTU = 9000  # bytes; the headers are then 1% of what is sent
TOOLS = ("ip", "tc", "setpriv", "unshare", "nsenter")
UNLIMITED = 0.0  # as a rate
PAUSE_S = 1.0
MBIT = 1e6 / 8  # bytes


class Wakes(Thread):
    """Wakes up often. Attribute: longest (seconds between two times)."""

    def __enter__(self) -> Self:
        self.longest, self._ended = 0.0, Event()
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Until the end of the with-block."""
        before, ended = time.perf_counter(), False
        while not ended:
            ended = self._ended.wait(PAUSE_S / 20)
            now = time.perf_counter()
            self.longest, before = max(self.longest, now - before), now


class Link:
    """Both processes and the pair between them."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]):
        self.processes = processes

    def ask(self, *request: Any) -> list[Any]:
        """The answers of both processes. Raises ConnectionError where one has ended."""
        for process in self.processes:
            print(json.dumps(request), file=process.stdin, flush=True)
        return self.answers()

    def measure(self, *request: Any) -> list[Any]:
        """The same, again as long as something stopped this process for a second meanwhile, and so maybe those."""
        while True:
            with Wakes() as wakes:
                answers = self.ask(*request)
            if wakes.longest < PAUSE_S:
                return answers

    def answers(self) -> list[Any]:
        """One line of each."""
        lines = [process.stdout.readline() for process in self.processes if process.stdout]
        if not all(lines):
            raise ConnectionError("a process ended, see above")
        return [json.loads(line) for line in lines]

    def connect(self) -> None:
        """A pair whose ends are in the namespaces of the processes."""
        first, second = (str(process.pid) for process in self.processes)
        peer = ["type", "veth", "peer", "name", INTERFACE, "mtu", str(MTU), "netns", second]
        call("ip", "link", "add", "name", INTERFACE, "mtu", str(MTU), "netns", first, *peer)
        for rank, process in enumerate(self.processes):
            inside = ["nsenter", "--target", str(process.pid), "--net"]
            call(*inside, "ip", "address", "add", f"{address(rank)}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                call(*inside, "ip", "link", "set", "dev", interface, "up")

    def limit(self, rate: float) -> None:
        """Sets the rate of both ends, in Mbit/s."""
        for process in self.processes:
            queue = ["nsenter", "--target", str(process.pid), "--net", "tc", "qdisc"]
            if rate == UNLIMITED:
                call(*queue, "replace", "dev", INTERFACE, "root", "pfifo", "limit", "100000")
            else:  # a burst holds one segment of TCP, and no packet is lost
                shape = ["tbf", "rate", f"{rate}mbit", "burst", "128kb", "limit", "64mb"]
                call(*queue, "replace", "dev", INTERFACE, "root", *shape)


def address(rank: int) -> str:
    """Of an end, seen in its namespace only."""
    return f"10.0.0.{rank + 1}"


def call(*words: str) -> None:
    """Raises OSError with what the program says where it fails."""
    process = subprocess.run(words, capture_output=True, text=True)
    if process.returncode:
        raise OSError(f"{' '.join(words)}: {process.stderr.strip()}")


@contextmanager
def start_link(words: Sequence[str]) -> Iterator[Link]:
    """Both processes, ready to take steps. At the end they are killed."""
    processes = []
    group = {"MASTER_ADDR": address(0), "MASTER_PORT": "29500", "WORLD_SIZE": str(PROCESSES)}
    group |= {"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}
    try:
        for rank in range(PROCESSES):
            line = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", sys.executable, __file__, "--serve", *words]
            environment = {**os.environ, **group, "RANK": str(rank)}
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            processes.append(subprocess.Popen(line, env=environment, start_new_session=True, **pipes))
        link = Link(processes)
        link.answers()
        link.connect()
        link.ask("connected")
        yield link
    finally:
        for process in processes:
            process.kill()
            process.wait()


def waits(sizes: ModelSizes, case: Case, speed: float, forward_s: float, backward_s: float) -> float:
    """Seconds of a step that the formula does not hide, at so many bytes a second."""
    work = Work(round(TERA * forward_s), round(TERA * (forward_s + backward_s)))  # at one TFLOP/s
    hardware = Hardware(peak_tflops=1, mfu=1, node=1, network_gb_s=speed / GIGA)
    sizes = replace(sizes, work=work, recomputed=False)
    seconds = cost(sizes, hardware, case.strategy, PROCESSES, 1, case.accumulation).waits_s  # type: ignore[arg-type]
    assert seconds is not None
    return seconds


def unhidden(sizes: ModelSizes, case: Case, speeds: Speeds) -> float:
    """Seconds of the bytes of the formula, in one collective after another."""
    if case.strategy == "ddp":
        return replica_bytes(sizes, PROCESSES)[0] / speeds.all_reduce
    scattered = sent(FP32 * sum(group.elements(PROCESSES, trained=True) for group in sizes.groups), PROCESSES)
    gathered = shard_bytes(sizes, PROCESSES, case.accumulation)[0] - scattered
    return gathered / speeds.all_gather + scattered / speeds.reduce_scatter


class Round(NamedTuple):
    """Everything at one rate."""

    speeds: Speeds
    steps: dict[Case, Step]


def measure(link: Link, args: argparse.Namespace) -> dict[float, list[Round]]:
    """By rate; the slower process counts."""
    rates = [UNLIMITED, *args.rates]
    rounds: dict[float, list[Round]] = {rate: [] for rate in rates}
    for number in range(args.rounds):
        for rate in [*rates[number % len(rates) :], *rates[: number % len(rates)]]:
            link.limit(rate)
            speeds = Speeds(*map(min, zip(*link.measure("collectives", [BUCKET]), strict=True)))
            answers = {case: link.measure("steps", [*case, args.steps]) for case in CASES}
            steps = {case: Step(*map(max, zip(*pair, strict=True))) for case, pair in answers.items()}
            rounds[rate].append(Round(speeds, steps))
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    return rounds


def show(args: argparse.Namespace, rounds: dict[float, list[Round]]) -> None:
    """Prints a line of each rate, and a table."""
    dry = dry_task(config(args, PLAIN))
    sizes = model_sizes(dry.task.model, dry.task.blocks(), dry.engine_settings(), None)
    plain = [each.steps[PLAIN] for each in rounds[UNLIMITED]]
    print(
        f"{sizes.weights():,} weights, micro-batch {dry.cfg.DATA.batch_size}, {dry.cfg.TRAIN.precision}, {args.rounds} "
        f"rounds of {args.steps} steps; forward pass {spread([step.forward_s for step in plain], '.2f')} s, "
        f"backward pass {spread([step.backward_s for step in plain], '.2f')} s"
    )
    for rate, each in rounds.items():
        alone = zip(Speeds._fields, zip(*(one.speeds for one in each), strict=True), strict=True)
        texts = [f"{name} {spread([speed / MBIT for speed in values], '.0f')}" for name, values in alone]
        print(f"{name_of(rate)}, collectives of {DistributedSettings.bucket_mb:g} MiB alone: {', '.join(texts)} Mbit/s")
    print("\n| | Mbit/s | MB sent | a step, s | added, s | formula, s | added / formula | nothing hidden, s |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        for rate, each in rounds.items():
            steps = [one.steps[case] for one in each]
            cells = [str(case), name_of(rate), f"{median(step.sent for step in steps) / 1e6:.1f}"]
            cells += [spread([step.seconds for step in steps], ".2f")]
            cells += compare(sizes, case, rate, each, rounds[UNLIMITED]) if rate != UNLIMITED else ["", "", "", ""]
            print(f"| {' | '.join(cells)} |")


def name_of(rate: float) -> str:
    """In words."""
    return "no limit" if rate == UNLIMITED else f"{rate:g}"


def compare(sizes: ModelSizes, case: Case, rate: float, limited: list[Round], free: list[Round]) -> list[str]:
    """Seconds added, those of the formula, their ratio, and those where nothing is hidden, over rounds."""
    added, formula, plain = [], [], []
    for one, base in zip(limited, free, strict=True):
        passes = base.steps[PLAIN].forward_s, base.steps[PLAIN].backward_s
        added.append(one.steps[case].seconds - base.steps[case].seconds)
        speed = base.speeds.all_reduce
        formula.append(waits(sizes, case, rate * MBIT, *passes) - waits(sizes, case, speed, *passes))
        plain.append(unhidden(sizes, case, one.speeds) - unhidden(sizes, case, base.speeds))
    ratios = [seconds / predicted for seconds, predicted in zip(added, formula, strict=True)]
    return [spread(added, ".2f"), spread(formula, ".2f"), spread(ratios, ".2f"), spread(plain, ".2f")]


def main() -> int:
    """Exit codes: 0 done, 2 something for the user to mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=[400.0, 1600.0], help="default: 400 1600")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=1, help="of a case in a round; default: %(default)s")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    args = parser.parse_intermixed_args()
    if args.serve:
        serve(args)
        return 0
    missing = [name for name in TOOLS if shutil.which(name) is None]
    try:
        if missing or os.geteuid() != 0:
            raise OSError(f"this needs root, and {', '.join(missing or TOOLS)}")
        with start_link(sys.argv[1:]) as link:
            rounds = measure(link, args)
        show(args, rounds)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
