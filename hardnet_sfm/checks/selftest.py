"""Runs all main steps on small synthetic photos and compares the results with independent reference values."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.checks.findings import Finding
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.fingerprints import match_fingerprints
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import FEATURES, MATCHES, FeatureStore, MatchStore, feature_arrays, match_arrays, pair_key
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.keypoints import Keypoints, Matches
from hardnet_sfm.resources import Resources
from hardnet_sfm.textures import make_texture
from hardnet_sfm.verbs.extract import extract
from hardnet_sfm.verbs.match import MatchOptions, match
from hardnet_sfm.verbs.pair import pair

_SIZE = (400, 300)
_SCENES, _VIEWS = 3, 2
_WORDS = 1024
_PATCHES = 32
_POINTS, _CAMERAS = 200, 4
_FOCAL_LENGTH = 420.0


def self_test(resources: Resources | None = None) -> list[Finding]:
    """Describes, matches, searches and maps, and compares with float64, brute force and the truth in a few seconds.

    A step that raises any error is reported as broken.
    """
    resources = resources or Resources()
    with TemporaryDirectory(prefix="hardnet-sfm-doctor-") as scratch:
        place = Workspace(Path(scratch) / "out")
        photos = Path(scratch) / "photos"
        steps: tuple[tuple[str, Callable[[], str]], ...] = (
            ("describe", lambda: _describe(resources)),
            ("extract", lambda: _extract(photos, place, resources)),
            ("match", lambda: _match(place, resources)),
            ("retrieve", lambda: _retrieve(place, resources)),
            ("map", lambda: _map(Path(scratch) / "points", resources)),
        )
        return [_tried(name, step) for name, step in steps]


class _Wrong(Exception):
    """A result differs from its reference value."""


def _tried(name: str, step: Callable[[], str]) -> Finding:
    what, start = f"self test: {name}", time.perf_counter()
    try:
        said = step()
    except _Wrong as wrong:
        hint = "Results on this machine cannot be trusted. Please report it, with the output of `hardnet-sfm doctor`."
        return Finding(what, "broken", str(wrong), hint)
    except Exception as error:
        hint = "Install the package again in a fresh environment. If it fails again, please report it."
        return Finding(what, "broken", f"{type(error).__name__}: {error}", hint)
    return Finding(what, "ok", f"{said} ({time.perf_counter() - start:.1f} s)")


def _texture(seed: int) -> NDArray[np.uint8]:
    """Makes a grey photo with shapes of all sizes."""
    return np.asarray(
        cv2.cvtColor(make_texture(*_SIZE, 1.0, np.random.default_rng(seed)), cv2.COLOR_BGR2GRAY), np.uint8
    )


def _homography(seed: int) -> NDArray[np.float64]:
    """Draws a (3, 3) homography from a scene's first photo to its second: a rotation, a slight shrinking and a tilt."""
    draw = np.random.default_rng(seed)
    middle = (np.array(_SIZE) - 1) / 2
    turned = cv2.getRotationMatrix2D(middle.tolist(), draw.uniform(10, 30), draw.uniform(0.8, 0.95))
    tilt = draw.uniform(-2e-4, 2e-4, 2)
    return np.vstack([turned, [*tilt, 1 - tilt @ middle]])


def _describe(resources: Resources) -> str:
    """Compares HardNet as this package runs it, folded and in the fast type, with its plain layers in float64."""
    import torch

    from hardnet_sfm.features.descriptors import PatchDescriber, make_descriptor
    from hardnet_sfm.files.weight_files import find_weights, read_weights
    from hardnet_sfm.networks.device import resolve_device
    from hardnet_sfm.networks.hardnet import PATCH_SIZE, HardNet
    from hardnet_sfm.networks.loading import SHIPPED, load_into

    photo, corners = _texture(0), np.random.default_rng(0).integers(0, min(_SIZE) - PATCH_SIZE, (_PATCHES, 2))
    patches = np.stack([photo[y : y + PATCH_SIZE, x : x + PATCH_SIZE] for x, y in corners])
    describe = PatchDescriber(make_descriptor("hardnet", None), resolve_device(resources.device))
    ours = describe(patches).astype(np.float64)
    network = HardNet()
    load_into(network, read_weights(find_weights(SHIPPED["hardnet"])), "hardnet")
    with torch.inference_mode():
        standard = torch.from_numpy(patches).double()[:, None] / 255
        deviation, mean = torch.std_mean(standard, dim=(1, 2, 3), keepdim=True)
        described = network.double().eval().features((standard - mean) / deviation).flatten(1).numpy()
    cosines = np.sum(ours * described, 1) / np.linalg.norm(described, axis=1) / np.linalg.norm(ours, axis=1)
    said = f"{_PATCHES} patches in {describe.precision}, cosine to float64 {cosines.min():.5f} or more"
    if not cosines.min() > 0.995:
        raise _Wrong(said)
    return said


