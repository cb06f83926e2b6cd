"""Ground truth of ROxford5k and RParis6k from pickles, and pickles that want more than to be read."""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.pickles import read_plain_pickle
from hardnet_sfm.evaluation.datasets.revisited import EASY, HARD, MEDIUM, read_revisited
from hardnet_sfm.evaluation.landmarks import score_rankings

PHOTOS = [f"photo_{i}" for i in range(8)]
TRUTH: dict[str, Any] = {
    "imlist": PHOTOS,
    "qimlist": ["query_a", "query_b"],
    "gnd": [
        {"bbx": np.array([1.5, 2, 30, 40]), "easy": np.array([0, 3]), "hard": np.array([5]), "junk": np.array([2])},
        {"bbx": [0.0, 0.0, 9.0, 9.0], "easy": [], "hard": [1, 2], "junk": np.zeros(0, np.int64)},
    ],
}


def write(path: Path, content: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


class _NumPy1(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes names of modules as NumPy 1 has them, `numpy.core`."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_str(self, text: str) -> None:
        super().save_str(text.replace("numpy._core", "numpy.core"))

    dispatch[str] = save_str


def numpy_1_bytes(content: Any, protocol: int) -> bytes:
    if protocol < 4:  # names are lines of text
        return pickle.dumps(content, protocol).replace(b"numpy._core", b"numpy.core")
    file = io.BytesIO()
    _NumPy1(file, protocol).dump(content)
    return file.getvalue()


def same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray):
        return (
            isinstance(second, np.ndarray)
            and first.dtype == second.dtype
            and np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
        )
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
        )
    return type(first) is type(second) and first == second


