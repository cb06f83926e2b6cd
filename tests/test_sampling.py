"""Batches of pairs: what is in them, and what may be a negative of what."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.patch_set import PATCH_SIZE, PatchSet
from hardnet_sfm.training.batches import Batches, Resident
from hardnet_sfm.training.sampling import Sampler, SamplingOptions

OPTIONS = SamplingOptions(batch_size=64, same_photos=0.5, a_pair_of_photos=16, near=0.01, near_pixels=5)


def patch_set(points: int = 300, photos: int = 8, seed: int = 0, shade: int = 0) -> PatchSet:
    """Points seen in 1 to 5 photos. A patch's first pixels tell its row, its data set, its point and its photo."""
    rng = np.random.default_rng(seed)
    seen = [np.sort(rng.choice(photos, rng.integers(1, 6), replace=False)) for _ in range(points)]
    point = np.repeat(np.arange(points), [len(row) for row in seen])
    image = np.concatenate(seen).astype(np.int32)
    count = len(point)
    patches = np.zeros((count, PATCH_SIZE, PATCH_SIZE), np.uint8)
    for place, value in enumerate((np.arange(count), np.full(count, shade), point, image)):
        patches[:, place, 0], patches[:, place, 1] = value % 256, value // 256
    frame = np.zeros((count, 2, 3), np.float32)
    frame[:, :, 2] = rng.uniform(0, 100, (count, 2))
    xyz = rng.uniform(0, 1, (points, 3)).astype(np.float32)
    xyz[1::10] = xyz[::10] + 0.001
    nothing = np.full(count, np.nan, np.float32)
    names = tuple(map(str, range(photos)))
    return PatchSet("made.h5", "sfm", 12, names, patches, point, image, frame, nothing, xyz, 1.0).check()


def told(patches: np.ndarray, place: int) -> np.ndarray:
    return patches[:, place, 0].astype(int) + 256 * patches[:, place, 1].astype(int)


def test_pairs_are_of_one_point_in_two_photos_and_no_point_comes_twice() -> None:
    sampler = Sampler([patch_set()], [1], OPTIONS, seed=1)
    for number in range(20):
        batch = sampler(number)
        assert len(batch.anchors) == len(batch.positives) == 64
        point = told(batch.anchors, 2)
        np.testing.assert_array_equal(point, told(batch.positives, 2))
        assert len(set(point.tolist())) == 64
        assert np.all(told(batch.anchors, 3) != told(batch.positives, 3))


def test_allowed_is_the_brute_force() -> None:
    made = patch_set()
    batch = Sampler([made], [1], OPTIONS, seed=2)(0)
    rows = [told(batch.anchors, 0), told(batch.positives, 0)]
    expected = np.ones((64, 64), bool)
    for i in range(64):
        for j in range(64):
            near = np.linalg.norm(made.xyz[made.point[rows[0][i]]] - made.xyz[made.point[rows[0][j]]]) < 0.01
            close = any(
                made.image[one[i]] == made.image[other[j]]
                and np.linalg.norm(made.frame[one[i], :, 2] - made.frame[other[j], :, 2]) < 5
                for one in rows
                for other in rows
            )
            expected[i, j] = i != j and not near and not close
    np.testing.assert_array_equal(batch.allowed, expected)
    assert 0 < (~expected).sum() - 64 < 400


def test_unknown_places_forbid_nothing() -> None:
    made = patch_set()
    made.xyz[:] = np.nan
    made.frame[:] = np.nan
    np.testing.assert_array_equal(Sampler([made], [1], OPTIONS, seed=0)(0).allowed, ~np.eye(64, dtype=bool))


def test_a_share_comes_from_few_photos() -> None:
    def pairs_of_photos(same: float) -> float:
        options = SamplingOptions(64, same, a_pair_of_photos=64)
        sampler = Sampler([patch_set(3000, photos=40)], [1], options, seed=3)
        counts = []
        for number in range(10):
            batch = sampler(number)
            photos = np.sort(np.stack([told(batch.anchors, 3), told(batch.positives, 3)]), 0)
            counts.append(np.unique(photos, axis=1, return_counts=True)[1].max())
        return float(np.mean(counts))

    assert pairs_of_photos(0) < 4
    assert pairs_of_photos(1) > 12  # two photos share about 15 points


def test_data_sets_come_in_their_shares_and_are_each_others_negatives() -> None:
    sets = [patch_set(seed=1, shade=1), patch_set(seed=2, shade=2)]
    sampler = Sampler(sets, [3, 1], OPTIONS, seed=4)
    of = [told(sampler(number).anchors, 1) for number in range(40)]
    assert np.mean(np.concatenate(of) == 1) == pytest.approx(0.75, abs=0.01)
    batch = sampler(0)
    assert batch.allowed[np.ix_(of[0] == 1, of[0] == 2)].all()


def test_patches_that_lie_on_the_device_give_the_same_batches() -> None:
    sets = [patch_set(seed=1, shade=1), patch_set(200, seed=2, shade=2)]
    sampler = Sampler(sets, [3, 1], OPTIONS, seed=4)
    resident = Resident(sets, torch.device("cpu"))
    batches, drawn = iter(Batches(sampler, 5, 2)), iter(Batches(sampler.draw, 5, 2))
    for _ in range(3):
        expected, draw = next(batches), next(drawn)
        found = {**resident(draw["rows"]), "allowed": draw["allowed"]}
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=0, atol=0)


def test_patches_stay_in_their_files_on_a_cpu_and_where_a_gpu_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [patch_set()]
    assert Resident.where_it_fits(sets, torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * sets[0].patches.nbytes - 1, 2**40))
    assert Resident.where_it_fits(sets, torch.device("cuda")) is None


def test_a_batch_depends_on_its_number_and_the_seed_alone() -> None:
    first, again = (Sampler([patch_set()], [1], OPTIONS, seed=5) for _ in range(2))
    first(0)
    np.testing.assert_array_equal(first(7).anchors, again(7).anchors)
    assert (first(7).anchors != first(8).anchors).any()
    assert (first(7).anchors != Sampler([patch_set()], [1], OPTIONS, seed=6)(7).anchors).any()


def test_all_points_and_patches_are_drawn() -> None:
    made = patch_set(100)
    sampler = Sampler([made], [1], SamplingOptions(32, 0.5, 8), seed=0)
    batches = [sampler(number) for number in range(150)]
    drawn = {int(row) for batch in batches for row in (*told(batch.anchors, 0), *told(batch.positives, 0))}
    several = np.isin(made.point, np.flatnonzero(np.bincount(made.point) > 1))
    assert drawn == set(np.flatnonzero(several).tolist())


def test_too_few_points_for_a_batch_are_a_clear_error() -> None:
    with pytest.raises(HardnetSfmError, match="points seen in two photos are too few for batches of 64") as raised:
        Sampler([patch_set(20)], [1], OPTIONS, seed=0)
    assert "--batch-size" in raised.value.hint


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 1},
        {"a_pair_of_photos": 0},
        {"same_photos": 1.5},
        {"same_photos": np.nan},
        {"near": -1.0},
        {"near": np.nan},
        {"near_pixels": np.inf},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(wrong)).replace('_', '-')} must be"):
        Sampler([patch_set()], [1], SamplingOptions(**wrong), seed=0)  # type: ignore[arg-type]
