"""EncodedSource: base of the sources whose images are the contents of image files, wherever these lie."""

from abc import abstractmethod
from pathlib import Path

from mim.data.decoding.images import decode, decode_reduced
from mim.data.sources.base import NeedOf, Source, Stored


class EncodedSource(Source):
    """A source that finds an image file, or its bytes, for each image. To write one, implement `_content`."""

    chooses_channels = True

    @abstractmethod
    def _content(self, index: int) -> Path | bytes:
        """The bytes of an image file, or its path. Raises BrokenImage where they cannot be read."""

    def read(self, index: int) -> Stored:
        return decode(self._content(index), self.settings.channels, self.say, self.settings.selection)

    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        settings = self.settings
        return decode_reduced(self._content(index), settings.channels, need_of, self.say, settings.selection)
