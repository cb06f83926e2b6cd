"""Patches cut from sequences: frames, noise and overlaps against geometry, and a set that can be evaluated."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.datasets.hpatches import COLUMNS, find_sequences, read_tasks
from hardnet_sfm.evaluation.datasets.sequences import HomographySequence, read_sequences
from hardnet_sfm.keypoints import Keypoints

TILT = np.array([[0.95, 0.1, -6.0], [-0.08, 1.02, 5.0], [1e-4, -5e-5, 1.0]])


@pytest.fixture(scope="module")
def pipeline() -> ModuleType:
    path = Path(__file__).parents[1] / "pipelines/make_hpatches.py"
    spec = importlib.util.spec_from_file_location("pipelines_make_hpatches", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def paint(seed: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    layers = sum(
        weight * cv2.resize(random.standard_normal(size), (240, 180), interpolation=cv2.INTER_CUBIC)
        for weight, size in ((40, (9, 12)), (30, (30, 40)))
    )
    return np.clip(128 + np.asarray(layers), 0, 255).astype(np.uint8)


def write_sequence(folder: Path, seed: int, homography: NDArray[np.float64], gamma: float = 1.0) -> None:
    folder.mkdir(parents=True)
    photo = paint(seed)
    cv2.imwrite(str(folder / "1.png"), photo)
    for number in range(2, 7):
        moved = cv2.warpPerspective(photo, homography, photo.shape[::-1], borderMode=cv2.BORDER_REFLECT)
        cv2.imwrite(str(folder / f"{number}.png"), (255 * (moved / 255) ** gamma).astype(np.uint8))
        (folder / f"H_1_{number}").write_text("\n".join(" ".join(map(repr, map(float, row))) for row in homography))


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tilted walls and two in other light. Not to be changed."""
    folder = tmp_path_factory.mktemp("sequences")
    for seed, name in enumerate(("wall", "v_door")):
        write_sequence(folder / name, seed, TILT)
    for seed, name in enumerate(("straße #2", "i_lamp"), 5):
        write_sequence(folder / name, seed, np.eye(3), gamma=1.5)
    return folder


def options(pipeline: ModuleType, folder: Path, output: Path, **more: Any) -> Any:
    return pipeline.Options(
        folder, output, **{"max_points": 40, "max_detections": 150, "pairs": 200, "queries": 30, **more}
    )


