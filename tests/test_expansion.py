"""Query expansion: whole methods against plain Python that follows the definitions, and the grouping against loops."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from collections_of_features import SIZE, Photos, keypoints_of, store_of, unit_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from hardnet_sfm.index_folder import open_index
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.retrieval.grouping import aggregate
from hardnet_sfm.retrieval.methods import Method
from hardnet_sfm.retrieval.scoring import Query
from hardnet_sfm.retrieval.search import multiple_of, score
from hardnet_sfm.retrieval.segments import geometry_of, pack_geometry, unpack_geometry
from hardnet_sfm.retrieval.spatial import Verified, verify
from hardnet_sfm.verbs.index import index
from hardnet_sfm.verbs.vocabulary import VocabularyOptions, vocabulary

Feature = tuple[int, int]  # a word, and the signature in it
REGION = (150.0, 90.0, 470.0, 400.0)
QUERY = "query"


def two_scenes() -> Photos:
    """Five photos of one scene and three of another, each with some of its features and some of no scene, and a query.

    The query is a sixth photo of the first scene.
    """
    random = np.random.default_rng(4)
    scenes = [(unit_rows(random, 90), keypoints_of(random, 90)) for _ in range(2)]
    photos: dict[str, tuple[Keypoints, np.ndarray]] = {}
    for number, scene in enumerate([0, 1, 0, 0, 1, 0, 1, 0, 0]):
        stock, keypoints = scenes[scene]
        rows = np.sort(random.permutation(90)[:55])
        turn, zoom = random.uniform(-15, 15), random.uniform(0.7, 0.9)
        cos, sin = zoom * math.cos(math.radians(turn)), zoom * math.sin(math.radians(turn))
        middle = np.array(SIZE) / 2
        xy = (keypoints.xy[rows] - middle) @ np.array([[cos, sin], [-sin, cos]]) * 0.7 + middle
        noise = keypoints_of(random, 15)
        joined = Keypoints(
            np.concatenate([xy, noise.xy]).astype(np.float32),
            np.concatenate([keypoints.scales[rows] * zoom * 0.7, noise.scales]).astype(np.float32),
            np.concatenate([(keypoints.oris[rows] + turn) % 360, noise.oris]).astype(np.float32),
            np.concatenate([keypoints.scores[rows], noise.scores]).astype(np.float32),
        )
        descriptors = np.concatenate([stock[rows], unit_rows(random, 15)]).astype(np.float32)
        descriptors += 0.02 * random.standard_normal(descriptors.shape)
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        photos[f"{number}.jpg"] = joined, descriptors.astype(np.float16)
    photos[QUERY] = photos.pop("8.jpg")
    return photos


@dataclass(frozen=True)
class Collection:
    """What plain Python knows of an index: features of its photos, and where they are as the index has it."""

    features: Mapping[str, Sequence[Feature]]
    xy: Mapping[str, np.ndarray]

    @cached_property
    def idf(self) -> Mapping[int, float]:
        having = Counter(word for photo in self.features.values() for word in {word for word, _ in photo})
        return defaultdict(float, {word: math.log((len(self.features) + 1) / count) for word, count in having.items()})

    def vector(self, counts: Mapping[int, float]) -> dict[int, float]:
        return {word: count * self.idf[word] for word, count in counts.items()}

    def length(self, name: str) -> float:
        return math.hypot(*self.vector(Counter(word for word, _ in self.features[name])).values())


def words_scores(collection: Collection, counts: Mapping[int, float]) -> dict[str, float]:
    """Cosines of vectors of tf idf."""
    mine = collection.vector(counts)
    scores = {}
    for name, photo in collection.features.items():
        theirs = collection.vector(Counter(word for word, _ in photo))
        product = sum(mine[word] * theirs[word] for word in mine.keys() & theirs.keys())
        scores[name] = product / (math.hypot(*mine.values()) * collection.length(name) or 1)
    return scores


def embedded_scores(
    collection: Collection, query: Sequence[Sequence[Feature]]
) -> tuple[dict[str, float], dict[str, int]]:
    """Hamming embedding (CVPR 2009, sections 3.4, 4.2 and 4.3), and strict matches; a feature has one word or more."""
    scores, strict = dict.fromkeys(collection.features, 0.0), dict.fromkeys(collection.features, 0)
    for rows in query:
        matches: dict[tuple[str, int], float] = {}
        for number, (word, signature) in enumerate(rows):
            squared = collection.idf[word] ** 2
            for name, photo in collection.features.items():
                distances = [(theirs ^ signature).bit_count() for of, theirs in photo if of == word]
                each = [math.exp(-((h / 12) ** 2)) * squared for h in distances if h <= 24]
                if sum(each) > 0:
                    matches[name, number] = sum(weight * math.sqrt(weight / sum(each)) for weight in each)
                    strict[name] += number == 0 and min(distances) <= 16
        for (name, _), weight in matches.items():
            scores[name] += weight * math.sqrt(weight / sum(matches.values()))
    return {name: value / (collection.length(name) or 1) for name, value in scores.items()}, strict


def best_first(scores: Mapping[str, float]) -> list[str]:
    return sorted((name for name in scores if scores[name] > 0), key=lambda name: (-scores[name], name))


def expanded(
    collection: Collection, query: Sequence[Sequence[Feature]], reliable: Sequence[Sequence[Feature]]
) -> list[list[Feature]]:
    """Hamming query expansion (Tolias and Jegou 2014, sections 4.2 to 4.4): features of reliable photos, best first."""
    own = {word for rows in query for word, _ in rows}
    support = Counter(word for photo in reliable for word in {word for word, _ in photo})
    agreed = [word for word in support if word not in own and support[word] >= 2]
    agreed.sort(key=lambda word: (-support[word], -collection.idf[word], word))
    kept = own | set(agreed[: len(own)])
    rows = [(word, 0, signature) for rows in query for word, signature in rows]
    for source, photo in enumerate(reliable, 1):
        rows += [(word, source, signature) for word, signature in photo if word in kept]
    groups = slow_aggregate([(word, signature, source) for word, source, signature in sorted(rows)], 16, 2)
    assert {word for word, _ in groups} - own  # the collection puts new words to the test,
    assert len(groups) < len(rows)  # and grouping
    return [[group] for group in groups]


def inside_region(collection: Collection, name: str, found: Verified) -> list[Feature]:
    """Features of a verified photo that lie in the query's region when they are taken back to it."""
    back = np.linalg.inv(found.transformation[:, :2])
    kept = []
    for feature, xy in zip(collection.features[name], collection.xy[name], strict=True):
        x, y = back @ (xy - found.transformation[:, 2])
        if REGION[0] <= x <= REGION[2] and REGION[1] <= y <= REGION[3]:
            kept.append(feature)
    assert 0 < len(kept) < len(collection.features[name])
    return kept


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("expansion")
    photos = {name: photo for name, photo in two_scenes().items() if name != QUERY}
    store_of(place / "features.h5", photos)
    vocabulary(place / "features.h5", place / "vocabulary", VocabularyOptions(words=96, iterations=5))
    index(place / "features.h5", place, place / "index")
    return place


