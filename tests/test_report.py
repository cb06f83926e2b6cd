"""The page about a reconstruction: its figures against COLMAP's own, and what it is made of against brute force."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image

import hardnet_sfm
from hardnet_sfm.cli import main
from hardnet_sfm.colmap.tracks import read_tracks
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.photo_files import read_colours, read_small
from hardnet_sfm.files.photo_folders import PhotoFolder
from hardnet_sfm.files.workspace import Workspace, read_json, write_json
from hardnet_sfm.pages.cloud import MOST_POINTS, find_upright_turn, thin
from hardnet_sfm.pages.matchgraph import MOST_ROWS, make_match_graph
from hardnet_sfm.pages.model_page import MOST_KEYPOINTS, PAIR_PREVIEW_BYTES, PREVIEW_BYTES
from hardnet_sfm.pages.page import MOST_BYTES, make_histogram, make_page
from hardnet_sfm.pages.previews import make_previews
from hardnet_sfm.photos import resize_to_fit
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene


@pytest.fixture(scope="module")
def made(small_scene: tuple[Path, Scene], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished workspace with its page; one photo is named as no HTML likes it. Tests must not write into it."""
    photos = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(sorted(small_scene[1].names)):
        shutil.copy(small_scene[0] / name, photos / ("<script>alert(1)<&'script>.jpg" if number == 3 else name))
    shutil.copy(Path(__file__), photos / "broken.jpg")
    (photos / "plain.png").write_bytes(encoded(np.full((360, 480, 3), 128, np.uint8), "PNG"))
    place = Workspace(tmp_path_factory.mktemp("made"))
    hardnet_sfm.reconstruct(
        photos,
        place.root,
        extract_options=ExtractOptions(descriptor="rootsift", max_keypoints=800),
        map_options=MapOptions(camera_mode="single"),
        resources=Resources(workers=1),
    )
    return place


@pytest.fixture(scope="module")
def shown(made: Workspace) -> dict[str, Any]:
    return data_of(made.report)


def encoded(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def unpacked(array: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["bytes"]), np.dtype(array["type"]).newbyteorder("<"))


def test_figures_are_those_of_colmap(made: Workspace, shown: dict[str, Any]) -> None:
    model = pycolmap.Reconstruction(made.sparse / "0")
    figures = shown["summary"]["models"][0]
    assert figures["points"] == shown["cloud"]["points"] == model.num_points3D()
    assert figures["observations"] == sum(shown["photos"]["observations"]) == model.compute_num_observations()
    assert figures["mean_track_length"] == pytest.approx(model.compute_mean_track_length(), abs=1e-3)
    assert figures["mean_reprojection_error"] == pytest.approx(model.compute_mean_reprojection_error(), abs=1e-4)
    assert shown["histograms"]["track"]["mean"] == pytest.approx(model.compute_mean_track_length())
    assert sum(shown["histograms"]["track"]["counts"]) == model.num_points3D()


def test_table_of_photos_is_what_colmap_says(made: Workspace, shown: dict[str, Any]) -> None:
    model, photos = pycolmap.Reconstruction(made.sparse / "0"), shown["photos"]
    row = {name: number for number, name in enumerate(photos["name"])}
    with pycolmap.Database.open(made.database) as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        for one, other in combinations(ids, 2):
            assert database.exists_two_view_geometry(ids[one], ids[other])
        inliers = {
            pair: len(database.read_two_view_geometry(ids[pair[0]], ids[pair[1]]).inlier_matches)
            for pair in combinations(ids, 2)
        }
        for name, number in ids.items():
            assert photos["keypoints"][row[name]] == database.num_keypoints_for_image(number)
            assert photos["matches"][row[name]] == sum(count for pair, count in inliers.items() if name in pair)
            assert photos["pairs"][row[name]] == sum(count > 0 for pair, count in inliers.items() if name in pair)
    for image in (model.image(number) for number in model.reg_image_ids()):
        seen = image.get_observation_points2D()
        errors = [np.linalg.norm(image.project_point(model.point3D(at.point3D_id).xyz) - at.xy) for at in seen]
        assert photos["observations"][row[image.name]] == len(seen)
        assert photos["error"][row[image.name]] == pytest.approx(np.mean(errors), abs=6e-4)
        assert photos["state"][row[image.name]] == "registered"
    assert photos["state"][row["plain.png"]] == "not registered"
    assert photos["reason"][row["plain.png"]] == read_json(made.summary)["unregistered"]["plain.png"] == "no features"
    assert photos["state"][row["broken.jpg"]] == "unreadable" and "broken.jpg" in photos["reason"][row["broken.jpg"]]


