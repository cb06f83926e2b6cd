"""Which photos share a camera: made-up photos of a cloud of points, by cameras that are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

import hardnet_sfm
from hardnet_sfm.cli import main
from hardnet_sfm.colmap import cameras as colmap_cameras
from hardnet_sfm.colmap import trial as trials
from hardnet_sfm.colmap.cameras import CameraSetup, import_photos
from hardnet_sfm.files.fingerprints import match_fingerprints
from hardnet_sfm.files.photo_files import read_lens
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import FEATURES, MATCHES, feature_arrays, match_arrays, pair_key
from hardnet_sfm.files.workspace import Workspace, read_json
from hardnet_sfm.keypoints import Keypoints, Matches
from hardnet_sfm.photos import Lens
from hardnet_sfm.reconstruction.camera_groups import choose_connected, judge
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.resources import Resources

SIZE = (640, 480)
MATCHING = {"max_ratio": 0.8}
_MAKE, _MODEL, _DETAILS, _FOCAL_LENGTH, _FOCAL_LENGTH_35MM, _LENS = 0x010F, 0x0110, 0x8769, 0x920A, 0xA405, 0xA434


def exif(make: str = "", model: str = "", focal_length: float = 0, film: int = 0, lens: str = "") -> Image.Exif:
    tags = Image.Exif()
    details = tags.get_ifd(_DETAILS)
    for where, tag, value in (
        (tags, _MAKE, make),
        (tags, _MODEL, model),
        (details, _FOCAL_LENGTH, focal_length),
        (details, _FOCAL_LENGTH_35MM, film),
        (details, _LENS, lens),
    ):
        if value:
            where[tag] = value
    return tags


@dataclass(frozen=True)
class Shot:
    """A photo to be made up: its name, its focal length in pixels, and the EXIF data that the file has."""

    name: str
    focal_length: float
    exif: Image.Exif | None = None


def photograph(root: Path, shots: Sequence[Shot], points: int = 300, noise: float = 0.3, seed: int = 0) -> Workspace:
    """Makes photos on an arc around a cloud of points, and a workspace with their keypoints and true matches.

    Row numbers of keypoints are in another order in each photo.
    """
    rng, images, place = np.random.default_rng(seed), root / "photos", Workspace(root / "work")
    cloud = rng.uniform(-2, 2, (points, 3))
    rows: dict[str, np.ndarray] = {}
    place.root.mkdir(parents=True)
    with StoreWriter(place.features, FEATURES) as writer:
        for number, shot in enumerate(shots):
            path = images / shot.name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", SIZE).save(path, exif=shot.exif or Image.Exif())
            turn = np.radians(7 * (number - len(shots) / 2))
            rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
            x, y, z = rotation @ cloud.T + [[0], [rng.uniform(-1, 1)], [rng.uniform(8, 10)]]
            pixels = np.column_stack([x, y]) / z[:, None] * shot.focal_length + np.divide(SIZE, 2) - 0.5
            pixels += rng.normal(0, noise, pixels.shape)
            seen = rng.permutation(np.flatnonzero(((pixels > 0) & (pixels < np.subtract(SIZE, 1))).all(1)))
            rows[shot.name] = np.full(points, -1)
            rows[shot.name][seen] = np.arange(len(seen))
            ones = np.ones(len(seen), np.float32)
            keypoints = Keypoints(pixels[seen].astype(np.float32), ones, 0 * ones, ones)
            arrays = feature_arrays(keypoints, np.zeros((len(seen), 128), np.float16), SIZE)
            facts: dict[str, str | int] = {"photo_sha256": "", "exif_orientation": 1, "keypoints": len(seen)}
            writer.put(shot.name, f"{shot.name} {seed}", arrays, facts)
        names = [shot.name for shot in shots]
        header = {"names": names, "images": str(images), "options": {"max_image_size": 3200}, "skipped": {}}
        writer.commit(names, header)
        prints = dict(writer.fingerprints)
    with StoreWriter(place.matches, MATCHES) as writer:
        for first, second in combinations(names, 2):
            both = (rows[first] >= 0) & (rows[second] >= 0)
            pairs = np.column_stack([rows[first][both], rows[second][both]]).astype(np.int32)
            matches = Matches(pairs[np.argsort(pairs[:, 0])], np.ones(both.sum(), np.float32))
            facts = {"name0": first, "name1": second, "matches": len(matches)}
            print_of_pair = match_fingerprints(MATCHING)(prints[first], prints[second])
            count = int((rows[first] >= 0).sum())
            writer.put(pair_key(first, second), print_of_pair, match_arrays(matches, count), facts)
        writer.commit([pair_key(*pair) for pair in combinations(names, 2)], {"options": MATCHING, "pairs": ""})
    return place


def cameras_of(place: Workspace) -> dict[str, tuple[int, float]]:
    """Number and focal length of the camera of each photo in the largest model."""
    model = pycolmap.Reconstruction(place.sparse / "0")
    images = [model.image(number) for number in model.reg_image_ids()]
    return {image.name: (image.camera_id, model.camera(image.camera_id).focal_length) for image in images}


def partition(place: Workspace) -> set[frozenset[str]]:
    """The photos of each camera in the database."""
    with pycolmap.Database.open(place.database) as database:
        groups: dict[int, set[str]] = {}
        for image in database.read_all_images():
            groups.setdefault(image.camera_id, set()).add(image.name)
        assert database.num_cameras() == database.num_rigs() == len(groups)
    return {frozenset(group) for group in groups.values()}


def of(
    name: str, focal_lengths: Sequence[float], tags: Callable[[int], Image.Exif | None] = lambda _: None
) -> list[Shot]:
    return [Shot(name.format(number), focal, tags(number)) for number, focal in enumerate(focal_lengths)]


def test_photos_of_one_camera_share_it(tmp_path: Path) -> None:
    place = photograph(tmp_path, of("{}.png", [700] * 10))
    hardnet_sfm.map_photos(place)
    summary = read_json(place.summary)
    assert summary["cameras"] == 1 and summary["registered"] == 10
    (group,) = summary["camera_groups"]
    assert (group["photos"], group["shared"]) == (10, True)
    assert "focal lengths of 10 photos agree within" in group["reason"]
    (found,) = {focal for _, focal in cameras_of(place).values()}
    assert found == pytest.approx(700, rel=0.01)
    assert not place.trial.exists()


def test_two_zoom_settings_of_equal_size_do_not_share(tmp_path: Path) -> None:
    place = photograph(tmp_path, of("{}.png", [600, 860] * 5))
    hardnet_sfm.map_photos(place)
    summary = read_json(place.summary)
    assert summary["cameras"] == 10
    (group,) = summary["camera_groups"]
    assert (group["photos"], group["shared"]) == (10, False)
    for name, (_, focal) in cameras_of(place).items():
        assert focal == pytest.approx(860 if int(name[:-4]) % 2 else 600, rel=0.03)


def test_photos_of_as_many_cameras_do_not_share(tmp_path: Path) -> None:
    focals = np.random.default_rng(1).uniform(450, 1100, 10).tolist()
    place = photograph(tmp_path, of("{}.png", focals))
    hardnet_sfm.map_photos(place)
    assert [group["shared"] for group in read_json(place.summary)["camera_groups"]] == [False]
    assert len(partition(place)) == 10


def test_zoom_settings_that_exif_states_are_different_cameras(tmp_path: Path) -> None:
    """35 mm equivalents of 600 and 860 pixels."""
    tags = [exif("Maker", "X", 24, 32), exif("Maker", "X", 35, 47)]
    place = photograph(tmp_path, of("{}.jpg", [600, 860] * 5, lambda number: tags[number % 2]))
    hardnet_sfm.map_photos(place)
    even, odd = (frozenset(f"{number}.jpg" for number in range(start, 10, 2)) for start in (0, 1))
    assert partition(place) == {even, odd}
    groups = read_json(place.summary)["camera_groups"]
    assert [(group["photos"], group["shared"]) for group in groups] == [(5, True), (5, True)]
    focals = cameras_of(place)
    assert focals["0.jpg"][1] == pytest.approx(600, rel=0.02) and focals["1.jpg"][1] == pytest.approx(860, rel=0.02)


def test_evidence_overrules_exif(tmp_path: Path) -> None:
    place = photograph(tmp_path, of("{}.jpg", [600, 860] * 5, lambda _: exif("Maker", "X", 24, 32)))
    hardnet_sfm.map_photos(place)
    assert read_json(place.summary)["camera_groups"][0]["shared"] is False
    assert len(partition(place)) == 10


@pytest.mark.parametrize("tags", [exif("Maker", "X"), exif("Maker", "X", film=0)])
def test_exif_without_a_focal_length_needs_evidence(tmp_path: Path, tags: Image.Exif) -> None:
    tags.get_ifd(_DETAILS)[_FOCAL_LENGTH] = 0.0  # as adapters for old lenses write it
    shots = of("a{}.jpg", [700] * 6, lambda _: tags) + of("lone{}.jpg", [500] * 2, lambda _: exif("Maker", "Y"))
    place = photograph(tmp_path, shots)
    hardnet_sfm.map_photos(place)
    assert frozenset(f"a{number}.jpg" for number in range(6)) in partition(place)
    assert {frozenset([f"lone{number}.jpg"]) for number in range(2)} < partition(place)


def test_folders_without_exif_are_different_cameras(tmp_path: Path) -> None:
    shots = [shot for pair in zip(of("a/{}.png", [600] * 5), of("b/{}.png", [860] * 5), strict=True) for shot in pair]
    place = photograph(tmp_path, shots)
    hardnet_sfm.map_photos(place)
    assert partition(place) == {frozenset(f"{side}/{number}.png" for number in range(5)) for side in "ab"}


def test_without_matches_only_equal_exif_data_count(tmp_path: Path) -> None:
    shots = of("a{}.jpg", [600] * 3) + of("b{}.jpg", [600] * 3, lambda _: exif("Maker", "X", 24, 32))
    place = photograph(tmp_path, shots, points=10)
    with pytest.raises(hardnet_sfm.HardnetSfmError, match="no model could be made"):
        hardnet_sfm.map_photos(place)
    groups = read_json(place.summary)["camera_groups"]
    assert [(group["photos"], group["shared"]) for group in groups] == [(3, True), (3, False)]
    assert frozenset(["b0.jpg", "b1.jpg", "b2.jpg"]) in partition(place)


def test_stated_parameters_are_one_cameras(tmp_path: Path) -> None:
    place = photograph(tmp_path, of("{}.png", [600, 860] * 3))
    hardnet_sfm.map_photos(place, MapOptions(camera_params="700,320,240,0"))
    assert len(partition(place)) == 1


def test_modes_that_the_user_states_are_recorded(tmp_path: Path) -> None:
    place = photograph(tmp_path, of("{}.png", [700] * 6))
    hardnet_sfm.map_photos(place, MapOptions(camera_mode="per-image"))
    reason = "--camera-mode per-image"
    assert read_json(place.summary)["camera_groups"] == [{"photos": 6, "shared": False, "reason": reason}]
    assert len(partition(place)) == 6


def test_killed_run_keeps_its_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = photograph(tmp_path, of("{}.png", [700] * 6))
    (place.trial / "left-by-a-kill").mkdir(parents=True)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(colmap_cameras, "import_photos", killed)
        with pytest.raises(KeyboardInterrupt):
            hardnet_sfm.map_photos(place)
    with monkeypatch.context() as patched:
        patched.setattr(trials, "run_trial", killed)
        hardnet_sfm.map_photos(place)
    assert len(partition(place)) == 1
    assert read_json(place.summary)["camera_groups"][0]["shared"] is True
    assert not place.trial.exists() and not list(place.root.glob(".database*"))


def test_photos_of_one_visitor_do_not_speak_for_a_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first dozen, which is tried first as all photos are connected equally well, is of one camera."""
    focals = [700.0] * 12 + np.random.default_rng(2).uniform(500, 1000, 24).tolist()
    decided: list[object] = []

    def stopped(*arguments: object) -> None:
        decided.append(arguments[-1])
        raise KeyboardInterrupt

    monkeypatch.setattr(colmap_cameras, "import_photos", stopped)
    for name, shots in (("mixed", of("{}.png", focals)), ("one", of("{}.png", [700] * 36))):
        place = photograph(tmp_path / name, shots, points=200)
        with pytest.raises(KeyboardInterrupt):
            hardnet_sfm.map_photos(place)
    assert decided == [[], [tuple(f"{number}.png" for number in range(36))]]


