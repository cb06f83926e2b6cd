"""Ground truth of Oxford5k and Paris6k in the official layout, and the scores of rankings against loops and by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from clutter import litter
from hypothesis import given
from hypothesis import strategies as st

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.landmark_sets import read_landmarks
from hardnet_sfm.evaluation.landmarks import (
    ORIGINAL,
    LandmarkQuery,
    Landmarks,
    QueryScore,
    Relevance,
    score_ranking,
    score_rankings,
)


def write_query(
    folder: Path, name: str, query: str, good: Sequence[str] = (), ok: Sequence[str] = (), junk: Sequence[str] = ()
) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_query.txt").write_text(query)
    for which, names in (("good", good), ("ok", ok), ("junk", junk)):
        (folder / f"{name}_{which}.txt").write_text("".join(f"{one}\n" for one in names))


def relevance(positives: str, junk: str = "") -> Relevance:
    return Relevance(frozenset(positives), frozenset(junk))


def average_precision_as_described(ranking: Sequence[str], positives: set[str], junk: set[str]) -> float:
    """The area under the line through the points (recall, precision) of every rank, one trapezoid after another."""
    recalls, precisions, found = [0.0], [1.0], 0
    kept = [name for name in ranking if name not in junk]
    for rank, name in enumerate(kept, 1):
        found += name in positives
        recalls.append(found / len(positives))
        precisions.append(found / rank)
    return sum((recalls[i] - recalls[i - 1]) * (precisions[i] + precisions[i - 1]) / 2 for i in range(1, len(recalls)))


def precision_as_described(ranking: Sequence[str], positives: set[str], junk: set[str], k: int) -> float:
    kept = [name for name in ranking if name not in junk]
    places = [rank for rank, name in enumerate(kept, 1) if name in positives]
    if not places:
        return 0.0
    until = min(max(places), k)
    return sum(place <= until for place in places) / until


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[str], set[str], set[str]]:
    """A ranking of part of a collection, with what is to be found and what is passed over."""
    collection = [f"photo{i}" for i in range(draw(st.integers(1, 25)))]
    kinds = draw(st.lists(st.sampled_from("+-j"), min_size=len(collection), max_size=len(collection)))
    ranking = draw(st.permutations(collection))[: draw(st.integers(0, len(collection)))]
    positives = {name for name, kind in zip(collection, kinds, strict=True) if kind == "+"} or {"elsewhere"}
    return ranking, positives, {name for name, kind in zip(collection, kinds, strict=True) if kind == "j"}


class TestScoreOfARanking:
    @given(answers())
    def test_is_the_area_under_the_trapezoids_and_the_share_among_the_first(
        self, drawn: tuple[list[str], set[str], set[str]]
    ) -> None:
        ranking, positives, junk = drawn
        score = score_ranking(ranking, Relevance(frozenset(positives), frozenset(junk)))
        assert score.average_precision == pytest.approx(average_precision_as_described(ranking, positives, junk))
        expected = [precision_as_described(ranking, positives, junk, k) for k in (1, 5, 10)]
        assert score.precision_at == pytest.approx(expected)

    def test_of_a_perfect_ranking_is_one(self) -> None:
        assert score_ranking("abcxyz", relevance("abc")) == QueryScore(1.0, (1.0, 1.0, 1.0))

    def test_by_hand(self) -> None:
        """Positives at ranks 1, 3 and 6 of which one more is never found: precision 1, then from 1/2 to 2/3, from 2/5
        to 1/2; each is worth a quarter of the recall."""
        score = score_ranking("axbywczu", relevance("abcd"))
        assert score.average_precision == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 5 + 3 / 6) / 2) / 4)
        assert score.precision_at == pytest.approx((1, 2 / 5, 3 / 6))

    def test_the_first_wrong_answer_costs_half_of_what_it_would_in_steps(self) -> None:
        """Precision falls on a line from 1 before the first answer to 0 at it: the area is not the mean of P_k."""
        assert score_ranking("xa", relevance("a")).average_precision == pytest.approx((0 + 1 / 2) / 2)

    def test_junk_is_passed_over_as_if_it_were_not_there(self) -> None:
        assert score_ranking("jakb", relevance("ab", "jk")) == score_ranking("ab", relevance("ab"))

    def test_the_first_ten_are_named_for_what_they_are(self) -> None:
        first = score_ranking("jxabcdefghik", relevance("abz", "j")).first
        assert first[:4] == (("j", "junk"), ("x", "negative"), ("a", "positive"), ("b", "positive"))
        assert [name for name, _ in first] == list("jxabcdefgh")

    def test_nothing_found_is_zero(self) -> None:
        assert score_ranking("xyz", relevance("a")) == QueryScore(0.0, (0.0, 0.0, 0.0))
        assert score_ranking("", relevance("a")) == QueryScore(0.0, (0.0, 0.0, 0.0))

    def test_precision_at_k_asks_for_no_more_than_there_is(self) -> None:
        """One positive at rank 2: among the first 5 it counts as 1 of 2, not as 1 of 5."""
        assert score_ranking("xayzuvw", relevance("a")).precision_at == pytest.approx((0, 1 / 2, 1 / 2))

    def test_refuses_a_photo_that_is_ranked_twice_and_a_query_that_nothing_answers(self) -> None:
        with pytest.raises(ValueError, match="twice"):
            score_ranking("aba", relevance("a"))
        with pytest.raises(ValueError, match="0 positives found of 0"):
            score_ranking("ab", relevance(""))

    def test_the_mean_is_over_queries(self) -> None:
        mean = QueryScore.mean([QueryScore(1.0, (1.0, 0.5)), QueryScore(0.5, (0.0, 0.5))])
        assert mean == QueryScore(0.75, (0.5, 0.5))


class TestScoresOfAllRankings:
    truth = Landmarks(
        (
            LandmarkQuery("one", "q", (0, 0, 9, 9), {ORIGINAL: relevance("ab", "j")}),
            LandmarkQuery("two", "q", (0, 0, 9, 9), {ORIGINAL: relevance("yz")}),
        ),
        (ORIGINAL,),
    )

    def test_photos_that_are_not_in_the_collection_are_not_missed(self) -> None:
        scores = score_rankings(self.truth, {"one": "xa", "two": "yx"}, collection="axyj")
        assert scores[ORIGINAL]["one"] == score_ranking("xa", relevance("a", "j"))
        assert scores[ORIGINAL]["two"] == score_ranking("yx", relevance("y"))

    def test_queries_that_nothing_in_the_collection_answers_or_that_were_not_asked_are_left_out(self) -> None:
        assert score_rankings(self.truth, {"one": "a", "two": "a"}, collection="ab")[ORIGINAL].keys() == {"one"}
        assert score_rankings(self.truth, {"two": "yz"}, collection="abyz")[ORIGINAL].keys() == {"two"}


class TestReading:
    def test_official_layout_of_oxford_and_paris(self, tmp_path: Path) -> None:
        write_query(
            tmp_path,
            "all_souls_1",
            "oxc1_all_souls_000013 136.5 34.1 648.5 955.7\n",
            ["all_souls_000091"],
            ["all_souls_000100", "oxford_002904"],
            ["all_souls_000067"],
        )
        write_query(
            tmp_path, "eiffel_3", "paris_eiffel_000266 348.000000 3.000000 595.000000 508.000000\n", [], ["paris_x"]
        )
        first, second = read_landmarks(tmp_path).queries
        assert (first.name, first.photo, first.box) == ("all_souls_1", "all_souls_000013", (136.5, 34.1, 648.5, 955.7))
        assert first.relevance[ORIGINAL].positives == {"all_souls_000091", "all_souls_000100", "oxford_002904"}
        assert first.relevance[ORIGINAL].junk == {"all_souls_000067"}
        assert (second.name, second.photo, second.box) == ("eiffel_3", "paris_eiffel_000266", (348, 3, 595, 508))
        assert second.relevance[ORIGINAL].positives == {"paris_x"}

    def test_the_real_files(self, shared_data: Path) -> None:
        """55 queries a city, five for each of eleven landmarks; numbers of photos as the authors' pages give them."""
        for city in ("oxford", "paris"):
            truth = read_landmarks(shared_data / "retrieval" / city / "gt")
            assert len(truth.queries) == 55
            assert len({query.name.rsplit("_", 1)[0] for query in truth.queries}) == 11
        assert {len(q.relevance[ORIGINAL].positives) for q in truth.queries if q.name.startswith("eiffel")} == {289}

    @pytest.mark.parametrize(
        ("query", "says"),
        [
            ("", "not a query"),
            ("photo 1 2 3", "not a query"),
            ("photo 1 2 3 four", "not a query"),
            ("photo 5 5 5 9", "is not a box"),
            ("photo 5 5 9 1", "is not a box"),
            ("photo 1 2 nan 4", "is not a box"),
        ],
    )
    def test_damaged_query(self, tmp_path: Path, query: str, says: str) -> None:
        write_query(tmp_path, "a_1", query, ["x"])
        with pytest.raises(HardnetSfmError, match=says) as error:
            read_landmarks(tmp_path)
        assert "a_1_query.txt" in error.value.message

    def test_missing_file(self, tmp_path: Path) -> None:
        write_query(tmp_path, "a_1", "photo 1 2 3 4", ["x"])
        (tmp_path / "a_1_junk.txt").unlink()
        with pytest.raises(HardnetSfmError, match=r"a_1_junk.txt: no such file"):
            read_landmarks(tmp_path)

    def test_file_that_is_no_text(self, tmp_path: Path) -> None:
        write_query(tmp_path, "a_1", "photo 1 2 3 4", ["x"])
        (tmp_path / "a_1_ok.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(HardnetSfmError, match=r"a_1_ok.txt: not a text file"):
            read_landmarks(tmp_path)

    def test_photo_that_is_good_and_junk(self, tmp_path: Path) -> None:
        write_query(tmp_path, "a_1", "photo 1 2 3 4", good=["x"], junk=["x"])
        with pytest.raises(HardnetSfmError, match="x is also among the good or ok photos"):
            read_landmarks(tmp_path)

    def test_a_bad_query_is_left_out_and_named(self, tmp_path: Path) -> None:
        write_query(tmp_path, "a_1", "photo 1 2 3", ["x"])
        write_query(tmp_path, "a_2", "photo 1 2 3 4", ["x"])
        litter(tmp_path)
        truth = read_landmarks(tmp_path)
        assert [query.name for query in truth.queries] == ["a_2"]
        assert list(truth.left_out) == ["a_1"]
        assert "a_1_query.txt: not a query" in truth.left_out["a_1"]

    def test_folder_without_ground_truth(self, tmp_path: Path) -> None:
        with pytest.raises(HardnetSfmError, match="no ground truth"):
            read_landmarks(tmp_path)