def test_triangulation_angles_are_colmaps(made: Workspace) -> None:
    model, tracks = pycolmap.Reconstruction(made.sparse / "0"), read_tracks(made.sparse / "0")
    angles = tracks.triangulation_angles()
    for number in range(0, len(tracks.xyz), 17):
        point = model.point3D(int(tracks.point_ids[number]))
        centres = [model.image(element.image_id).projection_center() for element in point.track.elements]
        largest = max(pycolmap.calculate_triangulation_angle(a, b, point.xyz) for a, b in combinations(centres, 2))
        # COLMAP takes an obtuse angle for its supplement, which says as little about depth.
        assert min(angles[number], 180 - angles[number]) <= np.rad2deg(largest) + 1e-6
        if angles[number] < 90:
            assert angles[number] == pytest.approx(np.rad2deg(largest), abs=1e-6)
    assert tracks.lengths().tolist() == [model.point3D(int(n)).track.length() for n in tracks.point_ids]


def test_points_of_the_page_are_the_models_but_for_a_turn(made: Workspace, shown: dict[str, Any]) -> None:
    tracks, cloud = read_tracks(made.sparse / "0"), shown["cloud"]
    low, high = np.array(cloud["low"]), np.array(cloud["high"])
    drawn = low + unpacked(cloud["xyz"]).reshape(-1, 3) / 65535 * (high - low)
    turned = tracks.xyz @ find_upright_turn(tracks.cam_from_world, [1] * len(tracks.names)).T
    inside = ((turned >= low) & (turned <= high)).all(axis=1)
    assert cloud["shown"] == inside.sum() and cloud["outside"] == (~inside).sum()
    np.testing.assert_allclose(drawn, turned[inside], atol=float((high - low).max()) / 65535)
    np.testing.assert_array_equal(unpacked(cloud["rgb"]).reshape(-1, 3), tracks.colours[inside])


def test_pyramids_have_the_corners_of_their_photos(made: Workspace, shown: dict[str, Any]) -> None:
    model, tracks, cloud = pycolmap.Reconstruction(made.sparse / "0"), read_tracks(made.sparse / "0"), shown["cloud"]
    turn = find_upright_turn(tracks.cam_from_world, [1] * len(tracks.names))
    for photo, corners in zip(cloud["photo"], cloud["corners"], strict=True):
        image = next(
            model.image(n) for n in model.reg_image_ids() if model.image(n).name == shown["photos"]["name"][photo]
        )
        camera = model.camera(image.camera_id)
        pixels = [image.project_point(corner) for corner in np.array(corners) @ turn]
        expected = [(0, 0), (camera.width, 0), (camera.width, camera.height), (0, camera.height)]
        np.testing.assert_allclose(pixels, expected, atol=0.5)


@pytest.mark.parametrize("orientation", [1, 6])
def test_upright_turn_is_a_rotation_with_the_photos_up(orientation: int) -> None:
    rng = np.random.default_rng(0)
    world, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    world *= np.sign(np.linalg.det(world))
    angles = np.linspace(0, 2 * np.pi, 9, endpoint=False)  # all around, level: x right, y down, z ahead
    level = np.array([[(np.cos(a), np.sin(a), 0), (0, 0, -1), (-np.sin(a), np.cos(a), 0)] for a in angles])
    # Held on edge, the camera's x axis is what was down (6: the file's left is the photo's top).
    on_edge = np.array([(0, 1, 0), (-1, 0, 0), (0, 0, 1)]) @ level if orientation == 6 else level
    turn = find_upright_turn(np.concatenate([on_edge @ world, np.zeros((9, 3, 1))], 2), [orientation] * 9)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)
    np.testing.assert_allclose(turn @ world.T @ (0, 0, 1), (0, 0, 1), atol=1e-12)