def test_decision_does_not_depend_on_threads(tmp_path: Path) -> None:
    summaries = []
    for workers in (1, 2):
        place = photograph(tmp_path / str(workers), of("{}.png", [700] * 6))
        hardnet_sfm.map_photos(place, resources=Resources(workers=workers))
        summaries.append(read_json(place.summary)["camera_groups"])
    assert summaries[0] == summaries[1]


def test_terminal_and_page_say_the_decision_and_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = photograph(tmp_path, of("{}.png", [700] * 6))
    main(["map", "--workspace", str(place.root)])
    said = " ".join(capsys.readouterr().out.split())
    assert "cameras 1 (6 photos share one: the focal lengths of 6 photos agree within" in said
    page = tmp_path / "page.html"
    hardnet_sfm.write_report(place, page)
    assert read_json(place.summary)["camera_groups"][0]["reason"] in page.read_text(encoding="utf-8")


def test_spread_of_released_focal_lengths_is_that_of_the_cameras(tmp_path: Path) -> None:
    """Five photos of 650 and five of 750 pixels: standard deviation 50, mean 700."""
    place = photograph(tmp_path, of("{}.png", [650, 750] * 5))
    evidence = []
    run = trials.run_trial

    def noted(*args: object) -> trials.Evidence:
        evidence.append(run(*args))  # type: ignore[arg-type]
        return evidence[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trials, "run_trial", noted)
        hardnet_sfm.map_photos(place)
    assert evidence[0].photos == 10
    assert evidence[0].released is not None
    assert evidence[0].released.spread == pytest.approx(50 / 700, rel=0.2)


