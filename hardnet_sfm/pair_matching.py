"""Matches pairs of photos whose features are in a store, by nearest neighbours or by a network for patches."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hardnet_sfm.arrays import Grey
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.fingerprints import read_described
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.keypoints import Keypoints, Matches, PhotoPair
from hardnet_sfm.photos import resize_to_fit

if TYPE_CHECKING:  # torch takes seconds to import
    from hardnet_sfm.matching.nearest import Acceptance
    from hardnet_sfm.matching.rescore import Rules
    from hardnet_sfm.networks.architectures import LoadedNetwork

FindMatches = Callable[[PhotoPair], Matches]

# Number of photos whose prepared descriptors stay in memory. A keypoint takes 0.8 KB in int8 or 1.5 KB in float32, so
# 64 photos of 8192 keypoints take at most 0.8 GB.
_PHOTOS_AT_HAND = 64


def match_by_descriptors(store: FeatureStore, accept: Acceptance, device: str) -> tuple[FindMatches, int]:
    """Returns a function that matches a pair by nearest neighbours, and the number of photos it keeps in memory.

    The function raises HardnetSfmError if the descriptors of the photos differ in length.
    """
    from hardnet_sfm.matching.nearest import PreparedDescriptors, mutual_nearest_neighbours, prepare, rounding_for

    counts = store.counts()
    richest = max(counts, key=counts.__getitem__)
    rounding = rounding_for(store.descriptors(richest), device)

    @lru_cache(_PHOTOS_AT_HAND)
    def descriptors(name: str) -> PreparedDescriptors:
        rows = store.descriptors(name)
        if rows.shape[1] != len(rounding.centre):
            raise HardnetSfmError(
                f"{store.path}: descriptors of {richest} and {name} differ in length",
                "Extract all photos with one --descriptor, into another workspace.",
            )
        return prepare(rows, rounding)

    def find_matches(pair: PhotoPair) -> Matches:
        return mutual_nearest_neighbours(descriptors(pair[0]), descriptors(pair[1]), accept)

    return find_matches, _PHOTOS_AT_HAND


def match_by_network(
    store: FeatureStore, images: Path, network: LoadedNetwork, rules: Rules, device: str
) -> tuple[FindMatches, int]:
    """Returns a function that matches a pair by a network's scores, and the number of photos it keeps in memory.

    The function raises HardnetSfmError if a photo is missing, or is not the one that features were extracted from.
    """
    from hardnet_sfm.matching.rescore import PHOTOS_AT_HAND, Rescorer

    def shrunk(name: str) -> tuple[Grey, Keypoints]:
        photo = read_described(store, images, name)
        # As in `extract`, which found keypoints and cut patches in shrunken photos.
        grey = resize_to_fit(photo.grey, int(store.header["options"]["max_image_size"]))
        return grey, store.keypoints(name).resized(photo.size, (grey.shape[1], grey.shape[0]))

    return Rescorer(store.descriptors, shrunk, network, rules, device), PHOTOS_AT_HAND


def order_by_blocks(pairs: list[PhotoPair], names: list[str], at_hand: int) -> list[PhotoPair]:
    """Orders pairs by blocks of photos so that the photos in memory serve many consecutive pairs.

    A block has half as many photos as stay in memory, so both blocks of a pair fit.
    """
    block = {name: number // (at_hand // 2) for number, name in enumerate(names)}
    return sorted(pairs, key=lambda pair: sorted((block[pair[0]], block[pair[1]])))
