"""Reads Oxford5k, Paris6k and their revisited forms from disk: the photos to search, and the queries.

DATASET/images/ (or jpg/)      photos, in any tree of folders; or in DATASET itself
DATASET/gt/ (or lab/)          NAME_query.txt, NAME_good.txt, NAME_ok.txt, NAME_junk.txt
DATASET/gnd_roxford5k.pkl      ground truth of the revisited protocol (gnd_rparis6k.pkl)
DATASET/queries/NAME.jpg       crop of a query's box; only needed if its photo is missing
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from hardnet_sfm.errors import HardnetSfmError, file_error
from hardnet_sfm.evaluation.datasets.parts import LeftOut, check_any, read_parts
from hardnet_sfm.evaluation.datasets.revisited import read_revisited
from hardnet_sfm.evaluation.landmarks import ORIGINAL, LandmarkQuery, Landmarks, Question, Relevance, check_box
from hardnet_sfm.files.clutter import find_files
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.files.photo_folders import EXTENSIONS, list_photos
from hardnet_sfm.photo_names import composed

_LAYOUT = (
    "A data set has photos in images/ (or jpg/), and NAME_query.txt, NAME_good.txt, NAME_ok.txt, NAME_junk.txt in gt/."
)
_OXFORD_PREFIX = "oxc1_"
_SUFFIX = "_query.txt"
LandmarkSetName = Literal["oxford5k", "paris6k", "roxford5k", "rparis6k"]

# The archives of Paris6k have error pages of a web server in place of these photos. All evaluations leave them out.
DAMAGED_PARIS = frozenset(
    f"paris_{name}"
    for name in (
        *("louvre_000136", "louvre_000146", "moulinrouge_000422", "museedorsay_001059", "notredame_000188"),
        *("pantheon_000284", "pantheon_000960", "pantheon_000974", "pompidou_000195", "pompidou_000196"),
        *("pompidou_000201", "pompidou_000467", "pompidou_000640", "sacrecoeur_000299", "sacrecoeur_000330"),
        *("sacrecoeur_000353", "triomphe_000662", "triomphe_000833", "triomphe_000863", "triomphe_000867"),
    )
)


@dataclass(frozen=True)
class LandmarkSet:
    """A data set on disk.

    Attributes:
        name: name of the data set.
        truth: ground truth of the data set.
        images: folder of the photos.
        photos: photos to search. Maps the name in the ground truth to the name in the folder.
        others: photos in the folder that are not searched. Maps their names in the same way.
        crops: files of cropped queries, by the query's name.
    """

    name: LandmarkSetName
    truth: Landmarks
    images: Path
    photos: Mapping[str, str]
    others: Mapping[str, str]
    crops: Mapping[str, Path]

    @property
    def unknown(self) -> list[str]:
        """Photos that the ground truth names but that are not among the photos to search."""
        return sorted(self.truth.named() - self.photos.keys())

    def without(self, unreadable: Collection[str]) -> LandmarkSet:
        """Returns the set without unreadable photos, which are given by their names in the folder."""
        photos = {stem: name for stem, name in self.photos.items() if name not in unreadable}
        return replace(self, photos=photos)

    def questions(self) -> tuple[list[Question], dict[str, str]]:
        """Returns the possible queries, and for the others the reason why not, by the query's name."""
        asked: list[Question] = []
        left_out = dict(self.truth.left_out)
        outside: LeftOut = {}
        for query in self.truth.queries:
            photo = self.photos.get(query.photo) or self.others.get(query.photo)
            if not any(query.relevance[setup].within(self.photos).positives for setup in self.truth.setups):
                left_out[query.name] = "no photo that answers it is there"
            elif photo is not None and query.photo not in DAMAGED_PARIS:
                try:
                    asked.append(self._in_photo(query, self.images / photo))
                except HardnetSfmError as error:
                    outside[query.name] = error
            elif query.name in self.crops:
                asked.append(Question(query, self.crops[query.name], None))
            else:
                left_out[query.name] = "neither its photo nor a crop of it in queries/ is there"
        check_any(asked, outside)
        return asked, left_out | {name: error.message for name, error in outside.items()}

    def _in_photo(self, query: LandmarkQuery, path: Path) -> Question:
        if self.truth.collection is None:
            return Question(query, path, query.box)
        # The revisited protocol crops the box before anything is computed.
        x0, y0, x1, y1 = (max(0, round(value)) for value in query.box)
        crop = read_photo(path).grey[y0:y1, x0:x1]
        if not crop.size:
            raise HardnetSfmError(
                f"{path}: the box of the query {query.name} is outside the photo",
                "The ground truth is of other photos.",
            )
        return Question(query, crop, None)


