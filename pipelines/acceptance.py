"""Compares rules, and their thresholds, that separate right nearest neighbours from wrong ones, for one descriptor.

    python pipelines/acceptance.py WORKSPACE WORKSPACE...

Each workspace has a features.h5, and in `sparse/` a COLMAP model of the same photos, which any program may have made.
All features are of one descriptor. The model's poses are the truth: a mutual nearest neighbour is right if it is within
3 pixels of the epipolar lines in both photos. Some wrong neighbours pass this test by accident. The same neighbours in
a random order show how many, and the table subtracts that share.

A rule looks at both directions of a match. It compares the distance of the two descriptors with that of a rival. The
rival is the second nearest neighbour (Lowe, IJCV 2004), or the nearest one more than 10 pixels away from the match, the
first geometrically inconsistent neighbour (FGINN; Mishkin, Matas and Perdoch, CVIU 2015). Other rules are the distance
alone, and the probability of being right by logistic regression, fitted on the other workspaces. Each rule gets the
threshold with which it accepts as many wrong neighbours as the plain ratio. The numbers of right neighbours are then
comparable.

Hard pairs have 10 to 100 right neighbours. For them, the table has the number of pairs that COLMAP's RANSAC verifies,
and their right inliers. Photos of different workspaces show nothing in common, so no pair of them should be verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from hardnet_sfm.colmap.model import Model, models_in
from hardnet_sfm.colmap.two_view import Verification, verified_rows
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.frames import stored_from_upright
from hardnet_sfm.progress import progress
from hardnet_sfm.terminal import report_errors

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

_TOLERANCE = 3.0  # pixels
_RIVAL_DISTANCE = 10.0  # pixels, as in MODS
_FEW = (10, 100)  # numbers of right neighbours in a hard pair
_FEWEST = 15  # right inliers that a rightly verified pair needs
_STEPS = 30  # steps of Newton's method
# Number of rows of a similarity matrix that are processed at once.
_ROWS = 2048


@dataclass(frozen=True)
class Options:
    """Which rule tells right nearest neighbours from wrong ones, for one descriptor."""

    workspaces: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="WORKSPACE...")]
    """Folders with features.h5 and sparse/, of one descriptor."""
    ratios: tuple[float, ...] = (0.8, 0.9)
    """Of the plain ratio test; the other rules accept as many wrong neighbours."""
    pairs: int = 60
    """Of each workspace, at most; they are chosen at random."""
    unrelated: int = 20
    """Pairs of photos of two workspaces that follow each other, at most."""
    max_error: float = 4.0
    """Of the verification of pairs, pixels."""
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        if len(self.workspaces) < 2:
            raise UsageError("at least two workspaces are needed: a rule is fitted on some and measured on others")
        if not all(0 < ratio <= 1 for ratio in self.ratios):
            raise UsageError("--ratios must be above 0 and at most 1")


class Photo(NamedTuple):
    """A photo's keypoints.

    Attributes:
        xy: (N, 2) float32, pixels of the upright photo, centre of the top-left pixel at (0, 0).
        size: (width, height) of the upright photo.
        descriptors: (N, D) float32.
        rays: (N, 2) x / z and y / z in the camera.
        focal_length: pixels.
        cam_from_world: (3, 4).
    """

    xy: NDArray[np.float32]
    size: tuple[int, int]
    descriptors: torch.Tensor
    rays: Float64
    focal_length: float
    cam_from_world: Float64


class Neighbours(NamedTuple):
    """The K mutual nearest neighbours of a pair of photos.

    Attributes:
        rows: (K, 2) int32.
        distance: (K,) L2 distance of the descriptors.
        ratio: (K,) larger of both directions' ratios of that to the distance of the second nearest.
        fginn: (K,) the same to the nearest that is elsewhere in its photo.
    """

    rows: NDArray[np.int32]
    distance: Float64
    ratio: Float64
    fginn: Float64


@dataclass(frozen=True, eq=False)
class Pair:
    """Two photos, their neighbours, and which of these are right.

    Attributes:
        workspace: number of the first photo's.
        first, second: photos.
        found: mutual nearest neighbours.
        agree: (K,) which are within the tolerance of the epipolar lines.
        chance: share that is so by accident.
        related: whether both are of one workspace.
    """

    workspace: int
    first: Photo
    second: Photo
    found: Neighbours
    agree: Bool
    chance: float
    related: bool

    def right(self) -> Float64:
        """(K,) estimate of how right each is, whose sum is the expected number of right ones."""
        return np.asarray((self.agree - self.chance) / (1 - self.chance), np.float64)

    @property
    def hard(self) -> bool:
        return self.related and _FEW[0] <= self.right().sum() < _FEW[1]


def read_photos(place: Workspace) -> list[Photo]:
    """The photos that are both in the features and in the largest model.

    Raises:
        HardnetSfmError: features or model are missing or damaged, or have fewer than two photos in common.
    """
    model = Model.read(models_in(place.root)[0])
    photos = []
    with FeatureStore(place.features) as store:
        poses = model.cam_from_world()
        for name in (name for name in store.names() if name in poses):
            keypoints, size = store.keypoints(name), store.size(name)
            to_stored = stored_from_upright(store.orientation(name), size)
            image = model.colmap.find_image_with_name(name)
            camera = model.colmap.camera(image.camera_id)
            stored = keypoints.xy.astype(np.float64) @ to_stored[:, :2].T + to_stored[:, 2]
            rays = np.asarray(camera.cam_from_img(stored), np.float64)
            descriptors = torch.from_numpy(np.ascontiguousarray(store.descriptors(name))).float()
            photos.append(Photo(keypoints.xy, size, descriptors, rays, camera.mean_focal_length(), poses[name]))
    if len(photos) < 2:
        raise HardnetSfmError(
            f"{place.root}: fewer than two photos of the features are in the model",
            "Give a workspace whose sparse/0 was mapped from its features.h5.",
        )
    return photos


def nearest_neighbours(first: Photo, second: Photo) -> Neighbours:
    """The mutual nearest neighbours of two photos with their rivals, by brute force in float32."""
    forth, back = _best(first.descriptors, second.descriptors), _best(second.descriptors, first.descriptors)
    rows = np.flatnonzero(back[forth] == np.arange(len(forth))).astype(np.int32)
    pairs = np.stack([rows, forth[rows].astype(np.int32)], 1)
    queries = first.descriptors[pairs[:, 0]], second.descriptors[pairs[:, 1]]
    distance = _distances((queries[0] * queries[1]).sum(1))
    ratios = []
    for reach in (0.0, _RIVAL_DISTANCE):
        rivals = (_rivals(queries[side], (second, first)[side], pairs[:, 1 - side], reach) for side in (0, 1))
        ratios.append(distance / np.minimum(*rivals).clip(1e-6))
    return Neighbours(pairs, distance, *ratios)


def _best(queries: torch.Tensor, others: torch.Tensor) -> NDArray[np.int64]:
    return torch.cat([(rows @ others.T).argmax(1) for rows in torch.split(queries, _ROWS)]).numpy()


def _rivals(queries: torch.Tensor, others: Photo, answers: NDArray[np.int32], reach: float) -> Float64:
    """(K,) distance of each query to the nearest keypoint that is farther than `reach` pixels from its answer."""
    xy, nearest = torch.from_numpy(others.xy), []
    for rows, chosen in zip(torch.split(queries, _ROWS), torch.split(torch.from_numpy(answers), _ROWS), strict=True):
        similarity = rows @ others.descriptors.T
        if reach:
            similarity[torch.cdist(xy[chosen], xy) <= reach] = -1
        else:
            similarity.scatter_(1, chosen.long()[:, None], -1)
        nearest.append(similarity.amax(1))
    return _distances(torch.cat(nearest))


def _distances(similarity: torch.Tensor) -> Float64:
    return np.asarray((2 - 2 * similarity.double()).clamp(min=0).sqrt().numpy())


def epipolar_error(first: Photo, second: Photo, rows: NDArray[np.int32]) -> Float64:
    """(K,) larger of both keypoints' distances to the other's epipolar line, pixels of photos without distortion."""
    rotation = second.cam_from_world[:, :3] @ first.cam_from_world[:, :3].T
    t = second.cam_from_world[:, 3] - rotation @ first.cam_from_world[:, 3]
    essential = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]]) @ rotation
    one, other = (
        np.column_stack([photo.rays[rows[:, side]], np.ones(len(rows))]) for side, photo in enumerate((first, second))
    )
    in_second, in_first = one @ essential.T, other @ essential
    residual = np.abs(np.einsum("kd,kd->k", other, in_second))
    with np.errstate(divide="ignore", invalid="ignore"):  # a point in the epipole has no line
        errors = [
            photo.focal_length * residual / np.hypot(line[:, 0], line[:, 1])
            for photo, line in ((first, in_first), (second, in_second))
        ]
    return np.asarray(np.nan_to_num(np.maximum(*errors), nan=np.inf))


def measure(first: Photo, second: Photo, workspace: int, related: bool, rng: np.random.Generator) -> Pair:
    """A pair with the truth about its neighbours."""
    found = nearest_neighbours(first, second)
    agree, chance = np.zeros(len(found.rows), bool), 0.0
    if related and len(agree):
        agree = epipolar_error(first, second, found.rows) < _TOLERANCE
        shuffled = [np.column_stack([found.rows[:, 0], rng.permutation(found.rows[:, 1])]) for _ in range(10)]
        chance = float(np.mean([epipolar_error(first, second, rows) < _TOLERANCE for rows in shuffled]))
    return Pair(workspace, first, second, found, agree, chance, related)


def all_pairs(options: Options) -> Iterator[Pair]:
    """All pairs within the workspaces, and some of photos of different ones."""
    rng = np.random.default_rng(options.seed)
    photos = [read_photos(Workspace(path)) for path in options.workspaces]
    due = [
        (number, *pair, True)
        for number, of in enumerate(photos)
        for pair in _some(list(combinations(of, 2)), options.pairs, rng)
    ]
    due += [
        (number, *pair, False)
        for number, two in enumerate(pairwise(photos))
        for pair in _some(list(product(*two)), options.unrelated, rng)
    ]
    with progress("neighbours", len(due)) as advance:
        for number, first, second, related in due:
            yield measure(first, second, number, related, rng)
            advance()


def _some(pairs: list[tuple[Photo, Photo]], count: int, rng: np.random.Generator) -> list[tuple[Photo, Photo]]:
    chosen = rng.choice(len(pairs), min(count, len(pairs)), replace=False)
    return [pairs[row] for row in np.sort(chosen)]


def logistic(features: Float64, right: Float64) -> Float64:
    """(F + 1,) weights of log-odds linear in (K, F) features and a constant, by maximum likelihood (Newton)."""
    inputs = np.column_stack([features, np.ones(len(features))])
    weights, ridge = np.zeros(inputs.shape[1]), 1e-6 * np.eye(inputs.shape[1])
    for _ in range(_STEPS):
        probability = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        hessian = (inputs * (probability * (1 - probability))[:, None]).T @ inputs / len(inputs) + ridge
        weights = weights + np.linalg.solve(hessian, inputs.T @ (right - probability) / len(inputs) - ridge @ weights)
    return weights


# The columns that each rule uses. A rule with one column needs no regression.
RULES = {
    "ratio": ("ratio",),
    "FGINN ratio": ("fginn",),
    "distance": ("distance",),
    "ratio and distance": ("ratio", "distance"),
    "FGINN and distance": ("fginn", "distance"),
    "ratio, FGINN, distance": ("ratio", "fginn", "distance"),
}


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule, applied to all pairs.

    Attributes:
        costs: (K,) of the neighbours of each pair; a smaller one is better.
        weights: of a regression, by the number of the workspace that they were not fitted on.
    """

    costs: list[Float64]
    weights: dict[int, Float64] = field(default_factory=dict)