def _extract(photos: Path, place: Workspace, resources: Resources) -> str:
    """Makes pairs of photos that are related by a known homography, and extracts their features."""
    photos.mkdir()
    for scene in range(_SCENES):
        first = _texture(scene)
        second = cv2.warpPerspective(first, _homography(scene), _SIZE, flags=cv2.INTER_AREA, borderValue=128)
        for view, grey in enumerate((first, second)):
            cv2.imwrite(str(photos / f"{scene}-{view}.png"), grey)
    report = extract(photos, place.features, ExtractOptions(max_keypoints=1000), resources)
    if report.photos != _SCENES * _VIEWS or report.skipped:
        raise _Wrong(f"{report.photos} of {_SCENES * _VIEWS} photos read: {report.skipped}")
    return f"{report.keypoints} keypoints in {report.photos} photos"


def _match(place: Workspace, resources: Resources) -> str:
    """Compares matches with brute force and with the homographies of the photos."""
    pair(place.features, place.pairs)
    match(place.features, place.pairs, place.matches, MatchOptions(), resources)
    residuals: list[NDArray[np.float64]] = []
    with FeatureStore(place.features) as features, MatchStore(place.matches) as matches:
        for first, second in matches.pairs():
            found = matches.matches(first, second).pairs
            expected = _brute_force(features.descriptors(first), features.descriptors(second), features.max_ratio())
            if not np.array_equal(found, expected):
                raise _Wrong(f"{first} and {second}: {len(found)} matches, but brute force finds {len(expected)}")
            if first[0] == second[0]:
                one, other = (features.keypoints(name).xy for name in (first, second))
                mapped = cv2.perspectiveTransform(one[None, found[:, 0]].astype(np.float64), _homography(int(first[0])))
                residuals.append(np.linalg.norm(mapped[0] - other[found[:, 1]], axis=1))
    distances = np.concatenate(residuals)
    right, median = float((distances < 3).mean()), float(np.median(distances))
    said = (
        f"same as brute force; {100 * right:.1f} % of {len(distances)} are in the right place, {median:.2f} px off "
        "(median)"
    )
    if len(distances) < 100 * _SCENES or right < 0.9 or median > 0.4:
        raise _Wrong(said)
    return said


def _brute_force(first: NDArray[np.float16], second: NDArray[np.float16], ratio: float) -> NDArray[np.int64]:
    """Finds (M, 2) mutual nearest neighbours that pass the ratio test in both directions."""
    one, other = first.astype(np.float64), second.astype(np.float64)
    distances = np.sqrt(np.maximum(2 - 2 * one @ other.T, 0))
    near, back = distances.argmin(1), distances.argmin(0)
    rows = np.flatnonzero(back[near] == np.arange(len(one)))

    def passed(table: NDArray[np.float64]) -> NDArray[np.bool_]:
        two = np.partition(table, 1, axis=1)[:, :2]
        return np.asarray(two[:, 0] < ratio * two[:, 1])

    rows = rows[passed(distances)[rows] & passed(distances.T)[near[rows]]]
    return np.stack([rows, near[rows]], 1)


def _retrieve(place: Workspace, resources: Resources) -> str:
    """Compares words with brute force and scores with dense tf-idf vectors.

    The first result of a query must be the other view of its scene.
    """
    from hardnet_sfm.index_folder import open_index
    from hardnet_sfm.retrieval.scoring import Query, score_bow, score_he
    from hardnet_sfm.verbs.index import index
    from hardnet_sfm.verbs.vocabulary import VocabularyOptions, vocabulary

    vocabulary(place.features, place.vocabulary, VocabularyOptions(words=_WORDS, iterations=3), resources)
    index(place.features, place.vocabulary, place.index, resources=resources)
    opened = open_index(place.index, resources, thorough=True).lists
    with FeatureStore(place.features) as features:
        descriptors = {name: features.descriptors(name).astype(np.float64) for name in opened.names}
    centroids = opened.vocabulary.centroids.astype(np.float64)
    counts = np.zeros((len(opened.names), _WORDS))
    for row, name in enumerate(opened.names):
        distances = (centroids**2).sum(1) - 2 * descriptors[name] @ centroids.T
        words = opened.vocabulary.assign(descriptors[name])[:, 0]
        # Two words may be equally near up to rounding.
        worse = np.take_along_axis(distances, words[:, None].astype(np.int64), 1)[:, 0] - distances.min(1)
        if worse.max() > 1e-5:
            raise _Wrong(f"{name}: words that are not the nearest: {int((worse > 1e-5).sum())} of {len(words)}")
        counts[row] = np.bincount(words, minlength=_WORDS)
    weighted = counts * np.log((len(counts) + 1) / np.maximum((counts > 0).sum(0), 1))
    lengths = np.maximum(np.linalg.norm(weighted, axis=1), 1e-12)
    expected = weighted @ weighted.T / lengths / lengths[:, None]
    for row, name in enumerate(opened.names):
        geometry = np.zeros((len(descriptors[name]), 4), np.float32)
        query = Query.of(opened.vocabulary, descriptors[name], geometry, 1)
        off = float(np.abs(score_bow(opened, query) - expected[row]).max())
        if off > 1e-6:
            raise _Wrong(f"{name}: scores of words are {off:.1e} from those of dense vectors")
        best = [opened.names[photo] for photo in opened.rank(score_he(opened, query), 2)]
        if {one[0] for one in best} != {name[0]}:
            raise _Wrong(f"{name}: its scene is not found first, but {', '.join(best)}")
    return f"{_WORDS} words, same scores as brute force; each scene found by its other view"


