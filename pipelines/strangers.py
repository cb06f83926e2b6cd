"""Mixes photos of other places into a scene and counts how many a reconstruction registers. It should be none.

    python pipelines/strangers.py SCENE... --others FOLDER... --workspace DIR --max-ratio 0.9 --max-error 4

Every SCENE is a folder of photos of one place, with the photos in it or in `images/`. Every folder of --others holds
photos of other places, laid out in the same way. A scene and some of the other photos are linked into one folder, which
is reconstructed with the options given. They are spelled as in `hardnet-sfm reconstruct`.

The table also has the verified pairs of a photo of the scene and a photo of another place. They are false. Their number
and their largest number of inliers show how close the options are to registering a wrong photo.

DIR keeps finished stages. A second run with the same options only prints the table again.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from hardnet_sfm.colmap.database import Database
from hardnet_sfm.colmap.model import Model, models_in
from hardnet_sfm.errors import HardnetSfmError, check_least
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.photo_folders import list_photos
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.verbs.match import MatchOptions
from hardnet_sfm.verbs.pair import PairOptions
from hardnet_sfm.verbs.reconstruct import reconstruct

SCENE, OTHERS = "scene", "others"


@dataclass(frozen=True)
class Options:
    """Photos of other places mixed into a scene: how many of them a reconstruction registers."""

    scenes: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SCENE...")]
    """Folders of photos, each of one place."""
    others: tuple[Path, ...]
    """Folders of photos of other places."""
    workspace: Path
    """Folder for the links and the reconstructions, one for each scene."""
    count: int = 20
    """Photos of other places in each scene."""
    photos: int = 0
    """Photos of each scene, evenly spaced in their order. 0: all."""
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    match: MatchOptions = field(default_factory=MatchOptions)
    map: MapOptions = field(default_factory=MapOptions)
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True)
class Outcome:
    """What a reconstruction made of a scene and photos of other places.

    Attributes:
        scene: number of photos of the scene.
        others: number of photos of other places.
        registered: photos of the scene in the largest model.
        others_registered: photos of other places in the largest model.
        others_anywhere: photos of other places in any model that also has photos of the scene.
        points: of the largest model.
        false_pairs: verified pairs of a photo of the scene and one of another place.
        most_inliers: of those pairs, 0 if there are none.
    """

    scene: int
    others: int
    registered: int
    others_registered: int
    others_anywhere: int
    points: int
    false_pairs: int
    most_inliers: int


def link_photos(scene: Path, others: tuple[Path, ...], photos: int, count: int, folder: Path) -> tuple[int, int]:
    """Fills a folder with links to photos of a scene and of other places, and says how many of either there are.

    Raises:
        HardnetSfmError: a folder is missing, or the others hold too few photos.
    """
    chosen = _photos_of(scene)
    if photos:
        chosen = _evenly(chosen, photos)
    shares = [count // len(others) + (number < count % len(others)) for number in range(len(others))]
    strange = [path for place, share in zip(others, shares, strict=True) for path in _evenly(_photos_of(place), share)]
    if len(strange) < count:
        raise HardnetSfmError(
            f"--others: {len(strange)} photos where {count} are asked for", "Give more folders, or a smaller --count."
        )
    shutil.rmtree(folder, ignore_errors=True)
    for kind, paths in ((SCENE, chosen), (OTHERS, strange)):
        (folder / kind).mkdir(parents=True)
        for number, path in enumerate(paths):
            (folder / kind / f"{number:04d}-{path.name}").symlink_to(path.resolve())
    return len(chosen), len(strange)


def _photos_of(place: Path) -> list[Path]:
    folder = place / "images" if (place / "images").is_dir() else place
    return [folder / name for name in list_photos(folder).names]


def _evenly(paths: list[Path], count: int) -> list[Path]:
    """At most so many of the paths, evenly spaced."""
    return [paths[at] for at in np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int).tolist()]


def run(options: Options, scene: Path) -> Outcome:
    """Reconstructs one scene with photos of other places in it."""
    folder = options.workspace / scene.name
    of_scene, of_others = link_photos(scene, options.others, options.photos, options.count, folder / "photos")
    place = Workspace(folder / "out")
    try:
        reconstruct(
            folder / "photos",
            place.root,
            extract_options=options.extract,
            pair_options=options.pair,
            match_options=options.match,
            map_options=options.map,
            resources=options.resources,
        )
        models = [Model.read(path) for path in models_in(place.root)]
    except HardnetSfmError as error:
        if not place.database.is_file():
            raise
        Console(stderr=True).print(f"{scene.name}: {error.message}")
        models = []
    with Database(place.database) as database:
        false = [count for (a, b), count in database.verified().items() if _kind(a) != _kind(b)]
    kinds = [[_kind(name) for name in model.names] for model in models]
    return Outcome(
        of_scene,
        of_others,
        registered=kinds[0].count(SCENE) if kinds else 0,
        others_registered=kinds[0].count(OTHERS) if kinds else 0,
        others_anywhere=sum(some.count(OTHERS) for some in kinds if SCENE in some),
        points=models[0].points if models else 0,
        false_pairs=len(false),
        most_inliers=max(false, default=0),
    )


def _kind(name: str) -> str:
    return name.split("/")[0]


def main() -> None:
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,), registry=flag_rules())
    check_least(options, count=1, photos=0)
    table = Table(title="photos of other places mixed into a scene", title_justify="left")
    for number, column in enumerate(
        (
            *("scene", "photos registered", "points", "others registered", "others in any model of the scene"),
            *("false verified pairs", "most inliers of one"),
        )
    ):
        table.add_column(column, justify="right" if number else "left")
    for scene in options.scenes:
        made = run(options, scene)
        table.add_row(
            scene.name,
            f"{made.registered} of {made.scene}",
            str(made.points),
            f"{made.others_registered} of {made.others}",
            str(made.others_anywhere),
            str(made.false_pairs),
            str(made.most_inliers),
        )
    Console(width=120, highlight=False).print(table)


if __name__ == "__main__":
    with report_errors():
        main()
