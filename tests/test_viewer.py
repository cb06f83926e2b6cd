"""The viewer: what it sends is what the model says, patches are those that are mined, and strangers get nothing."""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pycolmap
import pytest
from browser import Visit, visit
from numpy.typing import NDArray
from PIL import Image

from hardnet_sfm.colmap.model import Model, models_in
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.patch_sets import read_patches
from hardnet_sfm.files.photo_folders import PhotoFolder
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.frames import known_frames
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.mine import mine
from hardnet_sfm.verbs.view import read_world, viewing

viser = pytest.importorskip("viser", reason="viser is not installed: pip install hardnet-sfm[view]")

import msgspec  # noqa: E402
import zstandard  # noqa: E402
from websockets.exceptions import InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402
from websockets.typing import Subprotocol  # noqa: E402

from hardnet_sfm.verbs.view import ViewOptions  # noqa: E402
from hardnet_sfm.viewer import guard, selection  # noqa: E402
from hardnet_sfm.viewer.guard import Served, serving  # noqa: E402
from hardnet_sfm.viewer.photo_panel import Cut, ModelPhotos  # noqa: E402
from hardnet_sfm.viewer.window import Window  # noqa: E402
from hardnet_sfm.viewer.world import World, colour_by_ramp, find_span  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FREE = ViewOptions(port=0)
CANVAS = "canvas[data-engine]"


@pytest.fixture(scope="module")
def world(made: Workspace) -> World:
    return read_world(made.sparse / "0")


@pytest.fixture(scope="module")
def theirs(made: Workspace) -> pycolmap.Reconstruction:
    return pycolmap.Reconstruction(made.sparse / "0")


@pytest.fixture
def photos(made: Workspace, small_scene: tuple[Path, Scene], world: World) -> Iterator[ModelPhotos]:
    with known_frames(made.features) as known:
        yield ModelPhotos(world, PhotoFolder(small_scene[0]), known)


@pytest.fixture(scope="module")
def open_to_all() -> Iterator[Served]:
    """An empty viewer that others can reach."""
    with serving("0.0.0.0", 0, token=False, label="test") as served:
        yield served


@pytest.fixture(scope="module")
def local() -> Iterator[Served]:
    with serving("127.0.0.1", 0, token=False, label="test") as served:
        yield served


