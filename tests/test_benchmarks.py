"""`evaluate` on small data sets in the layouts of Brown, W1BS, HPatches, EVD and WxBS: figures are those of loops."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from test_hpatches import area_by_hand, ranked
from test_image_pairs import TILT
from test_measures import fpr95_by_hand
from test_w1bs import area_by_hand as w1bs_area_by_hand

from hardnet_sfm.cli import main
from hardnet_sfm.competitors import Competitor, competitors
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.hpatches import COLUMNS
from hardnet_sfm.evaluation.patch_scores import evaluate_brown, evaluate_hpatches, evaluate_w1bs, trained_on
from hardnet_sfm.evaluation.patch_streams import PatchStream
from hardnet_sfm.evaluation.photo_scores import COLMAP, evaluate_pairs
from hardnet_sfm.features.descriptors import make_descriptor
from hardnet_sfm.networks.hardnet import HardNet
from hardnet_sfm.resources import Resources

Grey = NDArray[np.uint8]
ROOTSIFT = Competitor("rootsift", "rootsift", None, "")
ONE = Resources(device="cpu", workers=1)

pytestmark = pytest.mark.usefixtures("one_thread")


def looks(points: int, views: int, side: int, seed: int, noise: float = 25) -> Grey:
    """(points, views, side, side): textures that are alike in all views of a point."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(points, 7, 7))
    base = np.array([cv2.resize(one, (side, side), interpolation=cv2.INTER_CUBIC) for one in coarse])
    return np.clip(128 + 40 * base[:, None] + noise * rng.normal(size=(points, views, side, side)), 0, 255).astype(
        np.uint8
    )


def described(patches: Grey) -> NDArray[np.float64]:
    """RootSIFT one patch after the other, by OpenCV's resize and the network alone."""
    network = make_descriptor("rootsift", None).network.eval()
    small = np.array([cv2.resize(patch, (32, 32), interpolation=cv2.INTER_AREA) for patch in patches])
    with torch.no_grad():
        rows = [network(torch.from_numpy(one[None, None]).float() / 255)[0] for one in small]
    return torch.stack(rows).half().numpy().astype(np.float64)