def test_thinning_keeps_the_longest_track_of_each_cell() -> None:
    rng = np.random.default_rng(0)
    xyz, lengths = rng.normal(size=(2000, 3)), rng.integers(2, 30, 2000)
    rows, cell = thin(xyz, lengths, 300)
    assert 250 < len(rows) <= 300 and (np.diff(rows) > 0).all()
    cells: dict[tuple[int, ...], int] = {}
    for place, length in zip(np.floor((xyz - xyz.min(axis=0)) / cell).astype(int), lengths, strict=True):
        key = tuple(np.minimum(place, round(np.ptp(xyz, axis=0).max() / cell) - 1))
        cells[key] = max(cells.get(key, 0), length)
    assert sorted(lengths[rows]) == sorted(cells.values())
    assert thin(xyz, lengths, 2000)[1] == 0 and len(thin(xyz, lengths, 2000)[0]) == 2000
    same, _ = thin(np.zeros((50, 3)), np.arange(50), 7)
    assert same.tolist() == [49]


def test_keypoints_of_the_page_have_the_lengths_of_their_tracks(made: Workspace, shown: dict[str, Any]) -> None:
    model, keypoints = pycolmap.Reconstruction(made.sparse / "0"), shown["keypoints"]
    xy, lengths = unpacked(keypoints["xy"]).reshape(-1, 2), unpacked(keypoints["length"])
    ends = np.cumsum(keypoints["count"])
    for image in (model.image(number) for number in model.reg_image_ids()):
        number = shown["photos"]["name"].index(image.name)
        part = slice(ends[number] - keypoints["count"][number], ends[number])
        width, height = shown["photos"]["size"][number]
        lengths_at: dict[tuple[int, int], set[int]] = {}  # keypoints of several orientations share a place
        observed = []
        for seen in image.get_observation_points2D():
            observed.append(model.point3D(seen.point3D_id).track.length())
            x, y = (seen.xy / (width, height) * 65535).round().astype(int).tolist()
            for near in product((x - 1, x, x + 1), (y - 1, y, y + 1)):
                lengths_at.setdefault(near, set()).add(observed[-1])
        drawn = [(tuple(place), n) for place, n in zip(xy[part].tolist(), lengths[part].tolist(), strict=True) if n]
        assert sorted(n for _, n in drawn) == sorted(observed)
        assert all(n in lengths_at[place] for place, n in drawn)


def test_lines_of_pairs_join_their_inliers(made: Workspace, shown: dict[str, Any]) -> None:
    counts = sorted((pair["inliers"] for pair in shown["pairs"]), reverse=True)
    assert [pair["inliers"] for pair in shown["pairs"]] == counts
    names = shown["photos"]["name"]
    with pycolmap.Database.open(made.database) as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        everything = sorted((int(n) for n in database.read_two_view_geometry_num_inliers()[1] if n), reverse=True)
        assert counts[0] == everything[0] and counts[-1] == everything[-1]
        for pair in shown["pairs"]:
            numbers = [ids[names[pair["first"]]], ids[names[pair["second"]]]]
            inliers = database.read_two_view_geometry(*numbers).inlier_matches
            assert pair["inliers"] == len(inliers)
            sizes = np.array([shown["photos"]["size"][pair[end]] for end in ("first", "second")])
            pixels = [database.read_keypoints(number)[inliers[:, i], :2] for i, number in enumerate(numbers)]
            expected = np.concatenate([at / size for at, size in zip(pixels, sizes, strict=True)], 1) * 65535
            lines = unpacked(pair["lines"]).reshape(-1, 4).astype(float)
            assert len(lines) == min(150, len(inliers))
            away = np.abs(lines[:, None] - expected[None]).max(axis=2).min(axis=1)
            assert away.max() < 1.5


def test_match_graph_counts_every_pair() -> None:
    names = [f"{n}.jpg" for n in range(6)]
    verified = {("0.jpg", "1.jpg"): 50, ("2.jpg", "1.jpg"): 20, ("3.jpg", "4.jpg"): 70, ("0.jpg", "2.jpg"): 5}
    graph = make_match_graph(names, verified)
    cells = zip(*(unpacked(graph[name]).tolist() for name in ("first", "second", "matches")), strict=True)
    assert list(cells) == [(3, 4, 70), (0, 1, 50), (1, 2, 20), (0, 2, 5)]
    assert graph["group"] == 1 and graph["edges"] == [0, 1, 2, 3] and len(graph["places"]) == 6
    assert graph["places"][5][1] == -1.25  # alone


