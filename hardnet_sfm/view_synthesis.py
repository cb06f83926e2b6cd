"""`match --view-synthesis`: renders photos as if they were tilted, and describes and matches these views.

The method follows MODS (Mishkin, Matas and Perdoch, CVIU 2015). A pair that is matched well stays as it is. For the
other pairs, views of both photos are added step by step, from small tilts to large ones, until enough matches are
verified. The views of a photo are described once, when the first pair needs them, and are kept on disk.

`keypoints-views.h5` holds the keypoints of a photo, followed by those of its views. `matches.h5` then refers to these
rows, and the stage `map` reads them. A keypoint that the photo or an earlier view already has gets no new row, so
tracks connect pairs that were matched with and without views. The rows of a step depend neither on later steps nor on
which pairs were matched.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from threading import RLock
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np

from hardnet_sfm.errors import HardnetSfmError, UsageError, refuse_without
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.fingerprints import read_described, view_fingerprints
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import FeatureStore, keypoint_arrays
from hardnet_sfm.files.workspace import digest, prepare_folder, replacing
from hardnet_sfm.keypoints import Keypoints, Matches, PhotoPair, join_keypoints
from hardnet_sfm.resources import Resources

if TYPE_CHECKING:  # torch and pycolmap take seconds to import; `--help` does not need them
    from hardnet_sfm.features.synthetic_views import DescribedViews
    from hardnet_sfm.matching.nearest import Acceptance, PreparedDescriptors
    from hardnet_sfm.matching.view_matching import PhotoInViews

_TILTS = (2.0, 4.0)
_ROTATION_STEP = 72.0
_ENOUGH = 50
# The limits of COLMAP's own matcher and the defaults of `map`, but always in pixels of the photo as it is.
_MAX_ERROR, _MIN_INLIERS, _SEED = 4.0, 15, 0
# Number of photos whose views stay in memory. A description takes 0.8 KB in int8 and 1.5 KB in float32. With the
# default tilts and 8192 keypoints, a photo takes 40 MB or 74 MB.
_PHOTOS_AT_HAND = 8


@dataclass(frozen=True)
class ViewSynthesisOptions:
    """Matching with synthetic views (MODS, ASIFT)."""

    view_synthesis: bool = False
    """Match pairs with too few verified matches again, with tilted and rotated views of both photos. Use it for photos
    from very different directions. The views of one tilt have 180 / 72 = 2.5 times the area of the photo. So with tilts
    2 and 4 a photo takes 1 + 2.5 + 2.5 = 6 times the time to describe, and a pair takes 6 x 6 = 36 times the time to
    match. Pairs of photos that have nothing in common take all of this time. The descriptions take 6 MB of disk for
    each tilt of a photo with 8192 keypoints."""
    view_tilts: tuple[float, ...] | None = None
    """Tilts of the views, each 1 / cos of an angle. Each tilt is one step, and the steps follow in this order until a
    pair has enough matches. Default 2 4 (60 and 76 degrees)."""
    view_rotation: float | None = None
    """Angle between neighbouring directions at tilt 1, in degrees; at tilt t it is this / t. Lower it for more views.
    Default 72."""
    view_enough: int | None = None
    """Leave a pair as it is if it has this many verified matches. Default 50."""

    def check(self) -> None:
        """Raises UsageError if a value makes no sense or has no effect."""
        if not self.view_synthesis:
            refuse_without(self, ("view_tilts", "view_rotation", "view_enough"), "--view-synthesis")
        tilts = self.tilts
        if not tilts or not all(1 < tilt <= 16 for tilt in tilts):
            raise UsageError("--view-tilts must be above 1 and at most 16")
        if len(set(tilts)) < len(tilts):
            raise UsageError("--view-tilts: the same tilt twice")
        if not 1 <= self.rotation_step <= 180:
            raise UsageError("--view-rotation must be from 1 to 180 degrees")
        if self.enough < _MIN_INLIERS:
            raise UsageError(f"--view-enough must be at least {_MIN_INLIERS}, the fewest that verify a pair")

    @property
    def tilts(self) -> tuple[float, ...]:
        return _TILTS if self.view_tilts is None else self.view_tilts

    @property
    def rotation_step(self) -> float:
        return _ROTATION_STEP if self.view_rotation is None else self.view_rotation

    @property
    def enough(self) -> int:
        return _ENOUGH if self.view_enough is None else self.view_enough

    def recipe(self) -> dict[str, Any]:
        """Returns everything that the matches depend on, for JSON."""
        tilts = [float(tilt) for tilt in self.tilts]
        return {"view_tilts": tilts, "view_rotation": float(self.rotation_step), "view_enough": self.enough}


@dataclass(frozen=True)
class MatchedPair:
    """Matches of a pair of photos.

    Attributes:
        matches: matches as rows of keypoints.
        keypoints: number of keypoints of the first photo.
        view_steps: number of steps of synthetic views that contributed keypoints; 0 for none.
    """

    matches: Matches
    keypoints: int
    view_steps: int = 0


class ViewMatcher:
    """Matches pairs again, with views of both photos, if they have too few verified matches.

    Args:
        views: the photos in their views.
        keypoints: writer of the store for the keypoints of photos and views.
        accept: rule by which a neighbour is accepted.
    """

    def __init__(self, views: PhotoViews, keypoints: StoreWriter, accept: Acceptance) -> None:
        from hardnet_sfm.colmap.two_view import Verification

        self._views, self._writer, self._accept = views, keypoints, accept
        self._store, self._options = views.store, views.options
        self._verification = Verification(_MAX_ERROR, _MIN_INLIERS, _SEED)

    def __call__(self, pair: PhotoPair, found: Matches) -> MatchedPair:
        """Returns the matches of the first step that has enough verified ones, or of the step with most of them.

        Several threads may call it at once.

        Args:
            pair: names of the photos.
            found: matches of the pair without views.
        """
        from hardnet_sfm.matching.view_matching import find_candidates, merge_candidates

        one, other = (self._views.photo(name, 0) for name in pair)
        best, most = MatchedPair(found, len(one.xy), 0), self._verified(pair, one, other, found)
        candidates = found.pairs, found.scores
        for step in range(1, len(self._options.tilts) + 1):
            if most >= self._options.enough:
                break
            done = len(one.views), len(other.views)
            one, other = (self._views.photo(name, step) for name in pair)
            more = find_candidates(one, other, self._accept, done)
            candidates = np.concatenate([candidates[0], more[0]]), np.concatenate([candidates[1], more[1]])
            matches = merge_candidates(one, other, candidates, self._accept)
            verified = self._verified(pair, one, other, matches)
            if verified > most:
                best, most = MatchedPair(matches, len(one.xy), step), verified
        return best

    def _verified(self, pair: PhotoPair, one: PhotoInViews, other: PhotoInViews, matches: Matches) -> int:
        from hardnet_sfm.colmap.two_view import verified_rows

        sizes = self._store.size(pair[0]), self._store.size(pair[1])
        return len(verified_rows(one.xy, other.xy, sizes, matches.pairs, self._verification))

    def keep(self, pair: PhotoPair, view_steps: int) -> None:
        """Stores the keypoints that the matches of the pair refer to, unless they are already stored."""
        for name in pair:
            if view_steps and view_steps > self._kept_steps(name):
                self._keep(name, view_steps)

    def finish(self) -> None:
        """Completes the store of keypoints. The caller completes the matches that refer to it afterwards."""
        names = self._store.names()
        for name in names:
            if self._kept_steps(name) < 0:
                self._keep(name, 0)
        header = {"images": self._store.header["images"], "names": names, "options": self._options.recipe()}
        self._writer.commit(names, header)

    def _kept_steps(self, name: str) -> int:
        """Returns the step up to which keypoints of a photo are stored; -1 if none of the current features are."""
        prints = self._views.fingerprints(name)
        kept = self._writer.fingerprints.get(name)
        return prints.index(kept) if kept in prints else -1

    def _keep(self, name: str, steps: int) -> None:
        keypoints = self._views.keypoints(name, steps)
        arrays = keypoint_arrays(keypoints, self._store.size(name))
        self._writer.put(name, self._views.fingerprints(name)[steps], arrays, {"keypoints": len(keypoints)})


@dataclass(frozen=True, eq=False)
class _Step:
    """One part of a photo, ready for matching: the photo itself, or the views that one step adds."""

    keypoints: Keypoints
    views: tuple[PreparedDescriptors, ...]
    rows: Any


class PhotoViews:
    """Provides photos with their views: describes views on first use, and keeps them on disk and a few in memory.

    Args:
        store: features of the photos.
        images: folder of the photos.
        folder: folder for descriptions of views; made when needed.
        options: the views.
        resources: how much of the machine to use.
        weights: weights of the descriptor, if the photos were not described with the weights in the package.

    Attributes:
        store, options: as given.

    Raises:
        HardnetSfmError: the photos were described with other weights.
    """

    def __init__(
        self,
        store: FeatureStore,
        images: Path,
        folder: Path,
        options: ViewSynthesisOptions,
        resources: Resources,
        weights: Path | None,
    ) -> None:
        from hardnet_sfm.features.synthetic_views import ViewDescriber
        from hardnet_sfm.matching.nearest import rounding_for
        from hardnet_sfm.networks.device import resolve_device

        recipe = store.header["options"]
        self._describe = ViewDescriber(ExtractOptions.of_recipe(recipe, weights), resources)
        if self._describe.recipe != recipe:
            raise HardnetSfmError(
                f"{store.path}: photos were described with other weights "
                f"({str(recipe.get('weights_sha256'))[:16]}...) than their views",
                "Give their file with --weights, or extract features again.",
            )
        self.store, self.options, self._images, self._folder = store, options, images, folder
        counts = store.counts()
        richest = max(counts, key=counts.__getitem__)
        self._rounding = rounding_for(store.descriptors(richest), resolve_device(resources.device))
        self._made_from = store.fingerprints()
        self._locks = {name: RLock() for name in self._made_from}
        steps = len(options.tilts) + 1
        self._step: Callable[[str, int], _Step] = lru_cache(_PHOTOS_AT_HAND * steps)(self._load)

    def fingerprints(self, name: str) -> list[str]:
        """Returns the fingerprints of the photo's keypoints with those of its first 0, 1, 2 ... steps."""
        return view_fingerprints(self.options.recipe(), self._made_from[name])

    def keypoints(self, name: str, steps: int) -> Keypoints:
        """Returns the photo's keypoints, then those of its first `steps` steps.

        With 0 steps they are exactly the keypoints of features.h5.
        """
        parts = [step.keypoints for step in self._steps(name, steps)]
        return join_keypoints(*parts) if steps else parts[0]

    def photo(self, name: str, steps: int) -> PhotoInViews:
        """Returns the photo and the views of its first `steps` steps, ready for matching."""
        from hardnet_sfm.matching.view_matching import PhotoInViews

        parts = self._steps(name, steps)
        views = tuple(view for step in parts for view in step.views)
        rows, xy = (np.concatenate(of) for of in zip(*((step.rows, step.keypoints.xy) for step in parts), strict=True))
        return PhotoInViews(views, rows, xy)

    def _steps(self, name: str, steps: int) -> list[_Step]:
        with self._locks[name]:  # two threads that need the same photo must not both describe it
            return [self._step(name, step) for step in range(steps + 1)]

    def _load(self, name: str, step: int) -> _Step:
        from hardnet_sfm.matching.nearest import prepare

        if step == 0:
            keypoints, descriptors = self.store.keypoints(name), self.store.descriptors(name)
            return _Step(keypoints, (prepare(descriptors, self._rounding),), np.arange(len(keypoints), dtype=np.int32))
        described = self._described(name, step)
        views = np.split(described.descriptors, described.ends[:-1])
        return _Step(described.keypoints, tuple(prepare(view, self._rounding) for view in views), described.rows)

    def _described(self, name: str, step: int) -> DescribedViews:
        """Returns the views that a step adds. It reads them from disk or describes them now."""
        from hardnet_sfm.features.synthetic_views import choose_views

        path = self._folder / f"{digest(name)[:16]}-{step}.npz"
        fingerprint = digest(self.fingerprints(name)[step])
        found = _read(path, fingerprint)
        if found is None:
            photo = read_described(self.store, self._images, name)
            views = choose_views(self.options.tilts[step - 1], self.options.rotation_step)
            found = self._describe(photo, self.keypoints(name, step - 1), views, self.store.turn(name))
            _write(path, fingerprint, found)
        return found


def _write(path: Path, fingerprint: str, described: DescribedViews) -> None:
    arrays = {name: getattr(described, name) for name in ("ends", "rows", "descriptors")}
    arrays |= {field.name: getattr(described.keypoints, field.name) for field in fields(Keypoints)}
    prepare_folder(path.parent)
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(file, fingerprint=np.array(fingerprint), **arrays)


def _read(path: Path, fingerprint: str) -> DescribedViews | None:
    """Reads a stored description; None if it is missing, damaged, or made from other features or views."""
    from hardnet_sfm.features.synthetic_views import DescribedViews

    try:
        with np.load(path, allow_pickle=False) as archive:
            if str(archive["fingerprint"]) != fingerprint:
                return None
            keypoints = Keypoints(*(archive[field.name] for field in fields(Keypoints)))
            return DescribedViews(keypoints, *(archive[name] for name in ("ends", "rows", "descriptors")))
    except (OSError, ValueError, KeyError, EOFError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error):
        return None  # the caller describes the views again
