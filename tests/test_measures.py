"""Measures of ranked decisions against loops over thresholds and ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hardnet_sfm.measures import (
    average_precision,
    false_positive_rates,
    fpr95,
    squared_distances,
    threshold_area,
)

# Few distinct distances, so that many are equal.
decisions = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=60)


def columns(drawn: list[tuple[int, bool]]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    distances, flags = zip(*drawn, strict=True)
    return np.array(distances, np.float32) / 4, np.array(flags)


def fpr95_by_hand(distances: NDArray[np.float32], same: NDArray[np.bool_], recall: int = 95) -> float:
    for threshold in sorted(set(distances.tolist())):
        accepted = [flag for distance, flag in zip(distances, same, strict=True) if distance <= threshold]
        if 100 * sum(accepted) >= recall * sum(same):
            return (len(accepted) - sum(accepted)) / (len(same) - sum(same))
    raise AssertionError("the largest distance accepts all")


def average_precision_by_hand(distances: NDArray[np.float32], right: NDArray[np.bool_], positives: int) -> float:
    area, recall = 0.0, 0.0
    for threshold in sorted(set(distances.tolist())):
        accepted = [flag for distance, flag in zip(distances, right, strict=True) if distance <= threshold]
        precision, reached = sum(accepted) / len(accepted), sum(accepted) / positives
        area, recall = area + precision * (reached - recall), reached
    return area


class TestFpr95:
    @given(decisions.filter(lambda drawn: len({flag for _, flag in drawn}) == 2))
    def test_is_the_share_accepted_at_the_first_threshold_that_reaches_the_recall(
        self, drawn: list[tuple[int, bool]]
    ) -> None:
        distances, same = columns(drawn)
        assert fpr95(distances, same) == pytest.approx(fpr95_by_hand(distances, same))

    @given(decisions.filter(lambda drawn: len({flag for _, flag in drawn}) == 2))
    def test_so_are_the_rates_at_all_recalls(self, drawn: list[tuple[int, bool]]) -> None:
        distances, same = columns(drawn)
        expected = [fpr95_by_hand(distances, same, recall) for recall in range(1, 101)]
        np.testing.assert_allclose(false_positive_rates(distances, same), expected)

    @pytest.mark.parametrize(("positives", "left_out"), [(19, 0), (20, 1), (39, 1), (40, 2), (100, 5), (1000, 50)])
    def test_one_in_twenty_may_be_missed_and_no_more(self, positives: int, left_out: int) -> None:
        """Each other pair lies just above one of those that are the same."""
        distances = np.repeat(np.arange(positives), 2) + np.tile([0, 0.5], positives)
        same = np.tile([True, False], positives)
        assert fpr95(distances, same) == pytest.approx((positives - left_out - 1) / positives)

    @pytest.mark.parametrize("same", [[True, True], [False, False], []])
    def test_needs_both_kinds(self, same: list[bool]) -> None:
        with pytest.raises(ValueError, match="pairs that are the same and pairs that are not"):
            fpr95(np.zeros(len(same)), np.array(same, bool))


class TestAveragePrecision:
    @given(decisions, st.integers(0, 5))
    def test_is_the_area_under_the_steps_of_precision_over_recall(
        self, drawn: list[tuple[int, bool]], absent: int
    ) -> None:
        distances, right = columns(drawn)
        positives = max(1, int(right.sum()) + absent)
        expected = average_precision_by_hand(distances, right, positives)
        assert average_precision(distances, right, positives) == pytest.approx(expected)

    def test_of_distinct_distances_is_the_mean_precision_at_each_right_one(self) -> None:
        distances, right = np.array([0.4, 0.1, 0.3, 0.2]), np.array([True, True, False, False])
        assert average_precision(distances, right) == pytest.approx((1 / 1 + 2 / 4) / 2)
        assert average_precision(distances, right, 4) == pytest.approx((1 / 1 + 2 / 4) / 4)

    def test_is_one_only_if_all_is_found_before_anything_wrong(self) -> None:
        distances = np.arange(6.0)
        assert average_precision(distances, distances < 3) == 1
        assert average_precision(distances, distances < 3, 4) == 0.75

    def test_nothing_in_the_list_is_nothing_found(self) -> None:
        assert average_precision(np.zeros(0), np.zeros(0, bool), 7) == 0

    def test_needs_something_to_find(self) -> None:
        with pytest.raises(ValueError, match="something that is to be found"):
            average_precision(np.arange(3.0), np.zeros(3, bool))


class TestThresholdArea:
    def test_needs_matches(self) -> None:
        with pytest.raises(ValueError, match="needs matches"):
            threshold_area(np.zeros(0), np.zeros(0, bool))

    def test_of_matches_that_are_all_right_is_nothing(self) -> None:
        """The curve is over 1 - precision, which stays 0: the published measure, odd as it is."""
        assert threshold_area(np.linspace(0.1, 0.9, 9), np.ones(9, bool)) == 0

    def test_area_is_taken_back_where_precision_rises_again(self) -> None:
        """Wrong, right, right, and one never accepted: precision falls to 0 and rises to 2/3, recall from 0 to 2/4.

        From (1, 0) over (1/2, 1/4) to (1/3, 1/2): minus 1/2 * 1/8, minus 1/6 * 3/8.
        """
        ratios, right = np.array([0.2, 0.4, 0.6, 0.8]), np.array([False, True, True, True])
        assert threshold_area(ratios, right) == pytest.approx(-1 / 16 - 1 / 16)


def test_squared_distances_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(count, 5)).astype(np.float32) for count in (7, 9))
    second[3] = first[2]
    expected = [[float(((a - b) ** 2).sum()) for b in second.astype(np.float64)] for a in first.astype(np.float64)]
    np.testing.assert_allclose(squared_distances(first, second), expected, atol=1e-5)
    assert squared_distances(first, second)[2, 3] >= 0