def test_match_graph_of_many_photos_has_groups() -> None:
    names = [f"{n:04}" for n in range(600)]
    verified = {(names[n], names[n + 1]): n + 1 for n in range(599)}
    graph = make_match_graph(names, verified)
    first, second, matches = (unpacked(graph[name]).astype(int) for name in ("first", "second", "matches"))
    assert graph["group"] == 3 and len(graph["places"]) == 200
    assert matches.sum() == sum(verified.values())
    assert dict(zip(zip(first.tolist(), second.tolist(), strict=True), matches, strict=True))[0, 0] == 1 + 2
    assert all(first[edge] != second[edge] for edge in graph["edges"])


def test_histogram_counts_all_that_is_finite() -> None:
    counted = make_histogram(np.array([0.5, 1.5, 1.6, 99, np.inf]), [0, 1, 2, 3])
    assert counted["counts"] == [1, 2, 1]
    assert counted["median"] == pytest.approx(1.55) and counted["mean"] == pytest.approx(25.65)


def test_previews_stay_within_their_budget(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    folder, names = small_scene[0], sorted(small_scene[1].names)
    rng = np.random.default_rng(0)
    (tmp_path / "noise.png").write_bytes(encoded(rng.integers(0, 255, (700, 500, 3), np.uint8), "PNG"))
    for budget in (400_000, 40_000):
        previews = make_previews(PhotoFolder(folder), names, budget, 1)
        assert not previews.missing and sum(map(len, previews.webp.values())) <= budget
    assert len(make_previews(PhotoFolder(tmp_path), ["noise.png"], 3000, 1).webp["noise.png"]) <= 3000
    few = make_previews(PhotoFolder(folder), [*names, "gone.jpg"], 2000, 1)
    assert list(few.webp) == names[:2]
    assert few.missing["gone.jpg"] == few.missing[names[-1]] == "too many photos to show all"
    assert "gone.jpg" in make_previews(PhotoFolder(folder), ["gone.jpg"], 2000, 1).missing["gone.jpg"]


@pytest.mark.parametrize("orientation", [1, 6, 8, 4])
def test_small_photos_are_upright_and_look_the_same(
    small_scene: tuple[Path, Scene], tmp_path: Path, orientation: int
) -> None:
    photo = Image.open(small_scene[0] / small_scene[1].names[0])
    exif = photo.getexif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    small, whole = read_small(tmp_path / "turned.jpg", 100), read_colours(tmp_path / "turned.jpg")
    expected = resize_to_fit(whole, 100)
    assert small.shape == expected.shape
    assert np.abs(small.astype(int) - expected).mean() < 4


def test_no_name_of_a_photo_becomes_markup(made: Workspace, shown: dict[str, Any]) -> None:
    assert "<script>alert(1)<&'script>.jpg" in shown["photos"]["name"]
    assert "<script>alert(1)" not in made.report.read_text("utf-8")
    text = make_page("a </title><b>&", "reconstruction", {"name": "</script>@@title@@<!--"})
    assert "<title>a &lt;/title&gt;&lt;b&gt;&amp;</title>" in text
    assert '{"name":"\\u003c/script>@@title@@\\u003c!--"}' in text


def test_page_is_well_formed_and_asks_for_nothing(made: Workspace) -> None:
    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.ids: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            attributes = dict(attrs)
            self.ids += [attributes["id"] or ""] if "id" in attributes else []
            assert tag != "link" or attributes["href"] == "data:,"
            assert "src" not in attributes
            if tag not in ("meta", "link"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    reader, text = Reader(), made.report.read_text("utf-8")
    reader.feed(text)
    assert not reader.open and len(set(reader.ids)) == len(reader.ids)
    assert text.startswith("<!doctype html>") and "default-src 'none'" in text
    assert len(text.encode()) < MOST_BYTES
    without_data = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    assert set(re.findall(r"https?://[^\s\"'`]+", without_data)) <= {"http://www.w3.org/2000/svg"}


def test_page_says_what_it_does_without(made: Workspace, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "copy")
    shutil.copytree(made.root, place.root)
    written = hardnet_sfm.write_report(place.root, tmp_path / "page.html", images=tmp_path / "nowhere")
    data = data_of(written)
    assert data["notes"] == [
        f"The photos are no longer in {tmp_path / 'nowhere'}: say where they are with --images FOLDER."
    ]
    assert data["previews"] == [None] * 9 and data["pair_previews"] == {}
    write_json(place.summary, {**read_json(place.summary), "inputs": "others"})
    data = data_of(hardnet_sfm.write_report(place, tmp_path / "page.html"))
    assert "have changed since the model was made" in data["notes"][0]
    assert data["keypoints"] is None and data["pairs"] == [] and data["cloud"]["points"] > 100


def test_page_lists_the_suspects_of_the_summary_with_lines_of_the_first(
    made: Workspace, shown: dict[str, Any], tmp_path: Path
) -> None:
    assert shown["suspects"] == [] and shown["summary"]["suspect_pairs"] == 0  # the model is sound
    place = Workspace(tmp_path / "copy")
    shutil.copytree(made.root, place.root)
    names = shown["photos"]["name"]
    with pycolmap.Database.open(made.database) as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        pairs = [pair for pair in combinations(names[:8], 2) if ids.keys() >= set(pair)][:6]
        counts = [len(database.read_two_view_geometry(ids[a], ids[b]).inlier_matches) for a, b in pairs]
    listed = [
        {"first": a, "second": b, "inliers": count, "explained": 0.25, "reason": "why"}
        for (a, b), count in zip(pairs, counts, strict=True)
    ]
    write_json(place.summary, {**read_json(place.summary), "suspects": listed, "suspect_pairs": 7})
    data = data_of(hardnet_sfm.write_report(place, tmp_path / "page.html"))
    assert data["summary"]["suspect_pairs"] == 7
    assert [(names[one["first"]], names[one["second"]]) for one in data["suspects"]] == pairs
    assert [one["inliers"] for one in data["suspects"]] == counts
    assert {(one["explained"], one["reason"]) for one in data["suspects"]} == {(0.25, "why")}
    drawn = [len(unpacked(one["lines"])) // 4 if one["lines"] else None for one in data["suspects"]]
    assert drawn == [min(150, count) for count in counts[:4]] + [None, None]
    assert {str(one[end]) for one in data["suspects"][:4] for end in ("first", "second")} <= set(data["pair_previews"])


def test_page_without_a_model_says_why(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        (photos / f"{number}.png").write_bytes(encoded(np.full((80, 90, 3), 90 + number, np.uint8), "PNG"))
    with pytest.raises(HardnetSfmError, match="no model could be made"):
        hardnet_sfm.reconstruct(photos, tmp_path / "out", resources=Resources(workers=1))
    data = data_of(tmp_path / "out" / "report.html")
    assert data["notes"] == ["No model could be made. The table of photos says why for each."]
    assert data["cloud"] is None and data["photos"]["reason"] == ["no features", "no features"]


def test_report_can_be_left_out_and_made_by_its_verb(
    made: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", str(made.root), "-o", str(tmp_path / "page.html")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert data_of(tmp_path / "page.html") == data_of(made.report)


def test_shares_of_a_page_are_no_more_than_all_of_it() -> None:
    """What 1000 photos with everything there can be of them take; base64 makes four bytes of three."""
    points, graph = MOST_POINTS * (3 * 2 + 3), MOST_ROWS * (MOST_ROWS + 1) // 2 * (2 + 2 + 4)
    in_base64 = PREVIEW_BYTES + PAIR_PREVIEW_BYTES + 5 * MOST_KEYPOINTS + points + graph
    scripts = len(make_page("", "reconstruction", {}).encode())
    table = 1000 * 300 + 1000 * 30  # a row of text, and the head of each picture
    assert in_base64 * 4 / 3 + scripts + table < MOST_BYTES


@pytest.mark.parametrize(("what", "message"), [("nowhere", "no workspace at"), (".", "no reconstruction in")])
def test_nothing_to_report_on(tmp_path: Path, what: str, message: str) -> None:
    with pytest.raises(HardnetSfmError, match=message):
        hardnet_sfm.write_report(tmp_path / what)
