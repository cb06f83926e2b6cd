"""Visual words and signatures: as brute force finds them, kept whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from collections_of_features import OPTIONS, keypoints_of, some_photos, store_of, unit_rows

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.vocabulary_files import CentroidFile, read_card, read_vocabulary, write_vocabulary
from hardnet_sfm.index_folder import open_vocabulary
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.kmeans import kmeans
from hardnet_sfm.verbs.vocabulary import VocabularyOptions, vocabulary

FEW = VocabularyOptions(words=16, sample=660, iterations=5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a store of features and a vocabulary of 16 words."""
    place = tmp_path_factory.mktemp("vocabulary")
    vocabulary(store_of(place / "features.h5", some_photos(12)), place / "vocabulary", FEW)
    return place


def test_words_are_the_nearest_centroids_nearest_first(place: Path) -> None:
    words = open_vocabulary(place)
    rows = unit_rows(np.random.default_rng(5), 200).astype(np.float32)
    distances = ((rows[:, None].astype(np.float64) - words.centroids) ** 2).sum(2)
    assert (words.assign(rows, 3) == np.argsort(distances, axis=1)[:, :3]).all()


def test_signatures_say_which_projections_exceed_the_words_median(place: Path) -> None:
    words = open_vocabulary(place)
    assert np.allclose(words.projection @ words.projection.T, np.eye(64), atol=1e-5)
    rows = unit_rows(np.random.default_rng(6), 30).astype(np.float32)
    assigned = words.assign(rows)[:, 0]
    for row, word, signature in zip(rows, assigned, words.signatures(rows, assigned), strict=True):
        projected = words.projection.astype(np.float64) @ row
        for bit in range(64):
            if abs(projected[bit] - words.thresholds[word, bit]) > 1e-5:
                assert (int(signature) >> bit & 1) == (projected[bit] > words.thresholds[word, bit])