@pytest.mark.parametrize(
    ("together", "apart", "released", "shared", "why"),
    [
        ((12, 900), None, (0.02, 0.004), True, "agree within 0.4 %"),
        ((12, 900), None, (0.4, 0.02), True, "agree within 2.0 %"),
        ((12, 900), None, (0.4, 0.2), False, "differ by 20.0 %"),
        ((12, 900), None, (0.08, 0.15), True, "explains 12 photos nearly as well as a camera each"),
        ((6, 900), (6, 950), (0.02, 0.004), True, "of 6 photos agree"),
        ((4, 300), (12, 900), (0.02, 0.004), False, "one camera registers 4 of 12 photos with 300 observations"),
        ((0, 0), (7, 400), None, False, "a camera each registers 7 with 400"),
        ((4, 300), (5, 400), (0.4, 0.2), None, "too few"),
        ((0, 0), (0, 0), None, None, "too few"),
    ],
)
def test_judgement(
    together: tuple[int, int],
    apart: tuple[int, int] | None,
    released: tuple[float, float] | None,
    shared: bool | None,
    why: str,
) -> None:
    verdict = judge(
        trials.Evidence(
            12,
            trials.Mapped(*together),
            None if apart is None else trials.Mapped(*apart),
            None if released is None else trials.Released(*released),
        )
    )
    assert verdict.shared is shared
    assert why in verdict.reason


