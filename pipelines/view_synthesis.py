"""Measures the gain and the cost of matching with view synthesis, on photos of a plane and on a rendered scene.

    python pipelines/view_synthesis.py GRAF --workspace DIR

GRAF is a sequence in the layout of Mikolajczyk et al. (IJCV 2005) or HPatches (CVPR 2017). Its first photo is matched
with each other photo. A match is right if it is within 3 pixels of the true homography. Then the scene of
`hardnet-sfm demo` is rendered, and photos whose viewing directions differ by 60 degrees (`--degrees`) are matched. A
match is right if it is within 3 pixels of the true epipolar lines in both photos. Points that are matched several times
count once, with and without views.

A pair with enough matches without views gets no views. `--view-enough 1000000` takes all steps for every pair.

Pairs are matched one after another. Views of a photo are described for the first of its pairs that needs them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from hardnet_sfm.colmap.two_view import Verification, verified_rows
from hardnet_sfm.errors import UsageError
from hardnet_sfm.evaluation.datasets.sequences import read_sequences
from hardnet_sfm.evaluation.homographies import TOLERANCE, pair_truth
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.features.synthetic_views import relative_area
from hardnet_sfm.files.fingerprints import matched_keypoints
from hardnet_sfm.files.stores import FeatureStore, MatchStore, pair_key
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.keypoints import Matches
from hardnet_sfm.matching.view_matching import keep_one_to_one
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene, render
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.verbs.extract import extract
from hardnet_sfm.verbs.match import MatchOptions, match_photos
from hardnet_sfm.verbs.pair import PairOptions, pair
from hardnet_sfm.view_synthesis import ViewSynthesisOptions

_WITHIN = 5.0  # degrees
VERIFICATION = Verification(max_error=4, min_inliers=15, seed=0)

Pair = tuple[str, str]
Places = NDArray[np.float32]
Right = Callable[[Places, Places], NDArray[np.bool_]]


@dataclass(frozen=True)
class Options:
    """What matching with view synthesis gains and what it costs."""

    sequence: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="GRAF")]
    """Six photos and five homographies."""
    workspace: Path
    """Folder for all that is made. What an earlier run described is not described again, nor is it timed again."""
    degrees: float = 60.0
    """Between the viewing directions of pairs of the rendered scene; they are within 5 degrees of it."""
    pairs: int = 6
    """Of the rendered scene, at most."""
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    match: MatchOptions = field(default_factory=MatchOptions)
    views: ViewSynthesisOptions = field(default_factory=lambda: ViewSynthesisOptions(view_synthesis=True))
    resources: Resources = field(default_factory=Resources)


class Found(NamedTuple):
    """What was matched of one pair.

    Attributes:
        matches: no point twice.
        verified: of all matches.
        right: of `matches`.
        seconds: of CPU, all threads together; other programs on the machine do not count.
        steps: of views.
    """

    matches: int
    verified: int
    right: int
    seconds: float
    steps: int


def match_pair(place: Workspace, names: Pair, right: Right, options: Options, views: ViewSynthesisOptions) -> Found:
    chosen = place.root / "pair.txt"
    chosen.write_text("\t".join(names), encoding="utf-8")
    pair(place.features, place.pairs, PairOptions(pairs_file=chosen))
    place.matches.unlink(missing_ok=True)
    start = time.process_time()
    match_photos(place, options.match, views, options.resources)
    seconds = time.process_time() - start
    with (
        FeatureStore(place.features) as features,
        MatchStore(place.matches) as store,
        matched_keypoints(place.view_keypoints, features, store) as keypoints,
    ):
        xy, sizes = [keypoints.keypoints(name).xy for name in names], [features.size(name) for name in names]
        matches = store.matches(*names)
        steps = int(store.index[pair_key(*names)].get("view_steps", 0))
    verified = len(verified_rows(xy[0], xy[1], (sizes[0], sizes[1]), matches.pairs, VERIFICATION))
    first, second = distinct(matches, xy[0], xy[1])
    return Found(len(first), verified, int(right(first, second).sum()), seconds, steps)


def distinct(matches: Matches, first: Places, second: Places) -> tuple[Places, Places]:
    """Positions of matches in both photos, of those that are at one place the most alike alone."""
    rows = matches.pairs[np.argsort(-matches.scores, kind="stable")]
    first, second = first[rows[:, 0]], second[rows[:, 1]]
    kept = keep_one_to_one(first, second)
    return first[kept], second[kept]


def by_homography(homography: NDArray[np.float64]) -> Right:
    def right(first: Places, second: Places) -> NDArray[np.bool_]:
        return np.linalg.norm(pair_truth(homography, first, second).places - second, axis=1) <= TOLERANCE

    return right


def by_epipolar_lines(scene: Scene, names: Pair) -> Right:
    fundamental = fundamental_matrix(scene, *(scene.names.index(name) for name in names))

    def right(first: Places, second: Places) -> NDArray[np.bool_]:
        # The scene counts pixels from the corner of the top-left pixel.
        one, other = (np.column_stack([xy + 0.5, np.ones(len(xy))]) for xy in (first, second))
        lines, lines_back = one @ fundamental.T, other @ fundamental
        error = np.abs((other * lines).sum(1))
        farthest = np.minimum(np.linalg.norm(lines[:, :2], axis=1), np.linalg.norm(lines_back[:, :2], axis=1))
        return error <= TOLERANCE * farthest

    return right


def fundamental_matrix(scene: Scene, first: int, second: int) -> NDArray[np.float64]:
    """(3, 3) F with x_second^T F x_first = 0 (Hartley and Zisserman, equation 9.12)."""
    one, other = (np.vstack([scene.cam_from_world[number], [0, 0, 0, 1]]) for number in (first, second))
    motion = other @ np.linalg.inv(one)
    x, y, z = motion[:3, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ motion[:3, :3]
    back = np.linalg.inv(scene.calibration)
    return back.T @ essential @ back


def pairs_apart(scene: Scene, degrees: float, most: int) -> list[tuple[Pair, float]]:
    """Pairs of photos whose viewing directions differ by about an angle, none with a photo of another pair, and it."""
    axes = scene.cam_from_world[:, 2, :3]
    angles = np.degrees(np.arccos(np.clip(axes @ axes.T, -1, 1)))
    first, second = np.triu_indices(len(axes), 1)
    taken: set[int] = set()
    found = []
    for one, other in sorted(zip(first.tolist(), second.tolist(), strict=True), key=lambda p: abs(angles[p] - degrees)):
        near = abs(angles[one, other] - degrees) <= _WITHIN
        if near and not taken & {one, other} and len(found) < most:
            taken |= {one, other}
            found.append(((scene.names[one], scene.names[other]), float(angles[one, other])))
    return sorted(found)


def rendered(folder: Path) -> Scene:
    """The scene of the demo, its photos in `scene`; rendered if it is not there."""
    truth = folder / "scene.json"
    if not truth.is_file():
        render(folder / "scene").save(truth)
    return Scene.load(truth)


def compare(images: Path, place: Workspace, pairs: dict[str, tuple[Pair, Right]], options: Options) -> None:
    extract(images, place.features, options.extract, options.resources)
    table = Table(images.name, "views")
    for column in ("matches", "verified", "right", "CPU s"):
        table.add_column(column, justify="right")
    for title, (names, right) in pairs.items():
        for views in (ViewSynthesisOptions(), options.views):
            found = match_pair(place, names, right, options, views)
            how = f"{found.steps} steps" if views.view_synthesis else "none"
            table.add_row(title, how, *map(str, found[:3]), f"{found.seconds:.1f}")
            title = ""
    Console().print(table)


def compare_all(options: Options) -> None:
    tilts, step = options.views.tilts, options.views.rotation_step
    for steps in range(len(tilts) + 1):
        area = relative_area(tilts[:steps], step)
        Console().print(f"{steps} steps: {area:.1f} times the photo's area, {area**2:.0f} times the matching")
    (sequence, *_), _ = read_sequences(options.sequence)
    first, *others = (path.name for path in sequence.photos)
    compare(
        options.sequence,
        Workspace(options.workspace / "sequence"),
        {
            f"1-{number}": ((first, other), by_homography(homography))
            for number, (other, homography) in enumerate(zip(others, sequence.homographies, strict=True), 2)
        },
        options,
    )
    scene = rendered(options.workspace)
    apart = pairs_apart(scene, options.degrees, options.pairs)
    if not apart:
        raise UsageError(
            f"--degrees {options.degrees:g}: no photos are so far apart", "They are on an arc of 115 degrees."
        )
    images = options.workspace / "scene-pairs"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir()
    for name in {name for names, _ in apart for name in names}:
        shutil.copy(options.workspace / "scene" / name, images)
    compare(
        images,
        Workspace(options.workspace / "scene-out"),
        {f"{names[0]} {names[1]} {angle:.0f}°": (names, by_epipolar_lines(scene, names)) for names, angle in apart},
        options,
    )


def main() -> None:
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,), registry=flag_rules())
    with report_errors():
        compare_all(options)


if __name__ == "__main__":
    main()
