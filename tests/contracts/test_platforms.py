"""Systems without what only POSIX has, such as Windows: they import, load and train in one process all the same."""

import ast
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import ROOT

import mim

FILES = sorted([*Path(mim.__file__).parent.rglob("*.py"), *(ROOT / "tools").rglob("*.py")])
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
NAMES = {  # of modules that Windows has
    "os": {
        *("O_CLOEXEC", "O_DIRECTORY", "O_NONBLOCK", "O_SYNC", "WNOHANG", "chown", "chroot", "confstr", "fchmod"),
        *("fdatasync", "fork", "forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getpriority"),
        *("getuid", "killpg", "lchown", "mkfifo", "mknod", "nice", "pread", "pwrite", "register_at_fork"),
        *("sched_getaffinity", "sched_setaffinity", "sched_yield", "sendfile", "setpgid", "setpriority", "setsid"),
        *("setuid", "statvfs", "sync", "sysconf", "uname", "wait3", "wait4", "waitstatus_to_exitcode"),
    },
    "signal": {
        *("SIGALRM", "SIGBUS", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGTSTP"),
        *("SIGUSR1", "SIGUSR2", "alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait"),
    },
    "select": {"POLLERR", "POLLHUP", "POLLIN", "epoll", "kqueue", "poll"},
}
BEHIND_A_CHECK = {
    *(("mim/cli.py", "select.POLLERR"), ("mim/cli.py", "select.POLLHUP")),
    ("mim/engine/background_writer.py", "os.register_at_fork"),
}


def posix_uses(path: str, tree: ast.AST) -> list[str]:
    """What only POSIX has, and a file uses outside `try ... except ImportError` and `getattr`."""
    wrong = []
    guards = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        and any(isinstance(each.type, ast.Name) and each.type.id == "ImportError" for each in node.handlers)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            names_of_module = NAMES.get(node.module or "", set())
            wrong += [f"{path}: {node.module}.{alias.name}" for alias in node.names if alias.name in names_of_module]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if node.attr in NAMES.get(node.value.id, set()) and (path, name) not in BEHIND_A_CHECK:
                wrong.append(f"{path}: {name}")
        wrong += [f"{path}: import {name}" for name in names if name in MODULES and id(node) not in guards]
    return wrong


def without_encoding(path: str, tree: ast.AST) -> list[str]:
    """Text that is read or written in the encoding of the system, which is not UTF-8 on Windows."""
    return [
        f"{path}: line {node.lineno} has no encoding"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in ("read_text", "write_text")
        if "encoding" not in {keyword.arg for keyword in node.keywords}
    ]


def test_what_only_posix_has_is_optional():
    wrong = []
    for path in FILES:
        name, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
        wrong += posix_uses(name, tree) + without_encoding(name, tree)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source",
    [
        "import fcntl",
        "def late():\n    import resource",
        "from termios import tcgetattr",
        "import os\nos.pread(0, 1, 2)",
        "from os import fork",
        "import signal\nNUMBERS = (signal.SIGUSR1,)",
        "import select\nselect.poll()",
        "from pathlib import Path\nPath('a').read_text()",
    ],
)
def test_what_only_posix_has_is_found(source):
    tree = ast.parse(source)
    assert posix_uses("mim/new.py", tree) + without_encoding("mim/new.py", tree)
    optional = ast.parse("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None\ngetattr(os, 'pread', None)")
    assert posix_uses("mim/new.py", optional) == []


WITHOUT_POSIX = """
    import importlib, json, os, pkgutil, select, signal, sys
    from pathlib import Path

    import torch

    # what mim builds on comes first: it has wheels of its own for each system
    for name in {others!r}:
        importlib.import_module(name)

    modules, names = {modules!r}, {names!r}
    for name in modules:
        sys.modules[name] = None
    for module, missing in names.items():
        for name in missing:
            if hasattr(sys.modules[module], name):
                delattr(sys.modules[module], name)
    open_file, replace = os.open, os.replace

    def open_no_folder(path, *more, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return open_file(path, *more, **options)

    def replace_no_open_file(self, target):
        # Windows refuses to rename a file that is open
        links = [os.readlink(link) for link in Path("/proc/self/fd").glob("*") if link.is_symlink()]
        assert os.path.abspath(self) not in links, self
        replace(self, target)

    os.open, Path.replace = open_no_folder, replace_no_open_file

    import mim
    for each in pkgutil.walk_packages(mim.__path__, "mim."):
        if not each.name.endswith("__main__"):
            importlib.import_module(each.name)
    for path in Path("tools/mim_toolkit").glob("*.py"):
        importlib.import_module("mim_toolkit." + path.stem)

    from mim_toolkit.train import main
    output = Path(sys.argv[1])
    words = ["--config", "quickstart/mae_digits", "--output", str(output), "DATA.workers", "0", *sys.argv[2:]]
    assert main(words) == 0
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] > 0 and "peak_memory_bytes" not in summary, summary
    encoder = mim.load_encoder(output)
    print("features", tuple(encoder(torch.zeros(2, 1, 32, 32)).pooled("mean").shape))
    assert main(words) == 0  # the finished run is found again
"""


def other_modules() -> list[str]:
    """What the files import of other packages, without POSIX's modules and extras that are not installed here."""
    names = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
    names = {name for name in names if name.split(".")[0] not in {"mim", "mim_toolkit", "playwright", *MODULES}}
    return sorted(name for name in names if find_spec(name.split(".")[0]))


@pytest.mark.slow
def test_all_modules_load_and_a_run_trains_without_what_only_posix_has(tmp_path):
    from processes import TINY

    script = textwrap.dedent(WITHOUT_POSIX)
    for field, value in (("others", other_modules()), ("modules", sorted(MODULES)), ("names", NAMES)):
        script = script.replace(f"{{{field}!r}}", repr(value))
    keys = [str(word) for key, value in TINY.items() for word in (key, value)]
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run"), *keys],
        cwd=ROOT, env=path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    assert "features (2, 16)" in process.stdout