def test_connected_photos_are_chosen_by_matches_with_those_chosen() -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    counts = {("a", "b"): 100, ("b", "c"): 90, ("c", "a"): 80, ("c", "d"): 40, ("e", "d"): 20, ("f", "a"): 14}
    assert choose_connected(names, counts, most=3) == ("a", "b", "c")
    assert choose_connected(names, counts, most=4) == ("a", "b", "c", "d")
    assert choose_connected(names, counts) == ("a", "b", "c", "d", "e")  # f has too few matches
    assert choose_connected(["e", "f"], counts) == ()


def test_groups_are_imported_with_a_camera_for_each(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(5)]
    for name in names:
        Image.new("L", SIZE).save(tmp_path / name)
    setup, shared = CameraSetup("auto", "SIMPLE_RADIAL"), [["3.png", "0.png"], ["1.png", "4.png"]]
    import_photos(tmp_path / "d.db", tmp_path, names, setup, tmp_path / "scratch", shared)
    with pycolmap.Database.open(tmp_path / "d.db") as database:
        camera_of = {image.name: image.camera_id for image in database.read_all_images()}
        assert database.num_frames() == 5 and database.num_rigs() == 3
    assert camera_of["0.png"] == camera_of["3.png"] and camera_of["1.png"] == camera_of["4.png"]
    assert len(set(camera_of.values())) == 3


