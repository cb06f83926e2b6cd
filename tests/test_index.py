"""The index: scores as brute force has them, the same however it came about, and no damage without a word."""

from __future__ import annotations

import json
import os
import shutil
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from collections_of_features import OPTIONS, SIZE, keypoints_of, some_photos, store_of
from processes import last_words, running

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files import index_files
from hardnet_sfm.files.index_files import UNFINISHED
from hardnet_sfm.files.workspace import MANIFEST, Workspace
from hardnet_sfm.index_folder import IndexBuilder, open_index
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.inverted_index import InvertedIndex
from hardnet_sfm.retrieval.methods import METHODS
from hardnet_sfm.retrieval.scoring import Query, distance_weights, score_asmk, score_bow, score_he
from hardnet_sfm.retrieval.search import Described, search
from hardnet_sfm.retrieval.segments import geometry_of, pack_geometry, unpack_geometry
from hardnet_sfm.retrieval.visual_words import Vocabulary
from hardnet_sfm.verbs.index import IndexOptions, index, update_index
from hardnet_sfm.verbs.vocabulary import VocabularyOptions, vocabulary

PHOTOS = some_photos(12)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with features of 12 photos, 16 words and an index."""
    place = tmp_path_factory.mktemp("index")
    store_of(place / "features.h5", PHOTOS)
    vocabulary(place / "features.h5", place / "vocabulary", VocabularyOptions(words=16, iterations=5))
    index(place / "features.h5", place, place / "index")
    return place


def described(seed: int = 9) -> Described:
    keypoints, descriptors = some_photos(3, seed=0)["folder/2.jpg"]
    noise = np.random.default_rng(seed).standard_normal(descriptors.shape)
    return Described((descriptors + 0.03 * noise).astype(np.float16), geometry_of(keypoints), (0, 0, *SIZE))


def answers(opened: InvertedIndex) -> dict[str, list[tuple[str, float, int | None]]]:
    return {
        method: [(found.image, found.score, found.inliers) for found in search(opened, described(), method, None)]
        for method in METHODS
    }


def assigned(words: Vocabulary) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Words and signatures of each photo."""
    result = {}
    for name, (_, rows) in PHOTOS.items():
        of = words.assign(rows)[:, 0]
        result[name] = of, words.signatures(rows, of)
    return result


def brute_idf(photos: dict[str, tuple[np.ndarray, np.ndarray]], words: int) -> np.ndarray:
    having = np.array([sum(word in of for of, _ in photos.values()) for word in range(words)])
    return np.where(having > 0, np.log((len(photos) + 1) / np.maximum(having, 1)), 0)


def test_bag_of_words_is_the_cosine_of_dense_vectors(place: Path) -> None:
    opened = open_index(place).lists
    photos = assigned(opened.vocabulary)
    idf = brute_idf(photos, 16)
    query = Query.of(opened.vocabulary, described().descriptors, described().geometry, 1)
    mine = np.bincount(query.words, minlength=16) * idf
    for name, score in zip(opened.names, score_bow(opened, query), strict=True):
        theirs = np.bincount(photos[name][0], minlength=16) * idf
        length = np.linalg.norm(mine) * np.linalg.norm(theirs)
        assert score == pytest.approx(mine @ theirs / length if length else 0, abs=1e-7)


