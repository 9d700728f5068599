"""Export: a model as a program of ONNX or PyTorch, compared with the model before the file gets its name.

Shapes: B batch, C channels, H W pixels, N tokens, D width, K prefix tokens, S scores, h w entries of a map.
"""

import importlib
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mim.data.preprocess import Preprocess
from mim.encoders import Encoder
from mim.io.files import write_atomically
from mim.io.formatting import list_names
from mim.ops.attention import attention_kernels
from mim.readouts import Predictor
from mim.registry import one_of

ONNX, PT2 = ".onnx", ".pt2"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # that ONNX needs
OPSET = 20  # of ONNX's operators
INPUT, SCORES = "images", "scores"
METADATA = "mim.json"  # the file in a .pt2 that holds the metadata
FREE = ({0: torch.export.Dim("batch")},)
EXAMPLE = 2  # images of the batch that is exported: torch.export takes a batch of 1 for a constant
BATCHES = (1, 3, 8)  # at which a program is compared with its model
TOLERANCE = 1e-4  # in parts of the largest value of an output
MOST_ONNX = 2**31 - 2**24  # bytes of weights; protobuf allows 2 GiB, of which the graph takes a part

Outputs = dict[str, Tensor]
Run = Callable[[Tensor], Outputs]


class Program(nn.Module):
    """A model as a function from float32 images (B, C, H, W) to named tensors: what a file holds.

    Of a predictor these are `scores` (B, S), of masks (B, S, h, w). Features of an encoder are `tokens` (B, N, D), the
    patch tokens row by row; `prefix` (B, K, D), class token and registers; `pooled` (B, D), the mean of the patch
    tokens.

    Args:
        model: in eval mode: an encoder, or a predictor with one readout. It must see whole images.
        features: names of what an encoder returns, in this order; none for all.
        preprocess: normalises images, whose values are from 0 to 1, inside of the program; None where they come
            normalised.

    Raises ValueError where the model hides cells, has no such features, or has weights of another type than float32.
    """

    def __init__(self, model: Encoder | Predictor, features: Sequence[str] = (), preprocess: Preprocess | None = None):
        super().__init__()
        encoder: Encoder = model if isinstance(model, Encoder) else model.encoder
        if encoder.hidden != "none":
            raise ValueError(
                f"ENCODER.hidden is {encoder.hidden}: an exported encoder sees whole images, so it must be none"
            )
        _check_types([model] if isinstance(model, Encoder) else [encoder, *model.readouts])
        self.model, self.preprocess, self.image, self.title = model, preprocess, encoder.image, encoder.title
        possible = ("tokens", *(["prefix"] if encoder.spec.num_prefix else []), "pooled")
        for name in features:
            if name not in possible:
                raise ValueError(f"--features names {name!r}, which {self.title} has not: {one_of(name, possible)}")
        self.outputs = (SCORES,) if isinstance(model, Predictor) else tuple(dict.fromkeys(features)) or possible

    def forward(self, images_BCHW: Tensor) -> Outputs:
        img_BCHW = images_BCHW if self.preprocess is None else self.preprocess(images_BCHW)
        if isinstance(self.model, Predictor):
            (scores,) = self.model(img_BCHW)
            return {SCORES: scores}
        features = self.model(img_BCHW)
        values = {"tokens": features.tokens_BND, "prefix": features.prefix_BKD, "pooled": features.pooled("mean")}
        return {name: values[name] for name in self.outputs}

    def example(self, batch: int) -> Tensor:
        """Noise in place of images, (batch, C, H, W): from 0 to 1, or normal where images come normalised."""
        draw = torch.randn if self.preprocess is None else torch.rand
        generator = torch.Generator().manual_seed(batch)
        return draw(batch, self.image.channels, self.image.height, self.image.width, generator=generator)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a program answers beside its model."""

    runner: str  # what ran the program, with its version
    difference: float  # the largest of all outputs and batches, in parts of the largest value of the output
    shapes: dict[str, tuple[int, ...]]  # of each output, without the batch


def kind_of(path: Path) -> str:
    """What a file of this name holds."""
    return f"ONNX, opset {OPSET}" if path.suffix == ONNX else "torch.export"


def check_file(path: Path) -> None:
    """Raises ValueError where a program cannot be written to a file of this name, or a package for it is missing."""
    if path.suffix not in (ONNX, PT2):
        raise ValueError(f"--output is {path}: name a file that ends in {ONNX} (ONNX) or {PT2} (torch.export)")
    if path.suffix == ONNX:
        try:
            for package in PACKAGES:
                importlib.import_module(package)
        except ImportError as error:
            raise ValueError(
                f"--output {path} needs the packages {', '.join(PACKAGES)} ({error}): pip install "
                f"'mim-toolkit[export]', or name a file that ends in {PT2}"
            ) from error


def write_program(program: Program, path: Path, metadata: Mapping[str, str]) -> Comparison:
    """Writes a program for batches of any size, .onnx or .pt2, once its answers are those of the model.

    Attention is explicit products in ONNX, which has no fused kernel at this opset, and PyTorch's
    scaled_dot_product_attention in a .pt2, which chooses a kernel where it runs.

    Args:
        metadata: texts by name, in the metadata_props of ONNX, or in the file METADATA of a .pt2, as JSON.

    Raises ValueError where the file cannot hold the model, or its answers differ by more than TOLERANCE; nothing is
    then written.
    """
    check_file(path)
    if path.suffix == ONNX:
        _check_size(program, path)
    encode = _encode_onnx if path.suffix == ONNX else _encode_pt2
    with torch.no_grad(), attention_kernels(program.modules(), fused=path.suffix == PT2), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, on its own code
        try:
            exported = torch.export.export(program, (program.example(EXAMPLE),), dynamic_shapes=FREE)
            for node in exported.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this computer, which the file would hold
            content, run, runner = encode(exported, program.outputs, metadata)
        except Exception as error:  # the exporters raise many unrelated types
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{path}: PyTorch cannot export {program.title}: {reason}") from error
        comparison = _compare(program, run, runner)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(content))
    return comparison


def _encode_onnx(
    exported: torch.export.ExportedProgram, outputs: Sequence[str], metadata: Mapping[str, str]
) -> tuple[bytes, Run, str]:
    """The content of a file, the function in it, and what runs it."""
    import onnx
    import onnxruntime

    result = torch.onnx.export(
        exported,
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=list(outputs),
        dynamic_shapes=FREE,  # says the name of the axis
        verbose=False,
    )
    assert result is not None
    model = result.model_proto
    onnx.helper.set_model_props(model, dict(metadata))
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images_BCHW: Tensor) -> Outputs:
        values = session.run(list(outputs), {INPUT: images_BCHW.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(outputs, values, strict=True)}

    return content, run, f"onnxruntime {onnxruntime.__version__}"


def _encode_pt2(
    exported: torch.export.ExportedProgram, outputs: Sequence[str], metadata: Mapping[str, str]
) -> tuple[bytes, Run, str]:
    """The same of PyTorch."""
    file = io.BytesIO()
    torch.export.save(exported, file, extra_files={METADATA: json.dumps(dict(metadata))})
    content = file.getvalue()
    return content, torch.export.load(io.BytesIO(content)).module(), f"PyTorch {torch.__version__}"


def _compare(program: Program, run: Run, runner: str) -> Comparison:
    """Raises ValueError where answers differ, or those of the model are not finite."""
    worst, shapes = 0.0, {}
    for batch in BATCHES:
        images_BCHW = program.example(batch)
        theirs = run(images_BCHW)
        for name, ours in program(images_BCHW).items():
            if not ours.isfinite().all():
                raise ValueError(f"{name} are not finite: the training diverged, so use an earlier checkpoint")
            shapes[name] = tuple(ours.shape[1:])
            largest = ours.abs().max().clamp(min=torch.finfo(ours.dtype).tiny)
            fits = theirs[name].shape == ours.shape
            difference = ((theirs[name] - ours).abs().max() / largest).item() if fits else float("inf")
            if not difference <= TOLERANCE:  # so that NaN is refused
                raise ValueError(
                    f"{name} of a batch of {batch} in {runner} differ from those of the model by {difference:.1e} of "
                    f"the largest value, and {TOLERANCE:.0e} is allowed: nothing was written"
                )
            worst = max(worst, difference)
    return Comparison(runner, worst, shapes)


def _check_types(parts: Sequence[nn.Module]) -> None:
    """Raises ValueError where a weight has another type than float32."""
    weights = [weight for part in parts for weight in part.state_dict().values()]
    others = {str(weight.dtype) for weight in weights if weight.is_floating_point()} - {"torch.float32"}
    if others:
        raise ValueError(
            f"the weights of this model are {list_names(sorted(others))}: programs are exported and compared in "
            "float32, so call model.float() first"
        )


def _check_size(program: Program, path: Path) -> None:
    """Raises ValueError where a file of ONNX cannot hold so many weights."""
    size = sum(each.numel() * each.element_size() for each in program.state_dict().values())
    if size > MOST_ONNX:
        raise ValueError(
            f"--output is {path}: the weights take {size / 2**30:.1f} GiB, and a file of ONNX holds less than 2 GiB: "
            f"name a file that ends in {PT2}"
        )
