"""Converting weights between formats."""

from dataclasses import replace
from pathlib import Path

import torch
import yaml

from mim import init_weights
from mim.build.encoders import bare_encoder, config_of, guess_line, override_plugins
from mim.config import Overrides
from mim.interop import WeightsFormat, read
from mim.interop.class_names import BIAS
from mim.interop.formats import ENCODER
from mim.interop.initialise import match_weights
from mim.interop.names import fold_names
from mim.io.formatting import list_names


def convert(source: Path, target: Path, to: str, source_format: str = "", overrides: Overrides = ()) -> list[str]:
    """Writes the weights of a file or folder in another format, and returns a report in lines.

    Args:
        source: the file or folder to read.
        target: the file or folder to write.
        to: the name of the format to write.
        source_format: the name of the format to read; empty recognises it.
        overrides: config keys that the source does not hold.

    Raises ValueError where the source cannot be read, cannot be written in that format, lacks a key that is needed, or
    holds too little of an encoder. Nothing is written then.
    """
    file = init_weights.weights_file(source)
    files = file.iterdir() if file.is_dir() else ()
    if target.resolve() in [path.resolve() for path in (source, file, *files)]:
        raise ValueError(f"OUT {target} is also the input: name another file")
    WeightsFormat.named(to)().check_target(target)
    weights = override_plugins(read(file, "IN", source_format), overrides)
    plugins = init_weights.import_plugins(weights, tuple(weights.sections))
    cfg = config_of(replace(weights, sections={**weights.sections, "PLUGINS": list(plugins)}), overrides)
    with torch.device("meta"):
        matched, report = match_weights(bare_encoder(cfg), weights, "IN")
    others = {name: weight for name, weight in weights.state.items() if not name.startswith(ENCODER)}
    state = {**{ENCODER + name: weight for name, weight in matched.items()}, **others}
    complete = replace(weights, state=state, sections=yaml.safe_load(cfg.to_yaml()))
    target.parent.mkdir(parents=True, exist_ok=True)
    written = WeightsFormat.named(to)().write(complete, target)
    first, *rest = report.lines()
    lines = [first, f"  loaded: {fold_names(matched)}", *rest]
    if guesses := guess_line(cfg, weights, overrides):
        lines.append(f"  {guesses}")
    if others:
        lines.append(f"  and after the encoder: {fold_names(others)}")
    if BIAS in others:
        named = list_names(weights.classes) if weights.classes else "no names in the file, so they are numbered"
        lines.append(f"  {len(others[BIAS]):,} classes: {named}")
    lines.append(f"{target} ({to}): {len(state) - len(written.left_out)} weights written")
    if written.left_out:
        lines.append(f"  unknown to that format, left out: {fold_names(written.left_out)}")
    return [*lines, f"  to load: {written.usage}"]
