"""Model cards: a Hugging Face folder with the encoder of a run, and a card that says what its run folder says."""

from mim.lab.card.folder import Request, write_folder

__all__ = ["Request", "write_folder"]