def test_descriptors_of_fewer_dimensions_than_bits_have_several_projections_on_each(tmp_path: Path) -> None:
    photos = some_photos(12, dimension=27)
    vocabulary(store_of(tmp_path / "features.h5", photos), tmp_path / "vocabulary", FEW)
    words = open_vocabulary(tmp_path)
    assert words.projection.shape == (64, 27)
    for rows in (words.projection[:27], words.projection[27:54], words.projection[54:]):
        assert np.allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-5)
    assert not np.allclose(words.projection[:27], words.projection[27:54], atol=0.1)
    _, described = photos["folder/1.jpg"]
    assigned = words.assign(described)[:, 0]
    above = described.astype(np.float32) @ words.projection.T > words.thresholds[assigned]
    shown = words.signatures(described, assigned)[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
    assert (shown == above).all()


def test_half_of_the_sample_is_above_each_threshold(place: Path) -> None:
    words = open_vocabulary(place)
    rows = np.concatenate([rows for _, rows in some_photos(12).values()]).astype(np.float32)
    assigned = words.assign(rows)[:, 0]
    for word in np.unique(assigned):
        projected = rows[assigned == word] @ words.projection.T
        assert np.allclose(np.median(projected, axis=0), words.thresholds[word], atol=1e-3)


def test_card_says_what_it_is_made_of_and_the_same_is_not_made_twice(place: Path) -> None:
    card = json.loads((place / "vocabulary" / "card.json").read_text())
    assert (card["words"], card["dimension"], card["photos"], card["recall"]) == (16, 128, 12, 1.0)
    assert {name: card[name] for name in OPTIONS} == OPTIONS
    assert (card["made_of"]["seed"], card["made_of"]["descriptors"]) == (0, 660)
    assert not vocabulary(place / "features.h5", place / "vocabulary", FEW).computed


def test_it_is_the_same_with_any_number_of_threads(place: Path, tmp_path: Path) -> None:
    prints = set()
    for workers in (1, 2):
        vocabulary(place / "features.h5", tmp_path / "v", replace(FEW, words=17), Resources(workers=workers))
        prints.add(open_vocabulary(tmp_path / "v").fingerprint)
        (tmp_path / "v" / "card.json").unlink()
    assert len(prints) == 1


@pytest.mark.parametrize(("count", "words"), [(3000, 40), (700, 300)], ids=["full", "with empty clusters"])
def test_k_means_gives_the_centroids_of_faiss(count: int, words: int) -> None:
    random = np.random.default_rng(7)
    sample = unit_rows(random, count // 2).astype(np.float32)
    sample = np.concatenate([sample, sample[: count - len(sample)]])
    peer = faiss.Clustering(128, words)
    peer.niter, peer.seed = 6, 3
    peer.min_points_per_centroid, peer.max_points_per_centroid = 1, count
    index = faiss.IndexFlatL2(128)
    first = np.empty(count, np.int32)
    faiss.rand_perm(faiss.swig_ptr(first), count, 4)
    centroids, distances = kmeans(sample, sample[first[:words]], faiss.IndexFlatL2(128), 6)
    peer.train(sample, index)
    np.testing.assert_allclose(centroids, faiss.vector_to_array(peer.centroids).reshape(words, 128), atol=1e-6)
    assert distances == pytest.approx(peer.iteration_stats.at(5).obj, rel=1e-4)


def test_ctrl_c_works_between_small_parts_of_an_iteration() -> None:
    """faiss does not return to Python within a search."""
    sizes: list[int] = []

    class Watched(faiss.IndexFlatL2):
        def search(self, rows: np.ndarray, count: int) -> object:
            sizes.append(len(rows))
            return super().search(rows, count)

    sample = unit_rows(np.random.default_rng(0), 20_000, 8).astype(np.float32)
    kmeans(sample, sample[:5], Watched(8), 2)
    assert max(sizes) < 10_000 and sum(sizes) == 2 * len(sample)


def test_an_interrupted_run_resumes_after_its_last_iteration(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []

    class Interrupted(CentroidFile):
        def save(self, iterations: int, centroids: np.ndarray) -> None:
            super().save(iterations, centroids)
            saved.append(iterations)
            if len(saved) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr("hardnet_sfm.files.vocabulary_files.CentroidFile", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        vocabulary(place / "features.h5", tmp_path / "v", FEW)
    vocabulary(place / "features.h5", tmp_path / "v", FEW)
    assert saved == [1, 2, 3, 4]
    assert open_vocabulary(tmp_path / "v").fingerprint == open_vocabulary(place).fingerprint
    assert len(list((tmp_path / "v").iterdir())) == 2
    # Centroids of other options, and damaged ones, are not used.
    CentroidFile(tmp_path / "w", {"words": 17}).save(3, np.zeros((16, 128), np.float32))
    assert CentroidFile(tmp_path / "w", {"words": 16}).load() is None
    (tmp_path / "w" / "unfinished.safetensors").write_bytes(b"damaged")
    assert CentroidFile(tmp_path / "w", {"words": 17}).load() is None


def test_gpus_assign_where_faiss_has_them(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here: a second index on the CPU stands for it. What was learned has to come through it."""
    moved: list[faiss.Index] = []

    def to_gpus(index: faiss.Index) -> faiss.Index:
        moved.append(faiss.clone_index(index))
        return moved[-1]

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", to_gpus)
    options = replace(FEW, words=17)
    for name, device, indexes in (("cpu", "cpu", 0), ("gpu", "auto", 1)):
        vocabulary(place / "features.h5", tmp_path / name, options, Resources(device=device))
        assert len(moved) == indexes
    assert (open_vocabulary(tmp_path / "cpu").centroids == open_vocabulary(tmp_path / "gpu").centroids).all()


def test_many_words_are_assigned_approximately_and_the_recall_is_measured(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    photos = {"b.jpg": (keypoints_of(random, 5000), unit_rows(random, 5000))}
    report = vocabulary(
        store_of(tmp_path / "features.h5", photos), tmp_path / "v", VocabularyOptions(words=4200, iterations=1)
    )
    words = open_vocabulary(tmp_path / "v")
    exact = faiss.IndexFlatL2(128)
    exact.add(words.centroids)
    rows = photos["b.jpg"][1][:1000].astype(np.float32)
    recall = float((exact.search(rows, 1)[1][:, 0] == words.assign(rows)[:, 0]).mean())
    assert abs(recall - report.recall) < 0.05
    assert 0.5 < recall <= 1  # directions at random have no cells to speak of: real ones get 0.999


def test_more_words_than_descriptors_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(HardnetSfmError, match="660 descriptors cannot make 1000 words"):
        vocabulary(place / "features.h5", tmp_path / "v", VocabularyOptions(words=1000))


@pytest.mark.parametrize("wrong", [{"words": 1}, {"words": 2**21}, {"sample": 3, "words": 5}, {"iterations": 0}])
def test_senseless_options_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        VocabularyOptions(**wrong).check()


def test_other_descriptors_and_other_weights_are_refused(place: Path) -> None:
    words = open_vocabulary(place)
    words.check_fits(dict(OPTIONS), "features.h5")
    with pytest.raises(HardnetSfmError, match="other weights"):
        words.check_fits({**OPTIONS, "weights_sha256": "def"}, "features.h5")
    with pytest.raises(HardnetSfmError, match="other descriptors"):
        words.check_fits({**OPTIONS, "descriptor": "another"}, "features.h5")


def test_damage_is_noticed(place: Path, tmp_path: Path) -> None:
    words = open_vocabulary(place)
    write_vocabulary(tmp_path, words.card, words.numbers)
    (file,) = tmp_path.glob("words-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(HardnetSfmError, match="damaged"):
        open_vocabulary(tmp_path)
    file.unlink()
    with pytest.raises(HardnetSfmError, match="No such file"):
        open_vocabulary(tmp_path)
    with pytest.raises(HardnetSfmError, match="no vocabulary"):
        open_vocabulary(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"words": "64"}, {"words": True}, {"objective": [[]]}, {"recall": None}),
        *({"made_of": []}, {"made_of": {"features": 1}}, {"made_of": {"descriptors": None}}),
    ],
)
def test_a_card_with_other_types_is_damage(wrong: dict[str, object], place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "vocabulary", tmp_path / "v")
    card = json.loads((tmp_path / "v" / "card.json").read_text())
    (tmp_path / "v" / "card.json").write_text(json.dumps({**card, **wrong}))
    for read in (read_card, read_vocabulary):
        with pytest.raises(HardnetSfmError, match=r"card\.json: not the card, or damaged"):
            read(tmp_path / "v")