@pytest.mark.parametrize("method", ["hqe", "hqe+ma", "hqe+ma+sv", "bow+sv+qe"])
def test_expansion_as_a_whole_is_what_plain_python_gives(method: Method, place: Path) -> None:
    """Verification alone, which has tests of its own, is the engine's on both sides."""
    opened, photos = open_index(place).lists, two_scenes()
    features, xy = {}, {}
    for name in opened.names:
        keypoints, descriptors = photos[name]
        words = opened.vocabulary.assign(descriptors)[:, 0]
        signatures = opened.vocabulary.signatures(descriptors, words)
        features[name] = list(zip(words.tolist(), signatures.tolist(), strict=True))
        xy[name] = unpack_geometry(pack_geometry(keypoints, SIZE), np.array(SIZE))[:, :2]
    collection = Collection(features, xy)
    keypoints, descriptors = photos[QUERY]
    asked = np.flatnonzero(np.arange(len(keypoints)) % 2)
    query = Query.of(opened.vocabulary, descriptors[asked], geometry_of(keypoints.select(asked)), multiple_of(method))
    rows = list(zip(query.words.tolist(), query.signatures.tolist(), strict=True))
    plain = [rows[first:last] for first, last in zip(query.starts[:-1], query.starts[1:], strict=True)]

    def verified(scores: Mapping[str, float], reach: int) -> dict[str, Verified]:
        numbers = [opened.names.index(name) for name in best_first(scores)]
        return {opened.names[photo]: found for photo, found in verify(opened, query, numbers, reach).items()}

    def strengthened(scores: Mapping[str, float], found: Mapping[str, Verified]) -> dict[str, float]:
        return {
            name: value * (1 + (found[name].inliers if name in found else 0) / 10) for name, value in scores.items()
        }

    if method == "bow+sv+qe":
        counts = Counter(word for word, _ in rows)
        found = verified(words_scores(collection, counts), 64)
        relevant = [name for name in found if found[name].inliers >= 16]
        assert len(relevant) >= 2
        for name in relevant:
            counts.update(word for word, _ in inside_region(collection, name, found[name]))
        mean = {word: count / (1 + len(relevant)) for word, count in counts.items()}
        expected = words_scores(collection, mean)
        expected = strengthened(expected, verified(expected, 64))
    else:
        first, strict = embedded_scores(collection, plain)
        if method.endswith("+sv"):
            found = verified(first, 24)
            reliable = [name for name in found if found[name].false_alarms < 0]
            assert reliable
            reliable.sort(key=lambda name: (-found[name].inliers, name))
            sources = [inside_region(collection, name, found[name]) for name in reliable]
        else:
            reliable = [name for name in best_first(first) if strict[name] >= 5]
            sources = [list(features[name]) for name in reliable]
        assert 3 <= len(reliable) < len(features)
        expected, _ = embedded_scores(collection, expanded(collection, plain, sources))
        if method.endswith("+sv"):
            expected = strengthened(expected, verified(expected, 24))
    assert sum(value > 0 for value in expected.values()) >= 5
    scores, _ = score(opened, query, REGION, method)
    for name, value in zip(opened.names, scores, strict=True):
        assert value == pytest.approx(expected[name], rel=1e-5, abs=1e-8), name