def _map(folder: Path, resources: Resources) -> str:
    """Projects points into known cameras without noise and maps them. The mapper must recover the cameras."""
    from hardnet_sfm.evaluation.poses import pose_errors
    from hardnet_sfm.reconstruction.map_options import MapOptions
    from hardnet_sfm.verbs.map import map_photos

    place, photos = Workspace(folder / "out"), folder / "photos"
    photos.mkdir(parents=True)
    truth = _made_up_views(photos, place)
    width, height = _SIZE
    params = f"{_FOCAL_LENGTH},{width / 2},{height / 2}"
    options = MapOptions(camera_mode="single", camera_model="SIMPLE_PINHOLE", camera_params=params, fix_intrinsics=True)
    model = map_photos(place, options, resources)
    errors = pose_errors(model.cam_from_world(), truth)
    if errors.missing:
        raise _Wrong(f"{len(errors.missing)} of {_CAMERAS} cameras were not recovered")
    said = f"{_CAMERAS} of {_CAMERAS} cameras recovered, {errors.relative.max():.4f} degrees off at most"
    if not errors.relative.max() < 0.05:
        raise _Wrong(said)
    return said


def _made_up_views(photos: Path, place: Workspace) -> dict[str, NDArray[np.float64]]:
    """Writes empty photos, the features of projected points and all matches. Returns the true poses."""
    draw = np.random.default_rng(0)
    points = draw.uniform((-2, -1.5, 8), (2, 1.5, 12), (_POINTS, 3))
    poses: dict[str, NDArray[np.float64]] = {}
    place.root.mkdir()
    with StoreWriter(place.features, FEATURES) as writer:
        for number in range(_CAMERAS):
            name, turn = f"{number}.png", 0.1 * (number - 1.5)
            rotation = np.array([[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]])
            centre = np.array([10 * np.sin(turn), 0.3 * (number % 2), 10 - 10 * np.cos(turn)])
            poses[name] = np.column_stack([rotation, -rotation @ centre])
            cv2.imwrite(str(photos / name), np.zeros(_SIZE[::-1], np.uint8))
            seen = (points - centre) @ rotation.T
            # Pixel centres are at whole numbers in this package, and the principal point is the middle of the photo.
            xy = _FOCAL_LENGTH * seen[:, :2] / seen[:, 2:] + (np.array(_SIZE) - 1) / 2
            ones = np.ones(_POINTS, np.float32)
            arrays = feature_arrays(
                Keypoints(xy.astype(np.float32), ones, 0 * ones, ones), np.zeros((_POINTS, 128), np.float16), _SIZE
            )
            writer.put(name, name, arrays, {"photo_sha256": "", "exif_orientation": 1, "keypoints": _POINTS})
        writer.commit(list(poses), {"images": str(photos), "names": list(poses), "options": {}, "skipped": {}})
    rows = np.arange(_POINTS, dtype=np.int32)
    same = Matches(np.stack([rows, rows], 1), np.ones(_POINTS, np.float32))
    with StoreWriter(place.matches, MATCHES) as writer:
        pairs = list(combinations(poses, 2))
        for first, second in pairs:
            facts: dict[str, str | int] = {"name0": first, "name1": second, "matches": _POINTS}
            mark = match_fingerprints({})(first, second)
            writer.put(pair_key(first, second), mark, match_arrays(same, _POINTS), facts)
        writer.commit([pair_key(*names) for names in pairs], {"options": {}, "pairs": ""})
    return poses
