"""Imports point down, read from the source."""

import ast
from pathlib import Path

import pytest

import mim

ROOT = Path(mim.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ROWS = [  # a unit imports itself and what stands in an earlier row
    {"errors", "metric_keys"},
    {"io"},
    {"structures", "registry", "ops"},
    {"maskers", "encoders", "heads", "losses", "criteria", "data"},
    {"targets"},
    {"engine"},
    {"model", "readouts"},
    {"evaluation", "cost", "interop", "pictures"},
    {"tasks"},
    {"config"},
    {"init_weights"},
    {"build", "resume"},
    {"results"},
    {"run", "evaluate", "convert"},
    {"pretrained", "export"},
    {"lab"},
    {"cli"},
    {"__main__"},
]
LAB_ROWS = [  # the same of the rooms of mim/lab
    {"layout", "console", "masks", "label_metrics"},
    {"dryrun", "reconstruct"},
    {"plan", "benchmark", "comparison"},
    {"study", "watch", "notebook"},
    {"card"},
]
ROW = {unit: height for height, units in enumerate(ROWS) for unit in units}
LAB_ROW = {unit: height for height, units in enumerate(LAB_ROWS) for unit in units}
# the tasks stand above the engine
ENGINE_IMPORTS = {"errors", "metric_keys", "io", "structures", "registry", "ops", "data", "engine"}


def imported(tree: ast.AST, module: str) -> list[str]:
    """Full names of the modules (or names in them) that a file imports anywhere, also inside functions."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: -node.level]
                base = ".".join([*above, base] if base else above)
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def violations(path: str, source: str) -> list[str]:
    """What a file of mim, given by its path below mim/, imports although it must not."""
    unit, *rooms = path.removesuffix(".py").split("/")
    tree = ast.parse(source)
    module = "mim." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if path.endswith("/__init__.py"):
        module += ".__init__"
    wrong = []
    for name in imported(tree, module):
        top, *rest = name.split(".")
        if top == "yacs" and unit != "config":
            wrong.append(f"{path}: only mim/config knows yacs")
        if top != "mim":
            continue
        other = rest[0] if rest else "the whole of mim"
        allowed = other == unit or (other in ROW and ROW[other] < ROW[unit])
        if unit == "engine":
            allowed = other in ENGINE_IMPORTS
        if unit == other == "lab" and len(rest) > 1 and rest[1] != rooms[0]:
            allowed = LAB_ROW[rest[1]] < LAB_ROW[rooms[0]]
        if not allowed:
            wrong.append(f"{path}: imports {name}")
    return wrong


def below(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_imports_point_down():
    wrong = []
    for path in FILES:
        if path == ROOT / "__init__.py":
            continue
        if below(path).split("/")[0].removesuffix(".py") not in ROW:
            wrong.append(f"{below(path)}: a new unit needs a row")
        else:
            wrong += violations(below(path), path.read_text(encoding="utf-8"))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("heads/new.py", "from mim.encoders import ViT"),
        ("heads/new.py", "import mim.encoders.vit"),
        ("heads/new.py", "from ..encoders import ViT"),
        ("heads/__init__.py", "from ..encoders import ViT"),
        ("heads/new.py", "from mim import encoders"),
        ("heads/new.py", "from mim import ViT"),
        ("heads/new.py", "def late():\n    from mim.model import MaskedImageModel"),
        ("model.py", "from mim.tasks.pretrain import Pretrain"),
        ("structures.py", "from mim.registry import Component"),
        ("engine/new.py", "from mim.tasks.supervised import Supervised"),
        ("engine/new.py", "from mim.evaluation.knn import knn_accuracy"),
        ("build.py", "from mim.lab.plan import plan"),
        ("lab/plan/new.py", "from mim.lab.study import read_study"),
        ("lab/dryrun/new.py", "from mim.lab.plan.report import plan"),
        ("engine/new.py", "from mim.tasks.pretrain import Pretrain"),
        ("engine/new.py", "from mim.model import MaskedImageModel"),
        ("engine/new.py", "from mim.maskers import Masker"),
        ("engine/new.py", "from mim.pictures.reconstructions import draw_sheet"),
        ("config/new.py", "from mim import build"),
        ("tasks/new.py", "from yacs.config import CfgNode"),
        ("ops/new.py", "import mim"),
    ],
)
def test_imports_that_point_up_or_aside_are_found(path, source):
    assert violations(path, source) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("heads/new.py", "from mim.heads.base import Head\nfrom .base import Head\nimport mim.ops.patches"),
        ("heads/__init__.py", "from .base import Head"),
        ("engine/new.py", "from mim.data.loading.loader import batches\nfrom mim.io.files import write_text"),
        ("tasks/new.py", "from mim.engine.distributed.world import World"),
        ("lab/study/new.py", "from mim.lab.comparison import compare"),
        ("run.py", "from mim import build, config"),
        ("config/new.py", "from yacs.config import CfgNode"),
        ("tasks/new.py", "import torch\nimport mimetypes\nfrom mim.evaluation.knn import knn_accuracy"),
    ],
)
def test_imports_that_point_down_are_let_through(path, source):
    assert violations(path, source) == []


def test_sources_run_no_strings_and_say_in_their_first_line_what_they_own():
    wrong = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        wrong += [f"{below(path)}: calls {name}" for name in sorted({"eval", "exec"} & calls)]
        if path.stem in {"utils", "util", "helpers"}:
            wrong.append(f"{below(path)}: is named for nothing that it owns")
        if not ast.get_docstring(tree) or not text.startswith('"""'):
            wrong.append(f"{below(path)}: its first line does not say what it owns")
    assert not wrong, "\n".join(wrong)
