"""Makes small pictures of photos whose total size does not exceed a given number of bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.photos import PhotoSource
from hardnet_sfm.workers import threaded

LARGEST, SMALLEST = 960, 64  # longest side, pixels
_QUALITY = 78
_FIRST_GUESS = 0.16  # typical bytes of WebP for a pixel of a photo
_LEAST_SHARE = 900  # bytes; a smaller picture shows nothing


@dataclass(frozen=True)
class Previews:
    """Pictures of photos.

    Attributes:
        webp: pictures as WebP, by the photo's name.
        missing: maps the name of each photo without a picture to the reason.
    """

    webp: dict[str, bytes]
    missing: dict[str, str]


def make_previews(
    photos: PhotoSource,
    names: Sequence[str],
    budget: int,
    threads: int,
    *,
    largest: int = LARGEST,
    on_photo: Callable[[str], None] | None = None,
) -> Previews:
    """Shrinks every photo until its WebP fits into an equal share of the budget.

    Decoding takes nearly all the time. If an equal share is too small to show anything, only the first photos get a
    picture.

    Args:
        photos: gives the photos.
        names: names of the photos to show.
        budget: number of bytes of all pictures together.
        threads: number of threads to decode with.
        largest: longest side of a picture in pixels.
        on_photo: called with the name of each photo as it is done.
    """
    shown = names[: budget // _LEAST_SHARE]
    share = min(budget // max(1, len(shown)), largest * largest // 2)
    webp: dict[str, bytes] = {}
    missing = dict.fromkeys(names[len(shown) :], "too many photos to show all")
    with threaded(lambda name: _encode_preview(photos, name, share, largest), shown, threads) as made:
        for name, future in made:
            try:
                webp[name] = future.result()
            except HardnetSfmError as error:
                missing[name] = error.message
            if on_photo:
                on_photo(name)
    return Previews(webp, missing)


def _encode_preview(photos: PhotoSource, name: str, share: int, largest: int) -> bytes:
    """Encodes a photo as WebP of at most `share` bytes, as large as possible."""
    side = max(SMALLEST, min(largest, round((share / _FIRST_GUESS) ** 0.5)))
    pixels = Image.fromarray(photos.small(name, side))
    quality = _QUALITY
    while True:
        shrunk = pixels.copy()
        shrunk.thumbnail((side, side), Image.Resampling.BOX)
        buffer = io.BytesIO()
        shrunk.save(buffer, "WEBP", quality=quality, method=2)
        if buffer.tell() <= share or (side == SMALLEST and quality < 10):
            return buffer.getvalue()
        if side > SMALLEST:
            side = max(SMALLEST, int(side * 0.97 * (share / buffer.tell()) ** 0.5))
        else:
            quality //= 2
