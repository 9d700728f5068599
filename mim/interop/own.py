"""Own: weights under the names of an encoder itself, such as a state dict of yours; no format's names."""

from torch import Tensor

from mim.encoders import Encoder
from mim.interop.files import WeightsFile
from mim.interop.formats import ENCODER, ModelWeights
from mim.interop.names import fold_names

UNTOLD = (
    "weights under the names of this config, without one of their own: check what no shape of a weight shows, such as "
    "heads, window, DATA.mean and DATA.std"
)


def own_weights(encoder: Encoder, file: WeightsFile) -> ModelWeights | None:
    """The weights of a file whose names are those of the encoder's state dict; None where none has such a name.

    The names may lack that of the encoder's module which holds them (`blocks.0...` for `backbone.blocks.0...`), and may
    be in a module of the file (`model.backbone.blocks.0...`), beside which others are left out.
    """
    ours = encoder.state_dict()
    modules = ["", *(f"{name}." for name, _ in encoder.named_children())]
    parents = ["", *dict.fromkeys(name.partition(".")[0] + "." for name in file.weights if "." in name)]
    size, parent, module = max(
        ((_fitting(ours, file.weights, parent, module), parent, module) for parent in parents for module in modules),
        key=lambda choice: choice[0],  # of equal ones the first
    )
    if not size:
        return None
    state = {module + name.removeprefix(parent): each for name, each in file.weights.items() if name.startswith(parent)}
    beside = {name: each for name, each in file.weights.items() if not name.startswith(parent)}
    state = {ENCODER + name: each for name, each in state.items()}
    if parent + module == ENCODER:  # a whole model of this toolkit
        return ModelWeights({**state, **beside}, {}, str(file.path), notes=(UNTOLD,))
    notes = (UNTOLD, *([f"beside the encoder, left out: {fold_names(beside)}"] if beside else []))
    return ModelWeights(state, {}, str(file.path), notes=notes)


def _fitting(ours: dict[str, Tensor], theirs: dict[str, Tensor], parent: str, module: str) -> int:
    """Entries of the weights in a module of the file that have the name and the shape of one in a module of ours."""
    names = {name: module + name.removeprefix(parent) for name in theirs if name.startswith(parent)}
    return sum(
        theirs[name].numel() for name, own in names.items() if own in ours and ours[own].shape == theirs[name].shape
    )