@pytest.fixture(scope="module")
def made(pipeline: ModuleType, sequences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / "hpatches"
    pipeline.make(options(pipeline, sequences, output))
    return output


class TestSet:
    def test_has_the_layout_and_the_names_of_hpatches(self, made: Path) -> None:
        found = find_sequences(made)
        assert [sequence.name for sequence in found] == ["i_lamp", "i_straße #2", "v_door", "v_wall"]
        assert all(2 <= sequence.count <= 40 for sequence in found)
        for sequence in found:
            assert {path.stem for path in sequence.path.iterdir()} == {*COLUMNS}
            assert [len(sequence.column(column)) for column in COLUMNS] == [sequence.count] * 16
        assert [path.name for path in made.parent.iterdir()] == ["hpatches"]

    def test_a_row_shows_one_point_the_better_the_less_noise(self, made: Path) -> None:
        """Correlation of each patch with its reference, and with another row's."""
        for sequence in find_sequences(made):
            columns = {name: sequence.column(name).reshape(sequence.count, -1).astype(float) for name in COLUMNS}

            def correlation(name: str, shift: int = 0, of: dict[str, NDArray[np.float64]] = columns) -> float:
                pairs = zip(of["ref"], np.roll(of[name], shift, 0), strict=True)
                return float(np.median([np.corrcoef(one, other)[0, 1] for one, other in pairs]))

            levels = [np.mean([correlation(f"{level}{photo}") for photo in range(1, 6)]) for level in "eht"]
            assert levels[0] > 0.8
            assert levels[0] > levels[1] > levels[2] > 0.3
            assert abs(correlation("e1", 1)) < levels[0] / 2

    def test_tasks_are_read_and_ask_what_they_should(self, made: Path) -> None:
        for split, names in (("full", 4), ("illum", 2), ("view", 2)):
            tasks = read_tasks(made / "tasks", split, find_sequences(made))
            assert len(tasks.sequences) == names
            of = tasks.sequence_of
            (first, photo), (second, other) = tasks.positives[:, 0].T, tasks.positives[:, 1].T
            assert (first == second).all()
            assert (photo != other).all()
            intra, inter = tasks.negatives["intra"][:, :, 0].T, tasks.negatives["inter"][:, :, 0].T
            assert (intra[0] != intra[1]).all()
            assert (of[intra[0]] == of[intra[1]]).all()
            assert (of[inter[0]] != of[inter[1]]).all()
            assert all(len(pairs) == 200 for pairs in (tasks.positives, *tasks.negatives.values()))
            asked, distracting = set(tasks.queries.tolist()), set(tasks.distractors.tolist())
            assert len(asked) == len(tasks.queries) == 30
            assert not asked & distracting
            assert set(of.tolist()) == set(of[tasks.queries].tolist())

    def test_is_the_same_again_and_another_with_another_seed(
        self, pipeline: ModuleType, made: Path, sequences: Path, tmp_path: Path
    ) -> None:
        pipeline.make(options(pipeline, sequences, tmp_path / "again"))
        files = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
        assert all((made / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
        (sequence,), _ = read_sequences(sequences / "wall")
        _, columns = pipeline.cut_sequence(sequence, options(pipeline, sequences, tmp_path), np.random.default_rng(1))
        found = {of.name: of for of in find_sequences(made)}["v_wall"].column("e1")
        assert columns["e1"].shape != found.shape or (columns["e1"] != found).any()


class TestFrames:
    def test_taken_by_a_homography_are_what_small_steps_give(self, pipeline: ModuleType) -> None:
        """Both axes of a frame, by the positions of points a little way along them."""
        rng = np.random.default_rng(0)
        frames = pipeline.Frames(rng.uniform(0, 300, (20, 2)), rng.normal(size=(20, 2, 2)))
        taken = frames.taken(TILT)
        for axis in (0, 1):
            step = 1e-5
            ends = [frames.xy + sign * step * frames.axes[:, :, axis] for sign in (-1, 1)]
            before, after = (cv2.perspectiveTransform(end[None], TILT)[0] for end in ends)
            np.testing.assert_allclose((after - before) / (2 * step), taken.axes[:, :, axis], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(taken.xy, cv2.perspectiveTransform(frames.xy[None], TILT)[0])

    def test_noise_is_within_its_bounds_and_reaches_them(self, pipeline: ModuleType) -> None:
        for noise in pipeline.NOISE.values():
            drawn = noise.draw(20_000, np.random.default_rng(1))
            matrices = drawn[:, :, :2]
            area, lengths = np.linalg.det(matrices), np.linalg.norm(matrices, axis=1)
            measured = {
                "rotation": np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])),
                "translation": drawn[:, :, 2],
                "scale": np.log2(area) / 2,
                "anisotropy": np.log2(lengths[:, 1] / lengths[:, 0]),
            }
            for name, values in measured.items():
                most = getattr(noise, name)
                assert 0.99 * most < np.abs(values).max() <= most + 1e-9
                assert abs(np.mean(values)) < 0.05 * most

    def test_noise_moves_a_frame_in_its_own_coordinates(self, pipeline: ModuleType) -> None:
        """A frame that is turned by 90 degrees and has 4 pixels a sigma moves half a sigma along its x axis: 2 down."""
        frames = pipeline.Frames(np.array([[10.0, 20.0]]), np.array([[[0.0, -4.0], [4.0, 0.0]]]))
        moved = frames.moved(np.array([[[2.0, 0.0, 0.5], [0.0, 1.0, 0.0]]]))
        np.testing.assert_allclose(moved.xy, [[10, 22]])
        np.testing.assert_allclose(moved.axes, [[[0, -4], [8, 0]]])

    def test_overlaps_are_about_those_that_the_authors_state(self, pipeline: ModuleType) -> None:
        """In the data set's README: medians of 0.85 (easy) and 0.72 (hard). Counted on a grid."""
        steps = np.linspace(-2, 2, 61)
        points = np.stack(np.meshgrid(steps, steps)).reshape(2, -1)
        circle = (points**2).sum(0) <= 1
        medians = []
        for level in ("easy", "hard", "tough"):
            shares = []
            for noise in pipeline.NOISE[level].draw(150, np.random.default_rng(2)):
                ellipse = (np.linalg.solve(noise[:, :2], points - noise[:, 2:]) ** 2).sum(0) <= 1
                shares.append((circle & ellipse).sum() / (circle | ellipse).sum())
            medians.append(np.median(shares))
        assert medians[:2] == pytest.approx([0.85, 0.72], abs=0.05)
        assert medians[2] < medians[1]

    def test_inside_is_the_whole_patch(self, pipeline: ModuleType) -> None:
        photo = np.zeros((100, 200), np.uint8)
        xy = np.array([[5.0, 50], [4.9, 50], [194, 94], [194.1, 94], [100, 50]])
        axes = np.repeat(np.eye(2)[None], 5, 0)
        axes[4, 0] *= -1  # mirrored
        assert pipeline.Frames(xy, axes).inside(photo).tolist() == [True, False, True, False, False]


class TestDistinctCircles:
    @pytest.mark.parametrize(
        ("distance", "first", "second"), [(0, 1, 1), (0, 1, 2), (1, 1, 1), (0.5, 1, 1.4), (3, 1, 1), (1.5, 2, 1)]
    )
    def test_overlap_is_that_of_a_grid(
        self, pipeline: ModuleType, distance: float, first: float, second: float
    ) -> None:
        steps = np.linspace(-4, 6, 1001)
        x, y = np.meshgrid(steps, steps)
        one, other = x**2 + y**2 <= first**2, (x - distance) ** 2 + y**2 <= second**2
        expected = (one & other).sum() / (one | other).sum()
        found = pipeline.circle_overlap(np.array([distance]), np.array([first]), np.array([second]))
        assert found[0] == pytest.approx(expected, abs=0.005)

    def test_what_is_kept_overlaps_little_and_what_is_not_overlaps_something_kept(self, pipeline: ModuleType) -> None:
        rng = np.random.default_rng(3)
        scales = np.exp(rng.uniform(0, 2, 400)).astype(np.float32)
        nothing = np.zeros_like(scales)
        points = Keypoints(rng.uniform(0, 60, (400, 2)).astype(np.float32), scales, nothing, nothing)
        kept = pipeline.distinct_circles(points, np.random.default_rng(0))
        distance = np.linalg.norm(points.xy[:, None].astype(float) - points.xy, axis=2)
        overlap = pipeline.circle_overlap(distance, scales[:, None], scales[None])
        np.fill_diagonal(overlap, 0)
        assert overlap[np.ix_(kept, kept)].max() <= 0.5
        left = np.setdiff1d(np.arange(400), kept)
        assert len(left)
        assert (overlap[np.ix_(left, kept)].max(1) > 0.5).all()


def test_names_say_what_changes(pipeline: ModuleType) -> None:
    grey = np.zeros((300, 400), np.uint8)

    def named(name: str, shift: float) -> str:
        homographies = np.array([np.eye(3)] * 5)
        homographies[3, 0, 2] = shift
        return str(pipeline.hpatches_name(HomographySequence(name, (), homographies), grey))

    assert named("leuven", 24) == "i_leuven"  # of a diagonal of 500
    assert named("boat", 26) == "v_boat"
    assert named("v_still", 0) == "v_still"


class TestBadInput:
    def test_wrong_usage(self, pipeline: ModuleType, made: Path, sequences: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="exists, and is not an empty folder"):
            pipeline.make(options(pipeline, sequences, made))
        with pytest.raises(UsageError, match="--pairs must be at least 5"):
            pipeline.make(options(pipeline, sequences, tmp_path / "out", pairs=0))
        assert not [*tmp_path.iterdir()]

    @pytest.mark.parametrize(("name", "says"), [("a,b", "commas"), ("i_wall", "wall may get the name")])
    def test_names_that_task_files_cannot_have(
        self, pipeline: ModuleType, tmp_path: Path, name: str, says: str
    ) -> None:
        for number, of in enumerate(("wall", name)):
            write_sequence(tmp_path / "both" / of, number, TILT)
        with pytest.raises(UsageError, match=says):
            pipeline.make(options(pipeline, tmp_path / "both", tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_one_sequence_alone(self, pipeline: ModuleType, tmp_path: Path) -> None:
        write_sequence(tmp_path / "alone/wall", 0, TILT)
        with pytest.raises(HardnetSfmError, match="one sequence alone"):
            pipeline.make(options(pipeline, tmp_path / "alone", tmp_path / "out"))
        assert [path.name for path in tmp_path.iterdir()] == ["alone"]

    def test_flat_photos(self, pipeline: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_sequence(tmp_path / "flat/wall", 0, TILT)
        for number in range(1, 7):
            cv2.imwrite(str(tmp_path / f"flat/wall/{number}.png"), np.full((180, 240), 90, np.uint8))
        with pytest.raises(HardnetSfmError, match="wall: fewer than two points"):
            pipeline.make(options(pipeline, tmp_path / "flat", tmp_path / "out"))
        monkeypatch.setattr(sys, "argv", ["make_hpatches.py", str(tmp_path / "none"), "-o", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as exit:
            pipeline.main()
        assert exit.value.code == 1