def slow_aggregate(rows: list[tuple[int, int, int]], reach: int, least: int) -> list[tuple[int, int]]:
    """Groups of (word, signature, source) rows by the first member within reach, in plain Python."""
    groups: list[list[tuple[int, int, int]]] = []
    for row in rows:
        for group in groups:
            if group[0][0] == row[0] and (group[0][1] ^ row[1]).bit_count() <= reach:
                group.append(row)
                break
        else:
            groups.append([row])
    result = []
    for group in groups:
        if group[0][2] and len({source for _, _, source in group}) < least:
            continue
        merged = 0
        for bit in range(64):
            ones = sum(signature >> bit & 1 for _, signature, _ in group)
            first = group[0][1] >> bit & 1
            merged |= int(2 * ones > len(group) or (2 * ones == len(group) and first)) << bit
        result.append((group[0][0], merged))
    return result


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1), st.integers(0, 4)), max_size=30), st.data())
def test_signatures_are_grouped_as_loops_do(rows: list[tuple[int, int, int]], data: st.DataObject) -> None:
    # Copies with a few bits flipped make groups.
    for word, signature, _ in rows[:10]:
        flips = data.draw(st.sets(st.integers(0, 63), max_size=20))
        rows.append((word, signature ^ sum(1 << bit for bit in flips), data.draw(st.integers(0, 4))))
    rows = sorted(rows, key=lambda row: (row[0], row[2], row[1]))
    words, sources = (np.array([row[part] for row in rows], np.int64) for part in (0, 2))
    found = aggregate(words, np.array([row[1] for row in rows], np.uint64), sources, 16, 2)
    assert sorted(zip(found[0].tolist(), found[1].tolist(), strict=True)) == sorted(slow_aggregate(rows, 16, 2))