class TestGroundTruth:
    @pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
    @pytest.mark.parametrize("numpy", [1, 2])
    def test_is_read_whatever_wrote_it(self, tmp_path: Path, protocol: int, numpy: int) -> None:
        data = numpy_1_bytes(TRUTH, protocol) if numpy == 1 else pickle.dumps(TRUTH, protocol)
        assert (b"numpy._core" in data) == (numpy == 2)
        path = tmp_path / "gnd_roxford5k.pkl"
        path.write_bytes(data)
        truth = read_revisited(path)
        assert truth.collection == set(PHOTOS)
        first, second = truth.queries
        assert (first.name, first.photo, first.box) == ("query_a", "query_a", (1.5, 2, 30, 40))
        assert first.relevance[EASY].positives == {"photo_0", "photo_3"}
        assert second.relevance[HARD].positives == {"photo_1", "photo_2"}

    def test_of_python_2(self, tmp_path: Path) -> None:
        """There a text is a string of bytes, and so is what an array is made of."""

        def text(word: bytes) -> bytes:
            return b"U" + bytes([len(word)]) + word

        array = (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR(K\x01(K\x02t"
            b"cnumpy\ndtype\n("
            + text(b"i8")
            + b"K\x00K\x01tR(K\x03"
            + text(b"<")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            + text(struct.pack("<qq", 200, -1))
            + b"tb"
        )
        path = tmp_path / "a.pkl"
        path.write_bytes(b"\x80\x02}" + text(b"easy") + array + b"s.")
        assert same(read_plain_pickle(path), {"easy": np.array([200, -1])})

    def test_says_what_counts_in_each_setup(self, tmp_path: Path) -> None:
        query = read_revisited(write(tmp_path / "gnd.pkl", TRUTH)).queries[0]
        easy, hard, junk = {"photo_0", "photo_3"}, {"photo_5"}, {"photo_2"}
        assert (query.relevance[EASY].positives, query.relevance[EASY].junk) == (easy, hard | junk)
        assert (query.relevance[MEDIUM].positives, query.relevance[MEDIUM].junk) == (easy | hard, junk)
        assert (query.relevance[HARD].positives, query.relevance[HARD].junk) == (hard, easy | junk)

    def test_scores_by_hand(self, tmp_path: Path) -> None:
        """Ranked 5 (hard), 2 (junk), 0 (easy), 7 (wrong), 3 (easy); of the second query, only the hard setup asks."""
        truth = read_revisited(write(tmp_path / "gnd.pkl", TRUTH))
        rankings = {"query_a": [f"photo_{i}" for i in (5, 2, 0, 7, 3)], "query_b": ["photo_4", "photo_1", "photo_2"]}
        scores = score_rankings(truth, rankings, PHOTOS)
        assert scores[EASY].keys() == {"query_a"}
        assert scores[MEDIUM].keys() == scores[HARD].keys() == {"query_a", "query_b"}
        # easy: right wrong right; medium: right right wrong right; hard: right wrong
        assert scores[EASY]["query_a"].average_precision == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
        assert scores[MEDIUM]["query_a"].average_precision == pytest.approx((1 + 1 + (2 / 3 + 3 / 4) / 2) / 3)
        assert scores[HARD]["query_a"].average_precision == 1
        assert scores[HARD]["query_b"].average_precision == pytest.approx(((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
        assert scores[EASY]["query_a"].precision_at == pytest.approx((1, 2 / 3, 2 / 3))
        assert scores[MEDIUM]["query_a"].precision_at == pytest.approx((1, 3 / 4, 3 / 4))
        assert scores[HARD]["query_b"].precision_at == pytest.approx((0, 2 / 3, 2 / 3))

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"imlist": None}, "not ground truth"),
            ({"qimlist": ["query_a"]}, "1 queries with 2 answers"),
            ({"imlist": PHOTOS[:1]}, "a photo that is not in the list"),
            ({"imlist": [*PHOTOS, 3]}, "names of photos that are no text"),
            ({"gnd": [{"bbx": [1, 2, 3, 4], "easy": [0.5], "hard": [], "junk": []}, {}]}, "whole numbers"),
            ({"gnd": [{"bbx": [1, 2, 3, 4], "easy": [-1], "hard": [], "junk": []}, {}]}, "not in the list"),
            ({"gnd": [{"bbx": [4, 2, 3, 4], "easy": [], "hard": [], "junk": []}, {}]}, "is not a box"),
            ({"gnd": [{"bbx": [1, 2, 3], "easy": [], "hard": [], "junk": []}, {}]}, "is not a box"),
            ({"gnd": [{}, {}]}, "no 'easy'"),
        ],
    )
    def test_of_something_else(self, tmp_path: Path, change: dict[str, Any], says: str) -> None:
        with pytest.raises(HardnetSfmError, match=says):
            read_revisited(write(tmp_path / "gnd.pkl", TRUTH | change))

    def test_a_bad_query_is_left_out_and_named(self, tmp_path: Path) -> None:
        whole = read_revisited(write(tmp_path / "gnd.pkl", TRUTH))
        bad = TRUTH["gnd"][0] | {"bbx": [4, 2, 3, 4]}
        found = read_revisited(write(tmp_path / "gnd.pkl", TRUTH | {"gnd": [bad, *TRUTH["gnd"][1:]]}))
        assert found.queries == whole.queries[1:]
        assert list(found.left_out) == ["query_a"]
        assert "query_a: 4 2 3 4 is not a box" in found.left_out["query_a"]


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | arrays.arrays(
        st.sampled_from(["<i8", ">i4", "u1", "f4", "<f8", "?", "U3"]),
        arrays.array_shapes(min_dims=0, max_side=3, min_side=0),
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


class Runs:
    """An object whose pickle has a function called."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]

    def __repr__(self) -> str:
        """Without an address: it names a test, which has the same name in every process."""
        return f"{self.call[0].__name__}{self.call[1:]}"


class TestPlainPickle:
    @settings(max_examples=60)
    @given(plain, st.integers(0, 5))
    def test_gives_back_what_was_written(
        self, tmp_path_factory: pytest.TempPathFactory, content: Any, protocol: int
    ) -> None:
        path = tmp_path_factory.mktemp("pickle") / "plain.pkl"
        path.write_bytes(pickle.dumps(content, protocol))
        expected = pickle.loads(path.read_bytes())
        found = read_plain_pickle(path)
        assert _native(found, expected)

    @pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
    def test_numbers_of_numpy_become_numbers_and_columns_stay_columns(self, tmp_path: Path, protocol: int) -> None:
        content = {
            "number": np.float64(1.5),
            "count": np.int64(7),
            "matrix": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        }
        found = read_plain_pickle(write(tmp_path / "a.pkl", content, protocol))
        assert (found["number"], found["count"]) == (1.5, 7)
        assert same(found["matrix"], np.arange(6.0).reshape(2, 3))

    @pytest.mark.parametrize("protocol", [0, 2, 4, 5])
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_runs_no_code(self, tmp_path: Path, protocol: int, wrapped: bool) -> None:
        ran = tmp_path / "ran"
        hidden: Any = Runs(os.mkdir, str(ran))
        path = write(tmp_path / "gnd.pkl", TRUTH | {"imlist": [hidden]} if wrapped else hidden, protocol)
        pickle.loads(path.read_bytes())
        assert ran.is_dir(), "the pickle does nothing"
        ran.rmdir()
        with pytest.raises(HardnetSfmError, match=r"refused, .* it names .*mkdir") as error:
            read_revisited(path)
        assert not ran.exists()
        assert "hidden" in error.value.hint

    @pytest.mark.parametrize(
        "hidden",
        [
            Runs(eval, "1"),
            Runs(getattr, "a", "upper"),
            Runs(__import__, "os"),
            Runs(np.load, "x.npy"),
            Runs(np.memmap, "x", "u1"),
            Runs(bytes, 1 << 40),
            {1, 2},
            b"bytes",
            bytearray(3),
            1j,
            np.dtype("i8"),
            np.zeros(2, object),
            np.zeros(2, [("a", "i4")]),
            np.zeros(2, "M8[s]"),
            np.ma.zeros(2),
            Path("x"),
            print,
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("protocol", [2, 4])
    def test_refuses_all_that_is_not_plain(self, tmp_path: Path, hidden: Any, protocol: int) -> None:
        with pytest.raises(HardnetSfmError, match="refused"):
            read_plain_pickle(write(tmp_path / "a.pkl", [hidden], protocol))

    def test_lets_nobody_change_the_reader(self, tmp_path: Path) -> None:
        """BUILD gives a state to anything, an admitted name included."""
        for name in (b"cnumpy\ndtype\n", b"c_codecs\nencode\n", b"cnumpy\nndarray\n"):
            path = tmp_path / "a.pkl"
            path.write_bytes(b"\x80\x02" + name + b"}U\x09_functionK\x01sb.")
            with pytest.raises(HardnetSfmError, match="refused"):
                read_plain_pickle(path)

    @pytest.mark.parametrize("keep", [0, 1, 40, -1])
    def test_truncated(self, tmp_path: Path, keep: int) -> None:
        path = tmp_path / "a.pkl"
        path.write_bytes(pickle.dumps(TRUTH, 4)[:keep])
        with pytest.raises(HardnetSfmError, match="damaged, or not a pickle"):
            read_plain_pickle(path)

    @pytest.mark.parametrize(
        "content", [b"<html>302 Found</html>", b"\x89HDF\r\n", b"\x80\x09.", b"\x80\x02L9999999999999999999L\n."]
    )
    def test_something_else(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "a.pkl"
        path.write_bytes(content)
        with pytest.raises(HardnetSfmError):
            read_revisited(path)

    def test_array_of_another_size_than_it_says(self, tmp_path: Path) -> None:
        data = pickle.dumps(np.arange(5, dtype=np.int16), 3)
        path = tmp_path / "a.pkl"
        path.write_bytes(data.replace(b"K\x05", b"K\x06"))
        with pytest.raises(HardnetSfmError, match="of 10 bytes"):
            read_plain_pickle(path)

    def test_a_list_within_itself_and_one_that_doubles(self, tmp_path: Path) -> None:
        itself: list[Any] = []
        itself.append(itself)
        with pytest.raises(HardnetSfmError, match="damaged"):
            read_plain_pickle(write(tmp_path / "a.pkl", itself))
        doubled: list[Any] = []
        for _ in range(200):
            doubled = [doubled, doubled]
        read_plain_pickle(write(tmp_path / "b.pkl", doubled))

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(HardnetSfmError, match="No such file"):
            read_plain_pickle(tmp_path / "none.pkl")


def _native(found: Any, expected: Any) -> bool:
    """The same, but for the byte order of arrays, which are made native."""
    if isinstance(expected, np.ndarray):
        return same(expected.astype(expected.dtype.newbyteorder("=")), found)
    if isinstance(expected, list | tuple):
        return type(found) is type(expected) and len(found) == len(expected) and all(map(_native, found, expected))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_native(found[key], expected[key]) for key in expected)
    return type(found) is type(expected) and found == expected