def fit(pairs: list[Pair], columns: tuple[str, ...]) -> Rule:
    """The costs of all neighbours by a rule that is fitted on the other workspaces."""
    inputs = [np.column_stack([getattr(pair.found, name) for name in columns]) for pair in pairs]
    if inputs[0].shape[1] == 1:
        return Rule([of[:, 0] for of in inputs])
    weights = {}
    for held_out in sorted({pair.workspace for pair in pairs}):
        used = [number for number, pair in enumerate(pairs) if pair.workspace != held_out]
        right = np.concatenate([pairs[number].agree for number in used]).astype(np.float64)
        weights[held_out] = logistic(np.concatenate([inputs[number] for number in used]), right)
    costs = [
        -(of @ weights[pair.workspace][:-1] + weights[pair.workspace][-1])
        for of, pair in zip(inputs, pairs, strict=True)
    ]
    return Rule(costs, weights)


def threshold_at(costs: list[Float64], wrong: list[Float64], allowed: float) -> float:
    """The largest cost with which no more than the allowed number of wrong neighbours are accepted."""
    cost, sum_of = np.concatenate(costs), np.concatenate(wrong)
    order = np.argsort(cost, kind="stable")
    accepted = np.searchsorted(np.cumsum(sum_of[order]), allowed, side="right")
    return float(cost[order][min(accepted, len(order)) - 1]) if accepted else -np.inf


