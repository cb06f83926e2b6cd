"""`hardnet_sfm.Index`, an index of photos that is searched with photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError, NoKeypoints, UsageError, check_choice
from hardnet_sfm.features.extraction import ExtractOptions, PhotoDescriber
from hardnet_sfm.files.fingerprints import are_features_of, feature_fingerprint
from hardnet_sfm.files.photo_files import read_photo, sha256_of
from hardnet_sfm.files.photo_hashes import PhotoHashes
from hardnet_sfm.files.workspace import DEFAULT, Workspace
from hardnet_sfm.index_folder import OpenIndex, open_index
from hardnet_sfm.keypoints import Box, Keypoints, RankedImage
from hardnet_sfm.photo_names import as_on_disk
from hardnet_sfm.photos import Photo
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.methods import DEFAULT_METHOD, Method
from hardnet_sfm.retrieval.search import Described, search
from hardnet_sfm.retrieval.segments import geometry_of

_TURNS = (0, 90, 180, 270)


class Index:
    """An open index of photos, to search with photos. `Index.open` makes one.

    Attributes:
        images: folder of the photos when they were indexed.
        options: the options that the photos' features were made with; a query uses them too.

    Raises:
        HardnetSfmError: the index has no photos.
    """

    def __init__(self, index: OpenIndex, weights: Path | None, resources: Resources) -> None:
        if not len(index.lists):
            raise HardnetSfmError(f"{index.folder}: no photos in the index", "Run `hardnet-sfm index IMAGES`.")
        self._folder, self._lists, self._weights, self._resources = index.folder, index.lists, weights, resources
        self._describer: PhotoDescriber | None = None
        self.images = Path(index.manifest.images)
        self.options: dict[str, Any] = index.manifest.options

    @classmethod
    def open(
        cls,
        folder: Path | str = DEFAULT,
        *,
        weights: Path | str | None = None,
        resources: Resources | None = None,
        thorough: bool = False,
    ) -> Index:
        """Opens an index. Its lists stay on disk and are memory-mapped.

        Args:
            folder: folder of the index, or a workspace that contains one.
            weights: weights of the descriptor, if the photos were not described with the weights in the package.
            resources: how much of the machine to use. The answers do not depend on it.
            thorough: verify the checksums of all files of the index, not only of the small ones.

        Raises:
            HardnetSfmError: there is no index, it has no photos, or it is damaged or of another version.

        Examples:
            >>> index = hardnet_sfm.Index.open("hardnet-sfm-out")  # doctest: +SKIP
            >>> [(found.image, found.inliers) for found in index.search("q.jpg", top=2)]  # doctest: +SKIP
            [('a/b.jpg', 141), ('c.jpg', 57)]
        """
        resources = resources or Resources()
        index = open_index(Path(folder), resources, thorough=thorough)
        return cls(index, None if weights is None else Path(weights), resources)

    @property
    def names(self) -> list[str]:
        """Names of the photos, POSIX paths in the image folder."""
        return [name for name, alive in zip(self._lists.names, self._lists.alive, strict=True) if alive]

    @property
    def features(self) -> int:
        """Total number of features of all photos."""
        return self._lists.features

    @property
    def words(self) -> int:
        """Number of visual words."""
        return len(self._lists.vocabulary)

    def changed(self, names: Sequence[str]) -> dict[str, str]:
        """Reads the files of the named photos and says which are "gone" or "changed" since they were indexed."""
        found = {}
        hashes = PhotoHashes(Workspace(self._folder.parent).photo_hashes, self.images)
        for name in names:
            if not as_on_disk(self.images / name).is_file():
                found[name] = "gone"
            elif not are_features_of(self._lists.fingerprints[name], self.options, hashes.sha256(name)):
                found[name] = "changed"
        return found

    def describe(self, image: Path | str | NDArray[np.uint8], bbox: Box | None = None, turn: int = 0) -> Described:
        """Detects and describes a query like the photos of the index; the result serves any number of searches.

        Args:
            image: a file, or (H, W) grey or (H, W, 3) RGB pixels, upright.
            bbox: x0, y0, x1, y1 in pixels of the upright photo; only keypoints whose centre lies in it belong to the
                query. The box is cut off at the border of the photo, and `region` of the result is the remaining part.
            turn: the direction that is upright in the query, degrees as in `Keypoints.oris`; used if photos are
                described upright.

        Raises:
            HardnetSfmError: the file is not a photo, or the photos were described with other weights.
            NoKeypoints: the photo or the box has no keypoints.
            UsageError: the box is empty or outside the photo.
        """
        photo, name = _photo(image)
        region = box_on_photo(bbox, photo.size, name)
        keypoints, descriptors = self._describe(photo, turn)
        x0, y0, x1, y1 = region
        x, y = keypoints.xy.T
        inside = np.flatnonzero((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1))
        if not len(inside):
            where = name if bbox is None else f"{name}: the box"
            raise NoKeypoints(f"{where}: no keypoints in it", "Choose a photo or a box with more detail.")
        return Described(descriptors[inside], geometry_of(keypoints.select(inside)), region)

    def search(
        self,
        image: Path | str | NDArray[np.uint8] | Described,
        top: int | None = 20,
        method: str = DEFAULT_METHOD,
        bbox: Box | None = None,
        min_inliers: int | None = None,
    ) -> list[RankedImage]:
        """Ranks the photos of the index by how likely they show the same thing as the query.

        A photo that lies on its side or upside down finds nothing among photos that are described upright. So the query
        is tried in all quarter turns if no photo is accepted, or if the method does not verify. A photo of the index
        that is the same file as the query comes first.

        Args:
            image: see `describe`. A result of `describe` is searched as it is, without turns.
            top: largest number of photos; None returns all that have anything in common with the query.
            method: one of `METHODS`.
            bbox: see `describe`.
            min_inliers: number of inliers from which on a photo is accepted. None accepts a photo if chance does not
                explain its inliers, see `hardnet_sfm.retrieval.spatial`.

        Returns:
            The ranked photos, best first. `RankedImage.accepted` tells whether a photo shows what the query shows.

        Raises:
            HardnetSfmError, UsageError: see `describe`; or the method is unknown, or `top` is less than 1; or
                `min_inliers` is less than 1, or has no effect because the method does not verify.
        """
        if not isinstance(image, Described):
            return self.answer(image, top, method, bbox, min_inliers)[1]
        if bbox is not None:
            raise UsageError("a box has no effect on a query that is already described", "Give the box to `describe`.")
        _check(method, top, min_inliers)
        return search(self._lists, image, method, top, min_inliers)  # type: ignore[arg-type]

    def answer(
        self,
        image: Path | str | NDArray[np.uint8],
        top: int | None = 20,
        method: str = DEFAULT_METHOD,
        bbox: Box | None = None,
        min_inliers: int | None = None,
    ) -> tuple[Described, list[RankedImage]]:
        """Returns the answer of `search` and the description of the query that gave the best answer."""
        _check(method, top, min_inliers)
        turn, identical = (0, set[str]()) if isinstance(image, np.ndarray) else self._same_file(Path(image))
        described = self.describe(image, bbox, turn)
        if identical:
            return described, _identical_first(self.search(described, None, method, None, min_inliers), identical)[:top]
        best = described, self.search(described, top, method, None, min_inliers)
        if self.options.get("orientation") == "upright" and not any(found.accepted for found in best[1]):
            for turn in _TURNS[1:]:
                described = self.describe(image, bbox, turn)
                found = self.search(described, top, method, None, min_inliers)
                if _strength(found) > _strength(best[1]):
                    best = described, found
        return best

    def _same_file(self, path: Path) -> tuple[int, set[str]]:
        """Returns the photos of the index that are the same file as a query, and the turn that they were described at.

        The turn is 0 and the set is empty if there is none.
        """
        sha256 = sha256_of(path) if path.is_file() else ""
        for turn in _TURNS:
            mark = feature_fingerprint(self.options, sha256, turn)
            if same := {name for name, theirs in self._lists.fingerprints.items() if theirs == mark}:
                return turn, same
        return 0, set()

    def _describe(self, photo: Photo, turn: int) -> tuple[Keypoints, NDArray[np.float16]]:
        if self._describer is None:
            describer = PhotoDescriber(ExtractOptions.of_recipe(self.options, self._weights), self._resources)
            if describer.recipe != self.options:
                raise HardnetSfmError(
                    f"{self._folder}: its photos were described with other weights "
                    f"({str(self.options.get('weights_sha256'))[:16]}...) than the query",
                    "Give their file with --weights, or index the photos again.",
                )
            self._describer = describer
        return self._describer(photo, turn)


def _check(method: str, top: int | None, min_inliers: int | None) -> None:
    """Raises UsageError if an option of a search is invalid or has no effect."""
    check_choice("method", method, Method)
    if top is not None and top < 1:
        raise UsageError("--top must be at least 1")
    if min_inliers is not None and min_inliers < 1:
        raise UsageError("--min-inliers must be at least 1")
    if min_inliers is not None and "+sv" not in method:
        raise UsageError(f"--min-inliers has no effect with --method {method}", "Choose a method with +sv.")


def _identical_first(results: list[RankedImage], identical: set[str]) -> list[RankedImage]:
    """Marks and accepts the photos that are the same file as the query, and puts them first."""
    same = [replace(one, accepted=True, identical=True) for one in results if one.image in identical]
    return same + [one for one in results if one.image not in identical]


def _strength(answer: list[RankedImage]) -> tuple[bool, int, float]:
    """Returns whether a photo is accepted; and the inliers, if the method counts them, and the score of the best."""
    accepted = any(found.accepted for found in answer)
    return (accepted, answer[0].inliers or 0, answer[0].score) if answer else (False, 0, 0.0)


def box_on_photo(bbox: Box | None, size: tuple[int, int], name: str) -> Box:
    """Returns the part of a box that lies on the photo, or the whole photo if the box is None.

    The outermost pixels reach half a pixel beyond their centres.

    Raises:
        UsageError: the box is empty, not finite or outside the photo.
    """
    right, bottom = size[0] - 0.5, size[1] - 0.5
    if bbox is None:
        return -0.5, -0.5, right, bottom
    x0, y0, x1, y1 = bbox
    if not (np.isfinite(bbox).all() and x0 < x1 and y0 < y1):
        raise UsageError(
            f"the box {x0:g} {y0:g} {x1:g} {y1:g} is empty",
            "It is left top right bottom, with left < right and top < bottom.",
        )
    if x1 < 0 or y1 < 0 or x0 > size[0] - 1 or y0 > size[1] - 1:
        raise UsageError(
            f"{name}: the box {x0:g} {y0:g} {x1:g} {y1:g} is outside its {size[0]} x {size[1]} pixels",
            "A box is left top right bottom, in pixels of the upright photo.",
        )
    return max(x0, -0.5), max(y0, -0.5), min(x1, right), min(y1, bottom)


def _photo(image: Path | str | NDArray[np.uint8]) -> tuple[Photo, str]:
    if not isinstance(image, np.ndarray):
        return read_photo(Path(image)), str(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape or image.shape[2:] not in ((), (3,)):
        raise UsageError(
            f"an image of shape {image.shape} and type {image.dtype}: (H, W) or (H, W, 3) uint8 is needed",
            "Read the photo with `images.read_photo`, or convert the array.",
        )
    grey = image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    return Photo(grey, 1, ""), "the image"
