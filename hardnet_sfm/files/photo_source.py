"""The photos of a folder by their names, in the forms in which the algorithms ask for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.files.photo_files import exif_orientation, list_photos, read_colours, read_photo, read_small, size_of
from hardnet_sfm.photos import Photo


@dataclass(frozen=True)
class PhotoFolder:
    """A `hardnet_sfm.photos.PhotoSource` of the files in a folder. Absolute names lead to photos elsewhere."""

    path: Path

    def names(self) -> list[str]:
        return list_photos(self.path)

    def photo(self, name: str) -> Photo:
        return read_photo(self.path / name)

    def colours(self, name: str) -> NDArray[np.uint8]:
        return read_colours(self.path / name)

    def small(self, name: str, longest_side: int) -> NDArray[np.uint8]:
        return read_small(self.path / name, longest_side)

    def size(self, name: str) -> tuple[int, int]:
        return size_of(self.path / name)

    def orientation(self, name: str) -> int:
        try:
            return exif_orientation((self.path / name).read_bytes())
        except OSError:
            return 1
