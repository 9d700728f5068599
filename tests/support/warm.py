"""Real processes without the seconds that importing PyTorch takes: forked from one that has imported all.

Each is a process of its own, with a command of mim and its own files, which signals reach as any other.
"""

import contextlib
import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from processes import RECIPE, TINY, Keys, arguments, tool

SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parents[1]
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
ENDS_AS_PYTHON = "ENDS_AS_PYTHON"


@dataclass(frozen=True)
class Process:
    """One that was forked; its output goes to a file."""

    server: "Warm"
    pid: int
    log: Path

    @property
    def code(self) -> int | None:
        """As Popen.returncode: None while it runs, -9 after SIGKILL."""
        return self.server.ask(poll=self.pid)

    @property
    def text(self) -> str:
        return self.log.read_text()

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.code) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"still running after {timeout} s:\n{self.text}")
            time.sleep(0.01)
        return code


class Warm:
    """The process that forks, which starts with the first that is asked of it. A context manager."""

    def __enter__(self) -> Self:
        self.codes: dict[int, int] = {}
        return self

    def __exit__(self, *_: object) -> None:
        if "server" in self.__dict__:
            self.server.stdin.close()
            self.server.wait()

    @cached_property
    def server(self) -> subprocess.Popen:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(SUPPORT))),
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, __file__], env=environment, cwd=ROOT, **pipes)

    def ask(self, **request: object) -> int | None:
        if request.get("poll") in self.codes:
            return self.codes[request["poll"]]
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        if "poll" in request and answer is not None:
            self.codes[request["poll"]] = answer
        return answer

    def start(
        self,
        words: Sequence[str],
        log: Path,
        program: str | Path = "train",
        folder: Path = ROOT,
        **environment: str,
    ) -> Process:
        """A command of mim, or a script, with these arguments.

        Args:
            program: the name of a command, or the path of a Python file.
            folder: where it runs.
            environment: variables that the process has beside those of the tests; with ENDS_AS_PYTHON the interpreter
                is taken down at the end, as after a script, which else is spared.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        where = {"log": str(log), "program": str(program), "folder": str(folder)}
        return Process(self, self.ask(start=[str(word) for word in words], environment=environment, **where), log)

    def run(self, ranks: int, output: Path, keys: Keys, recipe: Path = RECIPE, **environment: str) -> tuple[int, str]:
        """Exit code, the same of all ranks, and output of a training run that must end by itself."""
        words, log = arguments(output, keys, recipe), output.parent / f"{output.name}.log"
        return self.run_program("train", ranks, words, log, **environment)

    def run_program(
        self, program: str | Path, ranks: int, words: Sequence[str], log: Path, **environment: str
    ) -> tuple[int, str]:
        """The same of any program."""
        if ranks == 1:
            processes = [self.start(words, log, program, **environment)]
        else:
            processes = self.ranks(ranks, words, log, program, **environment)
        codes, text = [process.wait() for process in processes], "".join(process.text for process in processes)
        assert len(set(codes)) == 1, f"ranks ended with {codes}:\n{text}"
        return codes[0], text

    def ranks(
        self, size: int, words: Sequence[str], log: Path, program: str | Path = "train", **environment: str
    ) -> list[Process]:
        """One on each rank, each started by itself as on a machine of its own: no torchrun ends the others."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
        return [
            self.start(words, log.with_suffix(f".{rank}.log"), program, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
            for rank in range(size)
        ]


# ---------------------------------------------------------------- the process that forks


def _serve() -> None:
    import sklearn.datasets  # noqa: F401
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401

    import mim.run  # noqa: F401

    _build_once()
    gc.collect()
    gc.freeze()  # no process looks through what the imports made, or copies its pages to do so
    forked = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            assert _threads() <= {"python", "jemalloc_bg_thd"}, f"a fork keeps one thread of {_threads()}"
            answer = os.fork()
            if answer == 0:
                _run(**request)
            forked.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in forked:  # of tests that were cut short
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _build_once() -> None:
    """Imports, and keeps for all processes, what a run reads of the registries before its first step."""
    from mim import build

    tool("train")
    cfg = build.load_config(RECIPE, TINY)
    build.build_task(cfg, *build.build_data(cfg))


def _threads() -> set[str]:
    """Names of this process's threads; that of jemalloc, which pyarrow starts, knows how to fork."""
    names = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert len(names) == len(os.listdir("/proc/self/task"))
    return {"python" if name.startswith("python") else name for name in names}


def _run(program: str, start: list[str], log: str, folder: str, environment: dict[str, str]) -> None:
    code: object = 70
    try:
        os.setsid()
        os.chdir(folder)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # none outlives tests that were themselves killed
        os.environ.update(environment)
        sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for standard, descriptor in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
            os.dup2(descriptor, standard)
        if program.endswith(".py"):
            sys.argv = [program, *start]
            runpy.run_path(program, run_name="__main__")
            code = 0
        else:
            sys.argv = [f"tools/{program}.py", *start]
            code = tool(program).main(start)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if ENDS_AS_PYTHON in environment:
        sys.exit(code)
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve()