def test_exif_of_a_lens(tmp_path: Path) -> None:
    tags = exif("Maker ", "X\0", 4.25, 28, "wide")
    Image.new("L", (8, 6)).save(tmp_path / "a.jpg", exif=tags)
    assert read_lens(tmp_path / "a.jpg") == Lens("Maker", "X", "wide", 4.25, 28)
    assert read_lens(tmp_path / "a.jpg").knows_focal_length
    Image.new("L", (8, 6)).save(tmp_path / "b.png")
    (tmp_path / "c.jpg").write_bytes(b"no photo")
    assert read_lens(tmp_path / "b.png") == read_lens(tmp_path / "c.jpg") == read_lens(tmp_path / "gone.jpg") == Lens()


@pytest.mark.parametrize(
    ("mm", "on_film", "kept"),
    [
        (4.25, 8, (4.25, 8)),  # a fisheye
        (539, 3000, (539, 3000)),  # the longest zoom of a compact camera
        (1, 1, (1, 0)),
        (0, 0, (0, 0)),
        (4.25, 65535, (4.25, 0)),
        (0.01, 28, (0, 28)),
        (1e6, 28, (0, 28)),
    ],
)
def test_a_focal_length_that_no_lens_has_counts_as_missing(
    mm: float, on_film: int, kept: tuple[float, float], tmp_path: Path
) -> None:
    Image.new("L", (60, 80)).save(tmp_path / "a.jpg", exif=exif("Maker", "X", mm, on_film, "wide"))
    lens = read_lens(tmp_path / "a.jpg")
    assert (lens.focal_length, lens.focal_length_35mm) == kept
    assert lens.knows_focal_length == (max(kept) > 0)


def test_a_lost_folder_and_a_damaged_database_are_named(tmp_path: Path) -> None:
    gone, damaged = tmp_path / "gone", tmp_path / "damaged.db"
    with pytest.raises(hardnet_sfm.HardnetSfmError, match="gone"):
        import_photos(tmp_path / "new.db", gone, ["a.jpg"], CameraSetup("auto", "SIMPLE_RADIAL"), tmp_path / "scratch")
    damaged.write_bytes(b"no database" * 100)
    with pytest.raises(hardnet_sfm.HardnetSfmError, match=r"damaged\.db"):
        import_photos(damaged, gone, ["a.jpg"], CameraSetup("auto", "SIMPLE_RADIAL"), tmp_path / "scratch")