class Outcome(NamedTuple):
    """What a rule with one threshold brings.

    Attributes:
        right: neighbours accepted that are right, in all pairs.
        right_hard: in hard pairs.
        wrong_hard: neighbours accepted that are wrong, in hard pairs.
        verified: hard pairs with enough right inliers.
        inliers: right ones of those.
        false: pairs of photos of different workspaces that are verified.
    """

    right: float
    right_hard: float
    wrong_hard: float
    verified: int
    inliers: int
    false: int


def outcome(pairs: list[Pair], accepted: list[Bool], how: Verification) -> Outcome:
    """Counts what comes of accepting some neighbours."""
    right = right_hard = wrong_hard = 0.0
    verified = inliers = false = 0
    for pair, chosen in zip(pairs, accepted, strict=True):
        good = pair.right()[chosen].sum()
        right += good
        if pair.related and not pair.hard:
            continue
        rows = pair.found.rows[chosen]
        kept = verified_rows(pair.first.xy, pair.second.xy, (pair.first.size, pair.second.size), rows, how)
        if not pair.related:
            false += len(kept) > 0
            continue
        right_hard, wrong_hard = right_hard + good, wrong_hard + chosen.sum() - good
        agreeing = int((epipolar_error(pair.first, pair.second, kept) < _TOLERANCE).sum())
        if agreeing >= _FEWEST and agreeing > len(kept) / 2:
            verified, inliers = verified + 1, inliers + agreeing
    return Outcome(right, right_hard, wrong_hard, verified, inliers, false)


