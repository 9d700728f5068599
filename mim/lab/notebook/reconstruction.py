"""Reconstructed: a sheet of reconstructions as a notebook shows it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from mim.config import Overrides, read_pairs
from mim.lab.reconstruct import MaskChoice, ReconstructionSheet, reconstruction_sheet
from mim.pictures.channels import Channels
from mim.pictures.files import write_picture
from mim.pictures.reconstructions import percent
from mim.results import Card, CardPicture, CardTable


@dataclass(frozen=True, slots=True, repr=False)
class Reconstructed(ReconstructionSheet):
    """What `mim.reconstruct` returns: a sheet that a notebook shows, with the mean errors."""

    def save(self, path: str | Path) -> Path:
        """Writes the sheet as .png or .jpg, and returns the path. Raises ValueError for another ending."""
        write_picture(Path(path), self.picture_HW3)
        return Path(path)

    def __repr__(self) -> str:
        errors = [
            f"{run} {error:.2f} at {percent(share)} hidden"
            for run in self.runs
            for share, error in self.mean_errors(run)
        ]
        return f"<{type(self).__name__} of {len(self.names)} images, mean error: {', '.join(errors)}>"

    def _repr_html_(self) -> str:
        shares = [share for share, _ in self.mean_errors(next(iter(self.runs)))]
        rows = tuple((run, *(f"{error:.2f}" for _, error in self.mean_errors(run))) for run in self.runs)
        card = Card(
            title="Reconstructions",
            subtitle=f"mean error over hidden pixels, {self.unit}",
            tables=(CardTable(rows, ("run", *(f"{percent(share)} hidden" for share in shares))),),
            pictures=(CardPicture.of_array(self.picture_HW3.numpy(), f"{len(self.names)} images"),),
            notes=tuple(f"{each.name}: {each.path}" for each in self.loaded),
        )
        return card.html()


def reconstruct(
    run: str | Path,
    images: str | Path | Sequence[str | Path] = (),
    *,
    beside: Sequence[str | Path] = (),
    ratios: float | Sequence[float] = (),
    masker: str = "",
    cell: int = 0,
    mask: str | Path | None = None,
    held_out: int | None = None,
    channels: Channels = (),
    seed: int = 0,
    overrides: Overrides = (),
) -> Reconstructed:
    """Draws what pretraining runs predict of images of which a part is hidden.

    Args:
        run: a run folder, a checkpoint, or a file of MAE or SimMIM that holds its decoder.
        images: files and folders; without any, held-out images of the run's data.
        beside: other runs, for images of the same size and channels.
        ratios: hidden shares, a row for each; by default that of the run.
        masker: name of the masker; by default that of the run.
        cell: side of a hidden cell in pixels; by default that of the run.
        mask: instead, a picture that is white where pixels are hidden.
        held_out: how many held-out images, where no images are named; 8 by default.
        channels: as in mim.pictures.channels.view_of.
        seed: of the masks, and of the choice of held-out images.
        overrides: config keys of `run`.

    Raises ValueError where runs, images and masks do not fit each other, and where one cannot be read.
    """
    shares = (float(ratios),) if isinstance(ratios, (int, float)) else tuple(ratios)
    picture = Path(mask) if mask is not None else None
    words = [str(word) for pair in read_pairs(overrides).items() for word in pair]
    sheet = reconstruction_sheet(
        Path(run),
        [Path(path) for path in ([images] if isinstance(images, (str, Path)) else images)],
        beside=[Path(path) for path in beside],
        mask=MaskChoice(masker=masker, cell=cell, ratios=shares, picture=picture),
        channels=channels,
        held_out=held_out,
        seed=seed,
        overrides=words,
    )
    return Reconstructed(**{field.name: getattr(sheet, field.name) for field in fields(sheet)})