def test_hamming_embedding_is_what_loops_over_all_pairs_give(place: Path) -> None:
    opened = open_index(place).lists
    photos = assigned(opened.vocabulary)
    idf, weights = brute_idf(photos, 16), distance_weights()
    query = Query.of(opened.vocabulary, described().descriptors, described().geometry, 2)
    matches: list[dict[str, float]] = []
    for first, last in pairwise(query.starts):
        of_feature: dict[str, float] = {}
        for row in range(first, last):
            for name, (of, signatures) in photos.items():
                distances = [
                    int(theirs ^ query.signatures[row]).bit_count()
                    for word, theirs in zip(of, signatures, strict=True)
                    if word == query.words[row]
                ]
                each = [weights[distance] * idf[query.words[row]] ** 2 for distance in distances]
                if sum(each) > 0:
                    within = sum(weight * np.sqrt(weight / sum(each)) for weight in each)
                    of_feature[f"{name} {row}"] = within
        matches.append(of_feature)
    scores = dict.fromkeys(photos, 0.0)
    for of_feature in matches:
        for key, weight in of_feature.items():
            scores[key.split(" ")[0]] += weight * np.sqrt(weight / sum(of_feature.values()))
    assert sum(score > 0 for score in scores.values()) > 5
    for name, score in zip(opened.names, score_he(opened, query), strict=True):
        length = np.linalg.norm(np.bincount(photos[name][0], minlength=16) * idf)
        assert score == pytest.approx(scores[name] / length if length else 0, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("use_idf", [True, False])
def test_asmk_is_that_of_the_public_package_on_the_same_residuals(place: Path, use_idf: bool) -> None:
    """Signatures as vectors of +1 and -1 are the residuals: the package gets them with centroids of zero."""
    kernel = pytest.importorskip("asmk.kernel")
    lists = pytest.importorskip("asmk.inverted_file")
    opened = open_index(place).lists
    photos = assigned(opened.vocabulary)
    query = Query.of(opened.vocabulary, described().descriptors, described().geometry, 2)

    def signs(signatures: np.ndarray) -> np.ndarray:
        bits = np.unpackbits(signatures[:, None].view(np.uint8), axis=1, bitorder="little")
        return bits.astype(np.float32) * 2 - 1

    class Codebook:
        centroids = np.zeros((16, 64), np.float32)

    theirs = kernel.ASMKKernel(Codebook(), binary=False)
    peer = lists.IVF.initialize_empty(codebook_size=16, use_idf=use_idf)
    names = [name for name in opened.names if len(photos[name][0])]
    of_all = [theirs.aggregate_image(signs(photos[name][1]), photos[name][0][:, None]) for name in names]
    numbers = np.concatenate([np.full(len(of), number) for number, (_, of) in enumerate(of_all)])
    peer.add(np.concatenate([rows for rows, _ in of_all]), np.concatenate([of for _, of in of_all]), numbers)
    if use_idf:  # the package counts photos with features only
        opened.idf[:] = np.sqrt(peer.idf)

    def similarity(vector: np.ndarray, rows: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return theirs.similarity(vector, rows, images, alpha=3.0, similarity_threshold=0.0)

    rows, of_query = theirs.aggregate_image(signs(query.signatures), query.words[:, None])
    order, scores = peer.search(rows, of_query, similarity_func=similarity, topk=len(names))
    expected = dict(zip((names[number] for number in order), scores, strict=True))
    for name, score in zip(opened.names, score_asmk(opened, query, use_idf=use_idf), strict=True):
        assert score == pytest.approx(expected.get(name, 0.0), rel=1e-4, abs=1e-6)


def test_a_feature_takes_14_bytes_beside_the_offsets(place: Path) -> None:
    opened = open_index(place).lists
    (segment,) = opened.segments
    columns = (segment.columns.images, segment.columns.signatures, segment.columns.geometry)
    assert opened.features == 11 * 60
    assert sum(column.nbytes for column in columns) == 14 * opened.features


def test_ranking_does_not_depend_on_threads_segments_or_history(place: Path, tmp_path: Path) -> None:
    expected = answers(open_index(place, Resources(workers=1)).lists)
    assert all(expected.values())
    assert answers(open_index(place, Resources(workers=3)).lists) == expected
    # Some photos that go again, some that come later, in an order of their own, a segment for every two.
    options, output = IndexOptions(checkpoint=2), tmp_path / "index"
    some = {name: PHOTOS[name] for name in list(PHOTOS)[5:]}
    others = {f"other/{name}": photo for name, photo in some_photos(6, seed=3).items()}
    first = index(store_of(tmp_path / "a" / "features.h5", {**others, **some}), place, output, options)
    assert (first.photos, first.added, first.removed) == (13, 13, 0)
    second = index(place / "features.h5", place, output, options)
    assert (second.photos, second.added, second.removed) == (12, 5, 6)
    assert answers(open_index(tmp_path, Resources(workers=2), thorough=True).lists) == expected
    third = index(place / "features.h5", place, output, options)
    assert (third.added, third.removed) == (0, 0)


def test_a_changed_photo_is_indexed_anew(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "index", tmp_path / "index")
    changed = {**PHOTOS, "folder/4.jpg": some_photos(5, seed=8)["folder/4.jpg"]}
    report = index(store_of(tmp_path / "features.h5", changed), place, tmp_path / "index")
    assert (report.photos, report.added, report.removed) == (12, 1, 1)
    index(tmp_path / "features.h5", place, tmp_path / "fresh")
    assert answers(open_index(tmp_path).lists) == answers(open_index(tmp_path / "fresh").lists)


def test_features_of_removed_photos_are_not_counted(place: Path, tmp_path: Path) -> None:
    """A single removed photo of twelve stays in its segment, marked as removed."""
    shutil.copytree(place / "index", tmp_path / "index")
    kept = {name: PHOTOS[name] for name in list(PHOTOS) if name != "folder/4.jpg"}
    report = index(store_of(tmp_path / "features.h5", kept), place, tmp_path / "index")
    opened = open_index(tmp_path).lists
    (segment,) = opened.segments
    assert (report.photos, report.features, opened.features) == (11, 10 * 60, 10 * 60)
    assert (segment.entries, segment.removed) == (11 * 60, [4])


def test_all_photos_gone_leaves_an_empty_index_that_is_refused_to_search(place: Path, tmp_path: Path) -> None:
    from hardnet_sfm.photo_index import Index

    shutil.copytree(place / "index", tmp_path / "index")
    report = index(store_of(tmp_path / "features.h5", {}), place, tmp_path / "index")
    assert (report.photos, report.features, report.removed) == (0, 0, 12)
    with pytest.raises(HardnetSfmError, match="no photos in the index"):
        Index.open(tmp_path)


def index_slowly(place: str, output: str, pipe: Connection) -> None:
    """Indexes a photo at a time and tells after each."""
    flush = IndexBuilder._flush

    def told(builder: IndexBuilder) -> None:
        flush(builder)
        pipe.send(len(builder._segments))

    IndexBuilder._flush = told  # type: ignore[method-assign]
    index(Path(place) / "features.h5", place, output, IndexOptions(checkpoint=1))


@pytest.mark.slow
def test_resume_after_kill_keeps_what_was_finished_and_readers_the_last_good_state(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "index"
    some = {name: PHOTOS[name] for name in list(PHOTOS)[:4]}
    index(store_of(tmp_path / "features.h5", some), place, output)
    before = answers(open_index(tmp_path).lists)
    with running(index_slowly, str(place), str(output)) as (process, pipe):
        last_words(pipe, 3)
        process.kill()
        process.join()
    assert (output / UNFINISHED).is_file()
    assert answers(open_index(tmp_path).lists) == before
    report = index(place / "features.h5", place, output)
    assert 0 < report.added <= 6 and report.photos == 12
    assert answers(open_index(tmp_path).lists) == answers(open_index(place).lists)
    assert not (output / UNFINISHED).exists()
    assert len(list(output.glob("segment-*"))) == len(open_index(tmp_path).lists.segments)


def test_another_vocabulary_makes_another_index_and_the_old_one_stays_until_then(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "index", tmp_path / "index")
    vocabulary(place / "features.h5", tmp_path / "vocabulary", VocabularyOptions(words=9, iterations=2))
    report = index(place / "features.h5", tmp_path, tmp_path / "index")
    assert (report.added, len(open_index(tmp_path).lists.vocabulary)) == (12, 9)
    assert len(list((tmp_path / "index").glob("vocabulary-*"))) == 1


def test_words_are_learned_again_if_the_collection_has_outgrown_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three photos give 120 descriptors and 2 words; 12 give 660 and 16."""
    work, few = Workspace(tmp_path), {name: PHOTOS[name] for name in list(PHOTOS)[:3]}
    store_of(work.features, few)
    update_index(work)
    assert len(open_index(tmp_path).lists.vocabulary) == 2
    store_of(work.features, {name: PHOTOS[name] for name in list(PHOTOS)[:6]})  # 300 descriptors would give 8 words
    update_index(work)
    assert len(open_index(tmp_path).lists.vocabulary) == 8
    assert "outgrown the 2 visual words" in (told := capsys.readouterr().err) and "8 new ones" in told
    assert "again:" not in told, "one line says it"
    store_of(work.features, PHOTOS)
    update_index(work)
    assert len(open_index(tmp_path).lists.vocabulary) == 8 and not capsys.readouterr().err
    # A number that was chosen by hand stays.
    store_of(work.features, few)
    update_index(work, vocabulary_options=VocabularyOptions(words=3))
    assert "again: vocabulary of 96 descriptors" in capsys.readouterr().err
    store_of(work.features, PHOTOS)
    update_index(work)
    assert len(open_index(tmp_path).lists.vocabulary) == 3 and not capsys.readouterr().err


def test_words_of_other_photos_are_never_replaced(tmp_path: Path) -> None:
    others = {f"other/{name}": photo for name, photo in some_photos(3, seed=4).items()}
    store_of(tmp_path / "other" / "features.h5", others)
    vocabulary(tmp_path / "other" / "features.h5", tmp_path / "other" / "vocabulary")
    work = Workspace(tmp_path / "work")
    store_of(work.features, PHOTOS)
    update_index(work, vocabulary_folder=tmp_path / "other")
    update_index(work)
    assert len(open_index(work.root).lists.vocabulary) == 2


def test_features_of_another_descriptor_are_refused(place: Path, tmp_path: Path) -> None:
    other = store_of(tmp_path / "features.h5", PHOTOS, {**OPTIONS, "weights_sha256": "def"})
    with pytest.raises(HardnetSfmError, match="other weights"):
        index(other, place, tmp_path / "index")


@pytest.mark.parametrize("column", ["images", "signatures", "geometry", "offsets"])
def test_a_truncated_column_is_noticed(column: str, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "index", tmp_path / "index")
    (path,) = tmp_path.glob(f"index/segment-*/{column}.npy")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(HardnetSfmError, match="not a part of an index, or damaged"):
        open_index(tmp_path)


@pytest.mark.parametrize("damage", [b"\xff" * 8, b"(1, (((", b"\0" * 8, b"(-1,)   ", b'"""     '])
def test_a_damaged_header_of_a_column_is_noticed(damage: bytes, place: Path, tmp_path: Path) -> None:
    """NumPy parses it as Python, and raises what Python's parsers raise."""
    shutil.copytree(place / "index", tmp_path / "index")
    (path,) = tmp_path.glob("index/segment-*/geometry.npy")
    data = path.read_bytes()
    path.write_bytes(data[:64] + damage + data[64 + len(damage) :])
    with pytest.raises(HardnetSfmError, match=r"segment-.*not a part of an index, or damaged"):
        open_index(tmp_path)


@pytest.mark.parametrize("name", ["offsets.npy", "photos.json"])
def test_a_flipped_bit_in_what_is_small_is_noticed_at_once(name: str, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "index", tmp_path / "index")
    flip(next(tmp_path.glob(f"index/segment-*/{name}")))
    with pytest.raises(HardnetSfmError, match="damaged"):
        open_index(tmp_path)


@pytest.mark.parametrize("column", ["images", "signatures", "geometry"])
def test_a_flipped_bit_in_a_large_column_is_noticed_by_a_thorough_look(
    column: str, place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / "index", tmp_path / "index")
    flip(next(tmp_path.glob(f"index/segment-*/{column}.npy")))
    answers(open_index(tmp_path).lists)  # nothing crashes
    with pytest.raises(HardnetSfmError, match="has changed"):
        open_index(tmp_path, thorough=True)
    with pytest.raises(HardnetSfmError, match="has changed"):
        index(place / "features.h5", place, tmp_path / "index")


def test_growing_reads_old_segments_only_if_they_changed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features of old photos are neither read nor written when photos are added."""
    work, checked = Workspace(tmp_path), []
    checksum = index_files._checksum
    monkeypatch.setattr(index_files, "_checksum", lambda column: checked.append(len(column)) or checksum(column))
    names = sorted(PHOTOS)
    store_of(work.features, {name: PHOTOS[name] for name in names[:-1]})
    index(work.features, place, work.index)
    (first,) = work.index.glob("segment-*")
    features = len(np.load(first / "images.npy"))
    checked.clear()
    index(work.features, place, work.index)
    assert features not in checked  # up to date: only the offsets are read
    store_of(work.features, PHOTOS)
    index(work.features, place, work.index)
    assert features not in checked and first.is_dir()
    assert answers(open_index(work.root, thorough=True).lists) == answers(open_index(place).lists)
    os.utime(first / "images.npy")  # this changes the ctime
    checked.clear()
    index(work.features, place, work.index)
    assert features in checked
    (work.index / ".checked.json").write_text("half")
    checked.clear()
    index(work.features, place, work.index)
    assert features in checked


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 2
    path.write_bytes(content)


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "x"}, {"words": 17}, {"segments": 3}])
def test_a_manifest_of_another_version_or_damaged_is_refused(change: dict, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "index", tmp_path / "index")
    manifest = tmp_path / "index" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(HardnetSfmError, match=r"manifest\.json"):
        open_index(tmp_path)
    manifest.write_text("{")
    with pytest.raises(HardnetSfmError, match=r"manifest\.json"):
        open_index(tmp_path)
    manifest.unlink()
    with pytest.raises(HardnetSfmError, match="no index"):
        open_index(tmp_path)


def test_geometry_comes_back_as_exactly_as_its_bits_allow() -> None:
    keypoints = keypoints_of(np.random.default_rng(0), 500)
    back = unpack_geometry(pack_geometry(keypoints, SIZE), np.array(SIZE))
    assert (np.abs(back[:, :2] - keypoints.xy) <= np.array(SIZE) / 2048 + 1e-3).all()
    assert (np.abs(np.log2(back[:, 2] / keypoints.scales)) <= 1 / 16 + 1e-4).all()
    turn = np.rad2deg(back[:, 3]) - keypoints.oris
    assert (np.abs((turn + 180) % 360 - 180) <= 360 / 128 + 1e-3).all()


def test_an_affine_frame_gives_the_scale_of_its_area_and_its_nearest_rotation() -> None:
    angle, stretch = 0.7, np.diag([6.0, 1.5])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    frame = (stretch @ rotation).astype(np.float32)[None]
    one = np.ones(1, np.float32)
    scale, turn, ratio, axis = geometry_of(Keypoints(np.zeros((1, 2), np.float32), one, one, one, frame))[0, 2:]
    assert (scale, turn) == (pytest.approx(3.0), pytest.approx(angle, abs=1e-6))
    # S R = R P with P = R' S R, whose longer axis, 4 times the other, is R' x.
    assert (ratio, axis) == (pytest.approx(2.0, abs=1e-5), pytest.approx(np.pi - angle, abs=1e-5))


def test_entries_are_all_features_of_the_photos_asked_for(place: Path) -> None:
    opened = open_index(place).lists
    photos = assigned(opened.vocabulary)
    found = opened.entries([3, 7])
    assert set(found.photos.tolist()) == {3, 7}
    for photo in (3, 7):
        of, signatures = photos[opened.names[photo]]
        rows = found.select(found.photos == photo)
        mine = zip(rows.words, opened.signatures_of(rows), strict=True)
        assert sorted(mine) == sorted(zip(of, signatures, strict=True))
