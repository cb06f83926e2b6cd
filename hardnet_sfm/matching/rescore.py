"""Matches by a network that compares patches: it scores the short list of each keypoint again."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardnet_sfm.arrays import Grey
from hardnet_sfm.keypoints import Keypoints, Matches, PhotoPair
from hardnet_sfm.networks.architectures import LoadedNetwork
from hardnet_sfm.networks.loading import scorer_of
from hardnet_sfm.patches import extract_patches

# Number of photos whose patches stay in memory, described or as pixels: 2 or 4 KB a keypoint, so at most 0.5 GB with
# 8192 keypoints each.
PHOTOS_AT_HAND = 16
SHORT_LIST = 5  # neighbours of a keypoint to score; `match --short-list` has the same default
# Values of a similarity matrix that are computed at once.
_VALUES = 2**24


@dataclass(frozen=True)
class Rules:
    """Which pairs of patches are scored and accepted.

    Attributes:
        short_list: k, number of neighbours of a keypoint.
        max_distance: largest L2 distance of descriptors on a short list.
        min_score: smallest score of a match.
        max_ratio: largest ratio of the odds; 1 accepts any.
    """

    short_list: int = 5
    max_distance: float = 2.0
    min_score: float = 0.0
    max_ratio: float = 0.8


class Rescorer:
    """Matches two photos by the scores that a network gives to pairs of their patches.

    Each keypoint has a short list: its nearest neighbours in the other photo by the descriptors. The
    network scores the pairs on the short lists of both photos. A match must be the best of both its keypoints, and its
    score must be at least `min_score`. The odds of a pair are exp of its score. The odds of the next best pair of
    either keypoint must be at most `max_ratio` times those of the match.

    Patches are cut from the photos by the frames of the keypoints, as large as in the training of the network. The
    result depends neither on other pairs nor on the number of threads.

    Lower bound: the network describes each keypoint once and compares each candidate. Photos with N0 and N1 keypoints
    have between k max(N0, N1) and k (N0 + N1) candidates. The lists take 4 N0 N1 D operations. With 8192 keypoints each
    and k = 5 there are 41 to 82 thousand comparisons. They take 3.4 TFLOP with deepcompare-2ch (42 MFLOP each), 6.6
    with deepcompare-2ch2stream, 0.13 with matchnet and 0.04 with deepcompare-siam. The last two need 3.1 and 0.6 more
    for the descriptions of the two photos, once for all pairs of a photo. The nearest neighbours alone take 0.02. A
    core with bfloat16 compares 4000 pairs a second with deepcompare-2ch and 1800 with deepcompare-2ch2stream. It
    describes 1400 patches a second with matchnet and 5400 with deepcompare-siam.

    Args:
        descriptors: gives the (N, D) float16 descriptors of a photo's keypoints.
        shrunk: gives the (H, W) upright photo as small as keypoints were found in, and its keypoints in these pixels.
        loaded: the network.
        rules: which pairs are scored and accepted.
        device: "cpu" or "cuda".

    Raises:
        UsageError: the network describes patches.
    """

    def __init__(
        self,
        descriptors: Callable[[str], NDArray[np.float16]],
        shrunk: Callable[[str], tuple[Grey, Keypoints]],
        loaded: LoadedNetwork,
        rules: Rules,
        device: str = "cpu",
    ) -> None:
        self._descriptors, self._shrunk = descriptors, shrunk
        self._rules, self._scorer, self._device = rules, scorer_of(loaded, device), torch.device(device)
        self._photo = lru_cache(PHOTOS_AT_HAND)(self._patches_of)
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)

    def __call__(self, pair: PhotoPair) -> Matches:
        """Matches two photos."""
        rules = self._rules
        descriptors = [
            torch.from_numpy(np.ascontiguousarray(self._descriptors(name))).to(self._device).float() for name in pair
        ]
        candidates = short_lists(descriptors[0], descriptors[1], rules.short_list, rules.max_distance)
        scores = self._scores(pair, candidates) if len(candidates) else np.zeros(0, np.float32)
        counts = len(descriptors[0]), len(descriptors[1])
        return best_of_both(candidates.cpu().numpy(), scores, counts, rules.min_score, rules.max_ratio)

    def _scores(self, pair: PhotoPair, candidates: Tensor) -> NDArray[np.float32]:
        sides = []
        for side, name in enumerate(pair):
            with self._locks[name]:  # two threads that need the same photo must not both describe it
                sides.append(self._photo(name, side % self._scorer.sides))
        return self._scorer(sides[0], sides[1], candidates)

    def _patches_of(self, name: str, side: int) -> Tensor:
        """Returns the tensor that the network keeps of the patches of a photo."""
        grey, found = self._shrunk(name)
        cut = extract_patches(grey, found.xy, found.frames(), self._scorer.patch_size, self._scorer.measurement_size)
        return self._scorer.prepare(cut, side)


def short_lists(first: Tensor, second: Tensor, count: int, max_distance: float = 2.0) -> Tensor:
    """Finds pairs of descriptors in which one is among the nearest neighbours of the other.

    Args:
        first, second: (N0, D) and (N1, D) float32 of about unit length.
        count: number of neighbours on either side; all of them if there are fewer.
        max_distance: largest L2 distance.

    Returns:
        (M, 2) int64 row numbers, sorted, each pair once.
    """
    forth, back = _nearest(first, second, count, max_distance), _nearest(second, first, count, max_distance)
    # Integers sort a hundred times as fast as rows do.
    numbers: Tensor = torch.cat([forth, back.flip(1)]) @ forth.new_tensor([len(second), 1])
    numbers = torch.unique(numbers)
    return torch.stack([numbers // len(second), numbers % len(second)], 1) if len(second) else forth


def _nearest(queries: Tensor, others: Tensor, count: int, max_distance: float) -> Tensor:
    """Returns (M, 2) row numbers of queries and of their nearest neighbours."""
    found = [torch.zeros((0, 2), dtype=torch.long, device=queries.device)]
    rows = torch.arange(len(queries), device=queries.device)
    for block in torch.split(rows, max(1, _VALUES // max(1, len(others)))):
        similarity, nearest = (queries[block] @ others.T).topk(min(count, len(others)), dim=1)
        close = (2 - 2 * similarity).clamp(min=0).sqrt() <= max_distance
        found.append(torch.stack([block[:, None].expand_as(nearest)[close], nearest[close]], 1))
    return torch.cat(found)


def best_of_both(
    candidates: NDArray[np.int64],
    scores: NDArray[np.float32],
    counts: tuple[int, int],
    min_score: float,
    max_ratio: float,
) -> Matches:
    """Selects the candidates that are the best of both their keypoints and stand out, see `Rescorer`.

    Args:
        candidates: (M, 2) row numbers in the two photos.
        scores: (M,), logarithms of odds.
        counts: numbers of keypoints of the two photos.
        min_score: smallest score of a match.
        max_ratio: largest ratio of the odds of a keypoint's next best candidate to those of its best.

    Returns:
        Matches in the order of the first photo's keypoints. Their scores are probabilities, 1 / (1 + exp(-score)).
    """
    accepted = scores >= min_score
    for side in (0, 1):
        accepted &= leads(candidates, scores, side, counts[side]) >= -math.log(max_ratio)
    chosen = np.flatnonzero(accepted)
    chosen = chosen[np.argsort(candidates[chosen, 0], kind="stable")]
    probabilities = 1 / (1 + np.exp(-scores[chosen].astype(np.float64)))
    return Matches(candidates[chosen].astype(np.int32), probabilities.astype(np.float32))


def leads(candidates: NDArray[np.int64], scores: NDArray[np.float32], side: int, count: int) -> NDArray[np.floating]:
    """Computes by how much the best candidate of each keypoint of one photo stands out.

    Args:
        candidates: (M, 2) row numbers in the two photos.
        scores: (M,), logarithms of odds.
        side: 0 for the keypoints of the first photo, 1 for those of the second.
        count: number of these keypoints.

    Returns:
        (M,) leads in score over the keypoint's next best candidate. The lead is infinite if there is no other
        candidate, and -infinite for candidates that are not the best. If scores are equal, the candidate with the
        smaller number on the other side is best.
    """
    order = np.lexsort((candidates[:, 1 - side], -scores, candidates[:, side]))
    keypoint, ordered = candidates[order, side], scores[order]
    ends = np.searchsorted(keypoint, np.arange(count + 1))
    starts = ends[:-1][ends[:-1] < ends[1:]]
    # The candidate after a keypoint's best is its next best, or the best of another keypoint. The last has no
    # successor.
    following = np.minimum(starts + 1, len(order) - 1)
    rivalled = (following > starts) & (keypoint[following] == keypoint[starts])
    found = np.full(len(order), -np.inf)
    found[order[starts]] = np.where(rivalled, ordered[starts] - ordered[following], np.inf)
    return found