def print_table(console: Console, pairs: list[Pair], rules: dict[str, Rule], options: Options) -> None:
    """A line for each rule at each number of wrong neighbours."""
    how = Verification(options.max_error, _FEWEST, options.seed)
    wrong = [1 - pair.right() for pair in pairs]
    table = Table(
        "as many wrong as", "rule", "threshold", "right", "hard: right", "wrong", "verified", "inliers", "false"
    )
    for ratio in options.ratios:
        allowed = sum(float(of[cost < ratio].sum()) for of, cost in zip(wrong, rules["ratio"].costs, strict=True))
        for name, rule in rules.items():
            limit = threshold_at(rule.costs, wrong, allowed)
            found = outcome(pairs, [cost <= limit for cost in rule.costs], how)
            numbers = (*(f"{count:.0f}" for count in found[:3]), *map(str, found[3:]))
            table.add_row(f"ratio {ratio:g}", name, f"{limit:.3f}", *numbers)
    console.print(table)


def main() -> None:
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,), registry=flag_rules())
    options.check()
    console = Console(width=120, highlight=False)
    pairs = list(all_pairs(options))
    related, hard = sum(pair.related for pair in pairs), sum(pair.hard for pair in pairs)
    console.print(f"{related} pairs, {hard} of them hard; {len(pairs) - related} pairs of unrelated photos")
    rules = {name: fit(pairs, columns) for name, columns in RULES.items()}
    print_table(console, pairs, rules, options)
    for name, rule in rules.items():
        for held_out, weights in rule.weights.items():
            console.print(f"{name}, without {options.workspaces[held_out].name}: {np.round(weights, 2).tolist()}")


if __name__ == "__main__":
    with report_errors():
        main()