def write_brown(folder: Path, seed: int, points: int = 40) -> tuple[Grey, NDArray[np.int64]]:
    """A set of two sheets, eight patches a point, and 300 labelled pairs; the patches and the pairs with labels."""
    folder.mkdir(parents=True)
    patches = looks(points, 8, 64, seed, noise=300).reshape(-1, 64, 64)
    for number in range(-(-len(patches) // 256)):
        sheet = np.zeros((256, 64, 64), np.uint8)
        block = patches[256 * number :][:256]
        sheet[: len(block)] = block
        grid = sheet.reshape(16, 16, 64, 64).swapaxes(1, 2).reshape(1024, 1024)
        Image.fromarray(grid).save(folder / f"patches{number:04d}.bmp")
    point = np.repeat(np.arange(points), 8)
    (folder / "info.txt").write_text("".join(f"{p} 0\n" for p in point))
    rng = np.random.default_rng(seed)
    first = rng.integers(0, len(patches), 300)
    second = np.where(np.arange(300) % 2, first ^ 1, rng.integers(0, len(patches), 300))
    lines = [f"{a} {point[a]} 0 {b} {point[b]} 0\n" for a, b in zip(first, second, strict=True)]
    (folder / "m50_300_300_0.txt").write_text("".join(lines))
    return patches, np.stack([first, second, point[first] == point[second]], 1)


def write_w1bs(folder: Path) -> dict[str, tuple[Grey, Grey]]:
    columns = {}
    for seed, name in enumerate(("A/one", "A/two", "S/three")):
        views = looks(30, 2, 40, seed, noise=150)
        of, file = name.split("/")
        for at in (0, 1):
            (folder / of / str(at + 1)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(views[:, at].reshape(-1, 40)).save(folder / of / str(at + 1) / f"{file}.bmp")
        columns[name] = views[:, 0], views[:, 1]
    return columns


def write_hpatches(folder: Path) -> dict[str, Grey]:
    """Two sequences, (N, 16, 65, 65) patches of each, and tasks of one split, `full`."""
    sequences = {}
    for seed, (name, count) in enumerate((("i_ski", 12), ("v_wall", 15))):
        patches = looks(count, 16, 65, seed, noise=200)
        (folder / name).mkdir(parents=True)
        for number, column in enumerate(COLUMNS):
            Image.fromarray(patches[:, number].reshape(-1, 65)).save(folder / name / f"{column}.png")
        sequences[name] = patches
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "splits.json").write_text(json.dumps({"full": {"name": "full", "test": ["v_wall", "i_ski"]}}))
    rng = np.random.default_rng(0)
    rows: dict[str, list[str]] = {"pos": [], "neg_intra": [], "neg_inter": []}
    for _ in range(50):
        one, away = rng.integers(12, size=2)
        photo = int(rng.integers(5))
        rows["pos"].append(f"i_ski,{photo},{one},i_ski,{photo + 1},{one}")
        rows["neg_intra"].append(f"i_ski,{photo},{one},i_ski,{photo + 1},{(one + 1) % 12}")
        rows["neg_inter"].append(f"i_ski,{photo},{one},v_wall,{photo + 1},{away}")
    for kind, lines in rows.items():
        (tasks / f"verif_{kind}_split-full.csv").write_text("\n".join(["s1,t1,idx1,s2,t2,idx2", *lines, ""]))
    (tasks / "retr_queries_split-full.csv").write_text("s,idx\ni_ski,3\nv_wall,1\n")
    distractors = [f"{name},{row}" for name in sequences for row in range(4, 12)]
    (tasks / "retr_distractors_split-full.csv").write_text("\n".join(["s,idx", *distractors, ""]))
    return sequences


def test_patches_are_described_in_order_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardnet_sfm.features.descriptors._BATCH", {"cpu": 16, "cuda": 16})
    patches = looks(23, 2, 32, 0).reshape(-1, 32, 32)
    stream = PatchStream(make_descriptor("rootsift", None), Resources(device="cpu", workers=2))
    whole = stream([patches])
    assert whole.shape == (46, 128)
    np.testing.assert_array_equal(stream([patches[:1], patches[1:20], patches[20:20], patches[20:]]), whole)
    np.testing.assert_allclose(whole, described(patches), atol=1e-3)
    assert stream([]).shape == (0, 128)


class TestBrown:
    def test_figures_are_those_of_a_loop_over_the_pairs(self, tmp_path: Path) -> None:
        truth = {name: write_brown(tmp_path / name, seed) for seed, name in enumerate(("liberty", "yosemite"))}
        table = evaluate_brown(tmp_path, [ROOTSIFT], ONE)
        (measure,) = table.measures
        assert measure.columns == ["liberty", "yosemite", "mean"]
        for name, (patches, pairs) in truth.items():
            rows = described(patches)
            distances = np.array([np.linalg.norm(rows[a] - rows[b]) for a, b, _ in pairs])
            expected = fpr95_by_hand(distances, pairs[:, 2].astype(bool))
            assert 0 < expected < 0.9
            assert measure.values["rootsift"][name] == pytest.approx(expected, abs=0.02)
            assert table.details["false_positives_by_recall"]["rootsift"][name][94] == measure.values["rootsift"][name]
        assert not measure.marked
        row = measure.values["rootsift"]
        assert row["mean"] == pytest.approx((row["liberty"] + row["yosemite"]) / 2)

    def test_a_set_by_itself_goes_by_the_name_of_its_folder(self, tmp_path: Path) -> None:
        write_brown(tmp_path / "mine", 0)
        assert evaluate_brown(tmp_path / "mine", [ROOTSIFT], ONE).measures[0].columns == ["mine", "mean"]

    def test_a_star_says_what_was_trained_on(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """By metadata as `train` writes it, or by the name of the file."""
        write_brown(tmp_path / "data/liberty", 0)
        write_brown(tmp_path / "data/notredame", 1)
        torch.manual_seed(0)
        weights = HardNet().state_dict()
        stated = {"architecture": "hardnet", "data": '["brown liberty", "warps notre_dame"]'}
        for name, metadata in (
            ("ours", stated),
            ("hardnet-liberty", {}),
            ("NotreDame", {}),
            ("others", {"data": '["sfm statue-of-liberty.h5"]'}),
            ("statueofliberty", {"data": "[]", "init": '{"file": "a.safetensors", "data": "brown yosemite"}'}),
        ):
            save_file(weights, tmp_path / f"{name}.safetensors", metadata)
        rows = competitors(["rootsift"], [str(path) for path in sorted(tmp_path.glob("*.safetensors"))])
        assert {row.name: trained_on(row) for row in rows} == {
            "rootsift": (),
            "NotreDame": ("notredame",),
            "hardnet-liberty": ("liberty",),
            "others": (),
            "ours": ("liberty", "notredame"),
            "statueofliberty": ("yosemite",),
        }
        line = f"evaluate brown {tmp_path}/data --descriptor rootsift --weights {tmp_path}/hardnet-liberty.safetensors"
        main(f"{line} --workers 1 --csv {tmp_path}/t.csv --json {tmp_path}/t.json".split())
        said = capsys.readouterr()
        assert "* trained on this very set" in said.out
        assert "resized whole" in said.err
        with (tmp_path / "t.csv").open() as file:
            lines = list(csv.DictReader(file))
        assert [(row["descriptor"], row["column"]) for row in lines if row["mark"]] == [("hardnet-liberty", "liberty")]
        found = {row["column"]: row["value"] for row in lines if row["descriptor"] == "hardnet-liberty"}
        assert found["mean"] == found["notredame"]
        assert "trained on" in said.out.splitlines()[2]
        content = json.loads((tmp_path / "t.json").read_text())
        assert content["descriptors"]["hardnet-liberty"]["trained_on"] == ["liberty"]
        assert content["pairs"] == {"liberty": 300, "notredame": 300}
        shutil.copytree(tmp_path / "data/notredame", tmp_path / "Notre Dame")
        (measure,) = evaluate_brown(tmp_path / "Notre Dame", rows, ONE).measures
        assert measure.marked == {("NotreDame", "Notre Dame"), ("ours", "Notre Dame")}
        assert "mean" not in measure.values["ours"] and "mean" in measure.values["others"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda folder: (folder / "m50_300_300_0.txt").unlink(), r"no labelled pairs m50_100000_100000_0\.txt"),
            (
                lambda folder: (folder / "m50_300_300_0.txt").rename(folder / "m50_400_400_0.txt"),
                "300 pairs, but its name says 400",
            ),
            (lambda folder: (folder / "m50_2_2_0.txt").write_text("0 0 0 1 0 0\n"), "no labelled pairs m50_100000"),
            (lambda folder: (folder / "m50_300_300_0.txt").write_text("0 0 0 1"), "not lines of at least 5"),
            (lambda folder: (folder / "patches0001.bmp").unlink(), "1 sheets"),
            (lambda folder: folder.rename(folder.with_name("trevi")), "none of the folders liberty"),
        ],
    )
    def test_a_bad_set_is_a_clear_error(self, change: Any, message: str, tmp_path: Path) -> None:
        write_brown(tmp_path / "liberty", 0)
        change(tmp_path / "liberty")
        with pytest.raises(HardnetSfmError, match=message):
            evaluate_brown(tmp_path, [ROOTSIFT], ONE)


class TestW1bs:
    def test_figures_are_the_means_of_loops(self, tmp_path: Path) -> None:
        columns = write_w1bs(tmp_path)
        table = evaluate_w1bs(tmp_path, [ROOTSIFT], ONE)
        areas = {name: w1bs_area_by_hand(*map(described, pair)) for name, pair in columns.items()}
        found = table.measures[0].values["rootsift"]
        assert list(found) == ["appearance", "sensor", "mean"]
        appearance = (areas["A/one"] + areas["A/two"]) / 2
        assert found["appearance"] == pytest.approx(appearance, abs=0.03)
        assert found["sensor"] == pytest.approx(areas["S/three"], abs=0.03)
        assert found["mean"] == pytest.approx((found["appearance"] + found["sensor"]) / 2)
        assert table.details["pairs"]["rootsift"].keys() == columns.keys()

    def test_a_damaged_column_is_left_out_and_named(self, tmp_path: Path) -> None:
        write_w1bs(tmp_path)
        whole = evaluate_w1bs(tmp_path, [ROOTSIFT], ONE)
        (tmp_path / "A/1/one.bmp").write_bytes(b"BM")
        table = evaluate_w1bs(tmp_path, [ROOTSIFT], ONE)
        pairs = {row: dict(of) for row, of in whole.details["pairs"].items()}
        del pairs["rootsift"]["A/one"]
        assert table.details["pairs"] == pairs
        assert table.measures[0].values["rootsift"]["appearance"] == pairs["rootsift"]["A/two"]
        assert "left out: 1" in table.notes[-1]
        assert "one.bmp: not a photo" in table.notes[-1]


class TestHPatches:
    def test_figures_are_those_of_loops(self, tmp_path: Path) -> None:
        sequences = write_hpatches(tmp_path)
        table = evaluate_hpatches(tmp_path, [ROOTSIFT], ONE)
        rows = {name: described(p.reshape(-1, 65, 65)).reshape(*p.shape[:2], -1) for name, p in sequences.items()}
        verification, matching, retrieval = (measure.values["rootsift"] for measure in table.measures)
        assert list(matching) == [
            f"{kind} {level}" for kind in ("illum", "view") for level in ("easy", "hard", "tough")
        ] + ["mean"]
        for level, start in (("easy", 1), ("hard", 6), ("tough", 11)):
            areas = []
            for column in range(start, start + 5):
                distances = np.linalg.norm(rows["v_wall"][:, None, 0] - rows["v_wall"][None, :, column], axis=2)
                entries = [(d.min(), d.argmin() == number) for number, d in enumerate(distances)]
                areas.append(area_by_hand(ranked(entries), 15))
            assert matching[f"view {level}"] == pytest.approx(np.mean(areas), abs=0.03)
        query, ski = rows["v_wall"][1], rows["i_ski"]
        own = [(float(np.linalg.norm(query[0] - query[column])), True) for column in range(1, 6)]
        others = [(float(np.linalg.norm(query[0] - ski[row, 0])), False) for row in range(4, 12)]
        one = area_by_hand(ranked(own + others), 5)
        query, wall = ski[3], rows["v_wall"]
        own = [(float(np.linalg.norm(query[0] - query[column])), True) for column in range(1, 6)]
        others = [(float(np.linalg.norm(query[0] - wall[row, 0])), False) for row in range(4, 12)]
        assert retrieval["easy"] == pytest.approx((one + area_by_hand(ranked(own + others), 5)) / 2, abs=0.03)
        assert verification.keys() == {
            f"{lv} {kind}" for lv in ("easy", "hard", "tough") for kind in ("intra", "inter")
        } | {"mean"}
        assert 0.3 < verification["mean"] <= 1
        assert table.details["points"] == 27
        assert table.details["verification_auc"]["rootsift"]["mean"] > 0.6

    def test_tasks_may_lie_elsewhere(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_hpatches(tmp_path / "release")
        (tmp_path / "release/tasks").rename(tmp_path / "official")
        line = f"evaluate hpatches {tmp_path}/release --descriptor rootsift --workers 1"
        with pytest.raises(SystemExit) as exit:
            main(line.split())
        assert exit.value.code == 1
        assert "no splits.json" in capsys.readouterr().err
        main(f"{line} --tasks {tmp_path}/official".split())
        printed = capsys.readouterr().out
        assert all(f"hpatches, split full: {task}" in printed for task in ("verification", "matching", "retrieval"))

    def test_a_column_of_another_height(self, tmp_path: Path) -> None:
        write_hpatches(tmp_path)
        Image.new("L", (65, 65 * 11)).save(tmp_path / "i_ski/h3.png")
        with pytest.raises(HardnetSfmError, match=r"h3\.png: 65x715 pixels, but a column of 12 patches has 65x780"):
            evaluate_hpatches(tmp_path, [ROOTSIFT], ONE)


@pytest.fixture(scope="module")
def views() -> tuple[Grey, Grey]:
    """A painted wall and the same by `TILT`."""
    random = np.random.default_rng(7)
    layers = sum(
        weight * cv2.resize(random.standard_normal(size), (240, 180), interpolation=cv2.INTER_CUBIC)
        for weight, size in ((40, (9, 12)), (30, (30, 40)), (20, (60, 80)))
    )
    first = np.clip(128 + np.asarray(layers), 0, 255).astype(np.uint8)
    return first, np.asarray(cv2.warpPerspective(first, TILT, (240, 180), borderMode=cv2.BORDER_REFLECT), np.uint8)


class TestPairs:
    def test_homography_counts_right_matches(self, tmp_path: Path, views: tuple[Grey, Grey]) -> None:
        for at, photo in zip("12", views, strict=True):
            (tmp_path / at).mkdir()
            cv2.imwrite(str(tmp_path / at / "wall.png"), photo)
        (tmp_path / "h").mkdir()
        (tmp_path / "h/wall.txt").write_text("\n".join(" ".join(map(str, row)) for row in TILT))
        table = evaluate_pairs(tmp_path, [ROOTSIFT], ONE, max_features=150)
        assert [measure.name for measure in table.measures] == ["mma", "right", "map"]
        assert list(table.measures[0].values) == [COLMAP, "rootsift"]
        accuracy, right, precision = (measure.values["rootsift"]["wall"] for measure in table.measures)
        curve = table.details["accuracy_by_threshold"]["rootsift"]["wall"]
        assert len(curve) == 10
        assert curve[2] == accuracy
        assert curve == sorted(curve)
        assert accuracy > 0.5
        assert right > 30
        assert precision > 0.5
        # The wrong homography makes nearly all of them wrong.
        (tmp_path / "h/wall.txt").write_text("1 0 40\n0 1 -30\n0 0 1\n")
        wrong = evaluate_pairs(tmp_path, [ROOTSIFT], ONE, max_features=150)
        assert wrong.measures[0].values["rootsift"]["wall"] < 0.1

    def test_a_damaged_photo_leaves_its_pair_out(self, tmp_path: Path, views: tuple[Grey, Grey]) -> None:
        (tmp_path / "h").mkdir()
        for at, photo in zip("12", views, strict=True):
            (tmp_path / at).mkdir()
            for name in ("door", "wall"):
                cv2.imwrite(str(tmp_path / at / f"{name}.png"), photo)
                np.savetxt(tmp_path / "h" / f"{name}.txt", TILT)
        whole = evaluate_pairs(tmp_path, [ROOTSIFT], ONE, max_features=50)
        (tmp_path / "2/door.png").write_bytes(b"")
        table = evaluate_pairs(tmp_path, [ROOTSIFT], ONE, max_features=50)
        assert table.measures[0].columns == ["wall", "mean"]
        assert table.measures[0].values["rootsift"]["wall"] == whole.measures[0].values["rootsift"]["wall"]
        assert "door.png: the file is empty" in table.notes[-1]
        (tmp_path / "1/wall.png").write_bytes(b"")
        with pytest.raises(HardnetSfmError, match="the file is empty"):
            evaluate_pairs(tmp_path, [ROOTSIFT], ONE, max_features=50)

    def test_correspondences_count_by_the_estimated_geometry(
        self, tmp_path: Path, views: tuple[Grey, Grey], capsys: pytest.CaptureFixture[str]
    ) -> None:
        points = np.random.default_rng(0).uniform(30, 150, (25, 2))
        places = cv2.perspectiveTransform(points[None], TILT)[0]
        for name, truth in (("WGABS/right", places), ("WGABS/wrong", places[::-1]), ("WGABS/petrzin", places)):
            folder = tmp_path / name
            folder.mkdir(parents=True)
            for at, photo in zip(("01", "02"), views, strict=True):
                cv2.imwrite(str(folder / f"{at}.png"), photo)
            np.savetxt(folder / "corrs.txt", np.hstack([points, truth]))
        line = (
            f"evaluate pairs {tmp_path} --descriptor rootsift --workers 1 --max-features 150 --json {tmp_path}/t.json"
        )
        main(line.split())
        said = capsys.readouterr()
        assert "recall of true correspondences, mean over 0 to 19 px" in said.out
        assert "petrzin, take no part" in said.err
        content = json.loads((tmp_path / "t.json").read_text())
        assert content["measures"].keys() == {"recall"}
        found = content["measures"]["recall"]["rootsift"]
        assert found.keys() == {"WGABS/right", "WGABS/wrong", "mean"}
        assert found["WGABS/right"] > 0.85 > 0.6 > found["WGABS/wrong"]
        curve = content["recall_by_threshold"]["rootsift"]["WGABS/right"]
        assert len(curve) == 20
        assert curve == sorted(curve)
        assert found["WGABS/right"] == pytest.approx(np.mean(curve))