def get(address: str, path: str = "/", **headers: str) -> http.client.HTTPResponse:
    """A plain request, read to its end."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def websocket(address: str, *, origin: str | None = None, **headers: str) -> Any:
    at = f"ws://{urlsplit(address).netloc}/"
    protocol = [Subprotocol(f"viser-v{viser.__version__}")]
    return connect(at, subprotocols=protocol, additional_headers=headers, origin=origin, max_size=None, proxy=None)


def cookie_of(served: Served) -> str:
    """What a browser that opened the address sends from then on."""
    query = urlsplit(served.address).query
    response = get(served.address, f"/?{query}")
    assert (response.status, response.headers["Location"]) == (303, "/")
    attributes = response.headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Lax"} <= set(attributes)
    return attributes[0]


def received(address: str) -> list[dict[str, Any]]:
    """All that a page gets when it connects, with its arrays."""
    messages: list[dict[str, Any]] = []
    with websocket(address) as socket:
        while not any(message["type"] == "ReplayDoneMessage" for message in messages):
            data = socket.recv(timeout=30)
            size = int.from_bytes(data[8:16], "little")
            packed = zstandard.ZstdDecompressor().decompress(data[16 : 16 + size], int.from_bytes(data[:8], "little"))
            window, at, buffers = msgspec.msgpack.decode(packed), 16 + size, []
            for length in window["binaryBufferLengths"]:
                at += -at % 8
                buffers.append(data[at : at + length])
                at += length
            messages += [_filled(message, buffers) for message in window["messages"]]
    return messages


def _filled(content: Any, buffers: list[bytes]) -> Any:
    """A message with its arrays, flat, in the places of their numbers."""
    if isinstance(content, dict):
        if "__binary_index" in content:
            return buffers[content["__binary_index"]]
        return {key: _filled(value, buffers) for key, value in content.items()}
    return content


class TestWorld:
    def test_cameras_are_the_inverses_of_the_models_poses(self, world: World, theirs: pycolmap.Reconstruction) -> None:
        for number, name in enumerate(world.tracks.names):
            pose = theirs.find_image_with_name(name).cam_from_world().inverse()
            x, y, z, w = pose.rotation.quat
            np.testing.assert_allclose(world.centres[number], pose.translation, atol=1e-9)
            assert abs(world.wxyz[number] @ (w, x, y, z)) == pytest.approx(1, abs=1e-9)

    def test_field_of_view_is_from_the_top_of_the_photo_to_its_bottom(
        self, world: World, theirs: pycolmap.Reconstruction
    ) -> None:
        camera = next(iter(theirs.cameras.values()))
        focal = camera.calibration_matrix()[1, 1]
        top, bottom = (-camera.height / 2 / focal, camera.height / 2 / focal)
        np.testing.assert_allclose(world.fields_of_view, np.arctan(bottom) - np.arctan(top))

    def test_points_are_the_models(self, world: World, theirs: pycolmap.Reconstruction) -> None:
        for number in range(0, len(world.tracks.xyz), 17):
            point = theirs.point3D(int(world.tracks.point_ids[number]))
            np.testing.assert_array_equal(world.tracks.colours[number], point.color)
            assert world.lengths[number] == point.track.length()
            assert world.errors[number] == pytest.approx(point.error, abs=1e-3)

    def test_more_points_than_wanted_are_thinned_evenly_after_the_least_track(self, world: World) -> None:
        long = np.flatnonzero(world.lengths >= 3)
        np.testing.assert_array_equal(world.shown(3, 10**6), long)
        few = world.shown(3, 11)
        np.testing.assert_array_equal(few, long[np.round(np.arange(11) * (len(long) - 1) / 10).astype(int)])
        assert not len(world.shown(1000, 10))
        np.testing.assert_array_equal(world.shown_cameras(2), [0, 7])

    def test_a_click_means_the_point_whose_projection_is_nearest(self, world: World) -> None:
        rows, photo = world.shown(2, 10**6), 0
        pose, pixel = world.tracks.cam_from_world[photo], 1 / 500
        in_camera = world.tracks.xyz[rows] @ pose[:, :3].T + pose[:, 3]
        directions = in_camera / np.linalg.norm(in_camera, axis=1, keepdims=True)
        found = 0
        for target in range(0, len(rows), 29):
            away = np.arccos(np.clip(directions @ directions[target], -1, 1))
            if in_camera[target, 2] > 0 and np.partition(away, 1)[1] > 1e-5:  # else two are at the same place
                clicked = world.pick(rows, world.centres[photo], directions[target] @ pose[:, :3], pixel, 0.0)
                assert clicked == rows[target]
                found += 1
        assert found > 5

    def test_of_discs_behind_each_other_the_front_one_is_clicked(self, world: World) -> None:
        tracks = world.tracks
        origin = np.array([0.0, 0.0, -1e4])
        along = np.argsort(tracks.xyz[:, 2])
        everything, forward = np.arange(len(tracks.xyz)), np.array([0.0, 0.0, 2.0])
        assert world.pick(everything, origin, forward, 1e-6, radius=1e5) == along[0]
        assert world.pick(everything, origin, -forward, 1e-6, radius=1e5) is None
        assert world.pick(everything[:0], origin, forward, 1e-6, radius=1e5) is None
        assert world.pick(everything, np.array([1e4, 1e4, -1e4]), forward, 1e-6, radius=0) is None

    @pytest.mark.parametrize(("orientation", "up"), [(1, (0, -1)), (3, (0, 1)), (6, (-1, 0)), (8, (1, 0))])
    def test_up_is_that_of_the_upright_photo(self, world: World, orientation: int, up: tuple[int, int]) -> None:
        # EXIF 6: the camera was held so that the right side of the sensor was below.
        rotation = world.tracks.cam_from_world[2, :, :3]
        np.testing.assert_allclose(rotation @ world.up_of(2, orientation), (*up, 0), atol=1e-12)

    def test_ramp_is_grey_where_infinite_and_saturates(self) -> None:
        values = np.array([1.0, 2.0, 3.0, np.inf])
        assert find_span(np.append(np.ones(99), 1e9))[1] < 2
        colours = colour_by_ramp(values, 1.0, 2.0)
        np.testing.assert_array_equal(colours[1], colours[2])
        np.testing.assert_array_equal(colours[3], [128, 128, 128])
        assert colours[0, 2] > colours[0, 0]
        assert colours[1, 0] > colours[1, 2]


class TestPhotos:
    def test_patches_are_those_that_are_mined(
        self, made: Workspace, small_scene: tuple[Path, Scene], world: World, photos: ModelPhotos, tmp_path: Path
    ) -> None:
        mine(made.root, small_scene[0], tmp_path / "patches.h5")
        mined = read_patches(tmp_path / "patches.h5")
        compared = 0
        for number in range(0, len(mined.xyz), 40):
            # Two keypoints that differ in their orientation alone make two points of one position.
            points = np.flatnonzero(np.linalg.norm(world.tracks.xyz - mined.xyz[number], axis=1) < 1e-5).tolist()
            cuts = [
                (world.tracks.names[cut.photo], cut.patch)
                for point in points
                for cut in photos.cut_patches(point, size=64)
            ]
            for row in np.flatnonzero(mined.point == number):
                name, patch = mined.images[mined.image[row]], mined.take(row)
                assert any(of == name and np.array_equal(cut, patch) for of, cut in cuts)
                compared += 1
        assert compared > 20

    def test_every_photo_of_a_point_is_there(
        self, world: World, theirs: pycolmap.Reconstruction, photos: ModelPhotos
    ) -> None:
        point = int(world.lengths.argmax())
        track = theirs.point3D(int(world.tracks.point_ids[point])).track.elements
        names = {theirs.image(element.image_id).name for element in track}
        assert {world.tracks.names[cut.photo] for cut in photos.cut_patches(point)} == names

    def test_a_photo_that_is_stored_turned_gives_the_same_patches(
        self, small_scene: tuple[Path, Scene], made: Workspace, world: World, photos: ModelPhotos, tmp_path: Path
    ) -> None:
        """The pixels in the file are the same, and only its EXIF orientation says that the camera was turned."""
        for name in world.tracks.names:
            picture = Image.open(small_scene[0] / name)
            exif = picture.getexif()
            exif[0x0112] = 6
            picture.save(tmp_path / name, "PNG", exif=exif)
        # COLMAP's database has keypoints in the pixels as stored, whichever way the photo is turned.
        with known_frames(made.database) as known:
            turned = ModelPhotos(world, PhotoFolder(tmp_path), known)
            assert turned.orientation(0) == 6
            for point in range(0, len(world.tracks.xyz), 60):
                for ours, same in zip(turned.cut_patches(point), photos.cut_patches(point), strict=True):
                    assert ours.patch is not None
                    assert same.patch is not None
                    difference = np.abs(ours.patch.astype(int) - same.patch)
                    assert difference.mean() < 1.5  # halvings of the pyramid begin at another corner
            drawn = turned.draw(0, "track length")
        assert drawn.picture.shape[0] > drawn.picture.shape[1]
        assert drawn.stored.shape[0] < drawn.stored.shape[1]
        as_stored = cv2.imread(
            str(tmp_path / world.tracks.names[0]), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        )
        np.testing.assert_array_equal(drawn.stored, as_stored)

    def test_keypoints_are_drawn_where_they_are_in_the_colour_of_their_track(
        self, world: World, photos: ModelPhotos, made: Workspace
    ) -> None:
        drawn = photos.draw(3, "track length")
        with FeatureStore(made.features) as store:
            found = store.counts()[world.tracks.names[3]]
        rows = world.tracks.of_photo(3)
        lengths = world.lengths[world.tracks.point[rows]].astype(float)
        assert (drawn.keypoints, drawn.triangulated) == (found, len(lengths))
        # The photo is smaller than the page's limit. COLMAP's pixels have their centres at halves.
        xy = world.tracks.xy[rows]
        apart = np.linalg.norm(xy[:, None] - xy, axis=2) + 100 * np.eye(len(xy))
        alone = np.flatnonzero(apart.min(0) > 8)  # not covered by another's dot
        x, y = np.floor(xy[alone]).astype(int).T
        assert len(alone) > 20
        np.testing.assert_array_equal(drawn.picture[y, x], colour_by_ramp(lengths, drawn.low, drawn.high)[alone])
        green = photos.draw(3, "triangulated or not").picture
        np.testing.assert_array_equal(green[y, x], np.tile([60, 220, 90], (len(alone), 1)))

    def test_without_features_the_patch_says_that_it_is_a_guess(
        self, small_scene: tuple[Path, Scene], world: World
    ) -> None:
        cut = ModelPhotos(world, PhotoFolder(small_scene[0]), lambda _: None).cut_patches(0)[0]
        assert cut.patch is not None
        assert cut.notice == "scale and orientation not known"

    def test_another_photo_of_that_name_is_not_taken_for_the_models(
        self, small_scene: tuple[Path, Scene], world: World, tmp_path: Path
    ) -> None:
        name = world.tracks.names[0]
        Image.open(small_scene[0] / name).resize((96, 72)).save(tmp_path / name)
        other = ModelPhotos(world, PhotoFolder(tmp_path), lambda _: None)
        assert "96x72 pixels, its camera 480x360" in other.draw(0, "track length").notice
        point = int(world.tracks.point[world.tracks.of_photo(0)][0])
        cuts = {cut.photo: cut for cut in other.cut_patches(point)}
        assert cuts[0].patch is None
        assert "not the one of the model" in cuts[0].notice
        assert all("No such file" in cut.notice for number, cut in cuts.items() if number)

    def test_unknown_folder_of_photos_says_what_to_do(self, world: World) -> None:
        with pytest.raises(HardnetSfmError, match="--images"):
            ModelPhotos(world, None, lambda _: None).draw(0, "track length")


class TestPages:
    def test_names_are_text_and_patches_are_lossless(self, world: World) -> None:
        patch = np.random.default_rng(0).integers(0, 256, (96, 96), np.uint8)
        names = ["<script>alert(1)</script>.jpg", *world.tracks.names[1:]]
        tracks = world.tracks.__class__(**{**vars(world.tracks), "names": names})
        cuts = [Cut(0, 0.5, patch), Cut(1, 0.25, None, "<b>")]
        page = selection.format_point(World(world.title, world.model, tracks), 0, cuts)
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;.jpg" in page
        assert "&lt;b&gt;" in page
        found = re.search(r'src="data:image/png;base64,([^"]+)"', page)
        assert found is not None
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(found[1]), np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(pixels, patch)
        assert "<script" not in selection.format_notice("<script>", "<script>")


class TestGuard:
    def test_without_a_token_only_this_machine_by_its_own_names(self, local: Served) -> None:
        assert local.elsewhere is None
        assert "token" not in local.address
        port = urlsplit(local.address).port
        for host in (f"127.0.0.1:{port}", "localhost", f"[::1]:{port}"):
            assert get(local.address, Host=host).status == 200
        for host in ("rebound.example", f"192.0.2.7:{port}", "127.0.0.1.example", "", "[::1"):
            assert get(local.address, Host=host).status == 403
        assert get(local.address, "/../../guard.py").status == 404

    def test_by_default_no_other_address_of_the_machine_listens(self, local: Served, open_to_all: Served) -> None:
        assert ViewOptions().host == "127.0.0.1"
        with contextlib.closing(socket.create_connection(("127.0.0.2", urlsplit(open_to_all.address).port), 5)):
            pass  # all of 127/8 is this machine
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", urlsplit(local.address).port), 5)

    def test_pages_of_other_origins_are_refused(self, local: Served) -> None:
        with websocket(local.address, origin=local.address.rstrip("/")):
            pass
        with pytest.raises(InvalidStatus, match="403"):
            websocket(local.address, origin="https://elsewhere.example")
        with pytest.raises(InvalidStatus, match="403"):
            websocket(local.address, origin="null")

    def test_opened_to_others_nothing_is_answered_without_the_token(self, open_to_all: Served) -> None:
        assert open_to_all.elsewhere is not None
        assert urlsplit(open_to_all.elsewhere).query == urlsplit(open_to_all.address).query
        name = cookie_of(open_to_all).partition("=")[0]
        for path in ("/", "/?token=", "/?token=wrong", "/index.html", "/?tokens=x", "/nothing-here"):
            assert get(open_to_all.address, path).status == 403
        for cookie in (f"{name}=", f"{name}=wrong", "other=x", "=;;=", "\u00e4=\u00e4"):
            assert get(open_to_all.address, Cookie=cookie).status == 403
            with pytest.raises(InvalidStatus, match="403"):
                websocket(open_to_all.address, Cookie=cookie)
        with pytest.raises(InvalidStatus, match="403"):
            websocket(open_to_all.address)

    def test_the_token_becomes_a_cookie_that_opens_page_and_websocket(self, open_to_all: Served) -> None:
        cookie = cookie_of(open_to_all)
        assert get(open_to_all.address, Cookie=cookie).status == 200
        assert get(open_to_all.address, Cookie=f"other=1; {cookie}").status == 200
        with websocket(open_to_all.address, Cookie=cookie) as opened:
            assert len(opened.recv(timeout=20))
        with pytest.raises(InvalidStatus, match="403"):
            websocket(open_to_all.address, Cookie=cookie, origin="http://elsewhere.example")

    def test_a_token_for_this_machine_too_where_asked_for(self) -> None:
        with serving("127.0.0.1", 0, token=True, label="test") as served:
            assert get(served.address).status == 403
            assert get(served.address, Cookie=cookie_of(served)).status == 200

    def test_tokens_are_long_and_never_the_same(self, open_to_all: Served) -> None:
        with serving("127.0.0.1", 0, token=True, label="test") as other:
            tokens = {urlsplit(served.address).query for served in (open_to_all, other)}
        assert len(tokens) == 2
        assert all(len(token.removeprefix("token=")) >= 22 for token in tokens)

    def test_a_viser_that_cannot_be_guarded_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guard, "_asked_first", lambda _: contextlib.nullcontext())
        with (
            pytest.raises(HardnetSfmError, match="cannot be given a token"),
            serving("127.0.0.1", 0, token=True, label="test"),
        ):
            pass

    def test_no_tunnel_to_the_internet_is_made(self, local: Served) -> None:
        assert local.viser.request_share_url() is None  # type: ignore[func-returns-value]

    def test_a_port_in_use_is_an_error_and_free_again_after_the_viewer(self) -> None:
        with serving("127.0.0.1", 0, token=False, label="test") as served:
            port = urlsplit(served.address).port
            assert port is not None
            with (
                pytest.raises(HardnetSfmError, match=f"port {port} of 127.0.0.1 is in use"),
                serving("127.0.0.1", port, token=False, label="test"),
            ):
                pass
        with serving("127.0.0.1", port, token=False, label="test"):
            pass

    @pytest.mark.parametrize(("host", "port"), [("no-such-host.invalid", 0), ("", 0), ("127.0.0.1", 70000)])
    def test_hosts_and_ports_that_cannot_be(self, host: str, port: int) -> None:
        with pytest.raises(UsageError), serving(host, port, token=False, label="test"):
            pass

    def test_an_address_of_another_machine_is_an_error(self) -> None:
        with pytest.raises(HardnetSfmError, match="cannot listen"), serving("192.0.2.1", 0, token=False, label="test"):
            pass


class TestModels:
    def test_are_found_in_a_workspace_a_folder_of_models_and_a_models_own(
        self, made: Workspace, tmp_path: Path
    ) -> None:
        (only,) = models_in(made.root)
        assert only == made.sparse / "0"
        assert models_in(made.sparse) == models_in(made.sparse / "0") == [only]
        for number in (0, 2, 10):
            shutil.copytree(only, tmp_path / "sparse" / str(number))
        (tmp_path / "sparse" / "1").mkdir()  # no model in it
        assert [folder.name for folder in models_in(tmp_path)] == ["0", "2", "10"]

    def test_none_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(HardnetSfmError, match=f"no COLMAP model in {tmp_path}"):
            models_in(tmp_path)
        with pytest.raises(HardnetSfmError, match="no such folder"):
            models_in(tmp_path / "nowhere")


class TestWindow:
    def test_sends_the_models_cameras_and_points(
        self, made: Workspace, theirs: pycolmap.Reconstruction, world: World
    ) -> None:
        with viewing(made.root, options=FREE) as (_, address, elsewhere):
            assert elsewhere is None
            messages = received(address)
        frusta = {m["name"]: m for m in messages if m["type"] == "CameraFrustumMessage"}
        turns = {m["name"]: m["wxyz"] for m in messages if m["type"] == "SetOrientationMessage"}
        places = {m["name"]: m["position"] for m in messages if m["type"] == "SetPositionMessage"}
        assert len(frusta) == theirs.num_reg_images()
        for number, name in enumerate(world.tracks.names):
            image = theirs.find_image_with_name(name)
            pose, node = image.cam_from_world().inverse(), f"/cameras/{number}"
            x, y, z, w = pose.rotation.quat
            assert abs(np.dot(turns[node], (w, x, y, z))) == pytest.approx(1, abs=1e-6)
            np.testing.assert_allclose(places[node], pose.translation, atol=1e-6)
            props = frusta[node]["props"]
            assert props["aspect"] == image.camera.width / image.camera.height
            assert props["fov"] == pytest.approx(2 * np.arctan(180 / image.camera.focal_length_y))
        (cloud,) = (m for m in messages if m["type"] == "PointCloudMessage")
        assert cloud["name"] == "/points"
        numbers = sorted(theirs.point3D_ids())
        xyz = np.frombuffer(cloud["props"]["points"], np.float32).reshape(-1, 3)
        np.testing.assert_array_equal(xyz, np.float32([theirs.point3D(n).xyz for n in numbers]))
        rgb = np.frombuffer(cloud["props"]["colors"], np.uint8).reshape(-1, 3)
        np.testing.assert_array_equal(rgb, [theirs.point3D(n).color for n in numbers])

    def test_controls_do_what_they_say(self, made: Workspace, world: World) -> None:
        with viewing(made.root, options=ViewOptions(port=0, max_points=50)) as (window, _, _):
            assert f"50 points, thinned evenly from {len(world.tracks.xyz)}" in window.facts.content
            assert not window.models.visible
            assert not window.legend.visible
            window.least_track.value = 3
            window.point_colour.value = "reprojection error"
            assert f"thinned evenly from {(world.lengths >= 3).sum()}" in window.facts.content
            assert window.legend.visible
            rows = world.shown(3, 50)
            cloud = window.server.scene.get_handle_by_name("/points")
            np.testing.assert_array_equal(cloud.colors, world.colours("reprojection error")[rows])
            window.point_size.value, window.frustum_size.value = 4, 8
            assert cloud.point_size == pytest.approx(world.distance / 100 * 4 / 5)
            assert {frustum.scale for frustum in window.frusta.values()} == {2 * world.distance / 100 * 8}

    def test_a_chosen_photo_and_a_chosen_point_fill_the_page(
        self, made: Workspace, world: World, photos: ModelPhotos
    ) -> None:
        with viewing(made.root, options=FREE) as (window, _, _):
            assert not window.notice
            window.photos.value = world.tracks.names[4]
            shown = photos.draw(4, "track length")
            assert window.page.content == selection.format_photo(world, 4, shown, "track length")
            np.testing.assert_array_equal(window.frusta[4].image, shown.stored)
            point = int(world.lengths.argmax())
            window.open_point(point)
            assert window.page.content == selection.format_point(world, point, photos.cut_patches(point))
            assert window.frusta[4].image is None
            rays = window.server.scene.get_handle_by_name("/chosen/rays").points
            seen = [cut.photo for cut in photos.cut_patches(point)]
            np.testing.assert_allclose(rays[:, 0], np.tile(world.tracks.xyz[point], (len(seen), 1)), rtol=1e-6)
            np.testing.assert_allclose(rays[:, 1], world.centres[seen], rtol=1e-6)

    def test_a_colmap_model_without_photos_says_so_and_another_model_can_be_chosen(
        self, made: Workspace, tmp_path: Path
    ) -> None:
        for number in (0, 1):
            Model.read(made.sparse / "0").write(tmp_path / str(number), "text")
        with viewing(tmp_path, options=FREE) as (window, _, _):
            assert "--images" in window.notice
            assert "--images" in window.page.content
            assert window.models.visible
            window.models.value = window.models.options[1]
            assert window.world.title == f"{tmp_path.name}/1"
            window.open_photo(0)
            assert "--images" in window.page.content

    def test_bad_input_is_refused_before_a_port_is_opened(self, made: Workspace, tmp_path: Path) -> None:
        with pytest.raises(HardnetSfmError, match="no COLMAP model"), viewing(tmp_path):
            pass
        with pytest.raises(HardnetSfmError, match="no such folder"), viewing(made.root, tmp_path / "nowhere"):
            pass
        with pytest.raises(UsageError, match="max-points"), viewing(made.root, options=ViewOptions(max_points=0)):
            pass


class Looking:
    """A page of the viewer in a browser, and where things are on its screen."""

    def __init__(self, window: Window, seen: Visit) -> None:
        self.window, self.seen, self.page = window, seen, seen.page
        self.page.wait_for_selector(CANVAS)

    def colours(self) -> int:
        """How many the canvas has, beside the panels."""
        return len(np.unique(self.seen.pixels(CANVAS)[300:, 440:900].reshape(-1, 3), axis=0))

    def click(self, xyz: NDArray[np.float64]) -> None:
        """Clicks where a place of the model is on the screen."""
        (client,) = self.window.server.get_clients().values()
        camera = client.camera
        turn = viser.transforms.SO3(camera.wxyz).as_matrix()
        x, y, z = (xyz - camera.position) @ turn
        assert z > 0
        focal = camera.image_height / 2 / np.tan(camera.fov / 2)
        box = self.page.locator(CANVAS).bounding_box()
        assert box is not None
        left, top = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.click(left + focal * x / z, top + focal * y / z)

    def complaints(self) -> list[str]:
        """Of the console, but those that three.js and viser have of themselves and of the missing GPU."""
        known = ("THREE.Clock", "GPU stall due to ReadPixels", "Automatic fallback to software WebGL")
        return [said for said in self.seen.errors if not any(words in said for words in known)]


@pytest.fixture(scope="module")
def looking(made: Workspace, browser: Browser) -> Iterator[Looking]:
    with (
        viewing(made.root, options=ViewOptions(host="0.0.0.0", port=0)) as (window, address, _),
        visit(browser, address) as seen,
    ):
        yield Looking(window, seen)


@pytest.mark.slow
class TestInABrowser:
    def test_the_model_is_drawn_and_the_token_is_gone_from_the_address(self, looking: Looking) -> None:
        looking.seen.wait_until(lambda: looking.colours() > 50)
        assert "token" not in looking.page.url
        for words in ("Selection", "Least track", "Look through this camera"):
            looking.page.get_by_text(words).wait_for()
        looking.seen.keep("viewer-model")

    def test_a_click_on_a_camera_shows_its_photo(self, looking: Looking) -> None:
        world = looking.window.world
        photo = 4
        depth = np.array([0, 0, 0.03 * world.distance])
        looking.click(world.centres[photo] + depth @ world.tracks.cam_from_world[photo, :, :3])
        shown = looking.page.get_by_alt_text("with its keypoints")
        shown.wait_for()
        name = shown.get_attribute("alt")
        assert name == f"{world.tracks.names[photo]} with its keypoints"
        assert shown.evaluate("image => image.naturalWidth") == 480
        looking.seen.keep("viewer-camera")

    def test_a_click_on_a_point_shows_its_patches(self, looking: Looking) -> None:
        world = looking.window.world
        # The point that is least covered by others: the nearest to the eye of those with the longest tracks.
        (client,) = looking.window.server.get_clients().values()
        rows = np.flatnonzero(world.lengths >= np.quantile(world.lengths, 0.8))
        near = rows[np.linalg.norm(world.tracks.xyz[rows] - client.camera.position, axis=1).argmin()]
        looking.click(world.tracks.xyz[near])
        title = looking.page.get_by_text(re.compile(r"^point \d+$"))
        title.wait_for()
        number = int(title.inner_text().split()[1])
        point = int(np.searchsorted(world.tracks.point_ids, number))
        assert looking.page.locator("figure").count() == world.lengths[point]
        seen_by = {world.tracks.names[n] for n in world.tracks.photo[world.tracks.point == point]}
        captions = looking.page.locator("figcaption").all_inner_texts()
        assert {caption.split("\n")[0] for caption in captions} == seen_by
        looking.seen.keep("viewer-point")

    def test_controls_of_the_page_reach_the_model(self, looking: Looking) -> None:
        looking.page.get_by_role("checkbox", name="Names").check()
        looking.seen.wait_until(lambda: looking.window.server.scene.get_handle_by_name("/names/0") is not None)
        looking.page.get_by_label("Colour", exact=True).click()
        looking.page.get_by_role("option", name="reprojection error").click()
        looking.seen.wait_until(lambda: looking.window.legend.visible)
        looking.page.get_by_text("px or more").wait_for()
        looking.seen.keep("viewer-colours")

    def test_nothing_complains_and_nothing_is_asked_of_other_machines(self, looking: Looking) -> None:
        assert looking.complaints() == []
        at = urlsplit(looking.page.url).netloc
        assert {urlsplit(request).netloc for request in looking.seen.requests} <= {at}

    def test_another_visitor_without_the_token_gets_nothing(self, looking: Looking, browser: Browser) -> None:
        with visit(browser, looking.page.url) as stranger:
            assert "A token is needed" in stranger.page.content()
            assert stranger.page.locator("canvas").count() == 0


@pytest.mark.slow
def test_the_command_says_its_address_and_ctrl_c_stops_it(made: Workspace) -> None:
    command = [sys.executable, "-m", "hardnet_sfm", "view", str(made.root), "--port", "0"]
    # Where tests run in the background, shells have Ctrl-C ignored, which a process would inherit.
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, heeded)
    with process:
        assert process.stdout is not None
        word, address = process.stdout.readline().split()
        assert word == "open"
        assert get(address).status == 200
        assert process.stdout.readline() == "Ctrl-C stops it.\n"
        process.send_signal(signal.SIGINT)
        said, complained = process.communicate(timeout=60)
    assert (process.returncode, said, complained) == (0, "Stopped.\n", "")