def open_landmark_set(name: LandmarkSetName, folder: Path) -> LandmarkSet:
    """Reads the ground truth of a data set and lists its photos.

    Raises:
        HardnetSfmError: the ground truth or the photos are missing or damaged, or the ground truth names none of the
            photos.
    """
    images = find_images(folder)
    truth = _read_truth(name, folder)
    names = list_photos(images).names
    if images == folder:
        names = [photo for photo in names if not photo.startswith("queries/")]
    everything = _by_stem(names)
    searched = set(everything) if truth.collection is None else truth.collection & everything.keys()
    if "paris" in name:
        searched -= DAMAGED_PARIS
    photos = {stem: path for stem, path in everything.items() if stem in searched}
    if not truth.named() & photos.keys():
        raise HardnetSfmError(
            f"{images}: none of the photos in the ground truth of {name} are there",
            "Give the folder of the data set that belongs to the ground truth.",
        )
    others = {stem: path for stem, path in everything.items() if stem not in photos}
    crops = [path for path in find_files(folder, "queries/*") if path.suffix.lower() in EXTENSIONS]
    return LandmarkSet(name, truth, images, photos, others, {path.stem: path for path in crops})


def find_images(folder: Path) -> Path:
    """Finds the folder of a data set's photos: `images/` or `jpg/`, else the folder of the data set itself.

    Raises:
        HardnetSfmError: there is no such folder.
    """
    if not folder.is_dir():
        raise HardnetSfmError(f"no such folder: {folder}", "Give the folder of a data set, or of photos.")
    return next((folder / name for name in ("images", "jpg") if (folder / name).is_dir()), folder)


def _read_truth(name: LandmarkSetName, folder: Path) -> Landmarks:
    if not name.startswith("r"):
        return read_landmarks(next((folder / at for at in ("gt", "lab") if (folder / at).is_dir()), folder))
    paths = [folder / at / f"gnd_{name}.pkl" for at in ("", "gt", "lab")]
    return read_revisited(next((path for path in paths if path.is_file()), paths[0]))


def read_landmarks(folder: Path) -> Landmarks:
    """Reads the text files of Oxford5k or Paris6k. Queries with a bad file are left out.

    Raises:
        HardnetSfmError: there are no queries, or a file of every query is missing or damaged.
    """
    paths = find_files(folder, f"*{_SUFFIX}")
    if not paths:
        raise HardnetSfmError(f"{folder}: no ground truth, no files that end in {_SUFFIX}", _LAYOUT)
    queries, left_out = read_parts(((path.name.removesuffix(_SUFFIX), path) for path in paths), _read_query)
    return Landmarks(tuple(queries), (ORIGINAL,), left_out={name: error.message for name, error in left_out.items()})


def _read_query(path: Path) -> LandmarkQuery:
    name = path.name.removesuffix(_SUFFIX)
    words = " ".join(_read_lines(path)).split()
    try:
        photo, x0, y0, x1, y1 = words[0].removeprefix(_OXFORD_PREFIX), *map(float, words[1:])
    except (ValueError, IndexError) as error:
        raise HardnetSfmError(f"{path}: not a query", "It is one line: PHOTO x0 y0 x1 y1.") from error
    good, ok, junk = (frozenset(_read_lines(path.with_name(f"{name}_{which}.txt"))) for which in ("good", "ok", "junk"))
    if both := sorted((good | ok) & junk):
        raise HardnetSfmError(
            f"{path.with_name(f'{name}_junk.txt')}: {both[0]} is also among the good or ok photos",
            "Take the ground truth from the data set again: one of the files has been changed.",
        )
    box = check_box((x0, y0, x1, y1), f"{path}: ")
    return LandmarkQuery(name, photo, box, {ORIGINAL: Relevance(good | ok, junk)})


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise HardnetSfmError(f"{path}: no such file", _LAYOUT) from error
    except (OSError, ValueError) as error:
        raise file_error(path, error, "a text file", "Take the ground truth from the data set again.") from error
    return [composed(line.strip()) for line in lines if line.strip()]


def _by_stem(names: Collection[str]) -> dict[str, str]:
    """Maps the name of each photo without folder and suffix, as in the ground truth, to its name in the folder."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(composed(PurePosixPath(name).stem), name)
        if other != name:
            raise HardnetSfmError(
                f"the photos {other} and {name} have the same name in the ground truth", "Take one out of the folder."
            )
    return found
