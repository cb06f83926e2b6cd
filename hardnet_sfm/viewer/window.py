"""The viewer's page: the model in 3D, controls on the right, and the clicked photo or point on the left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import TypeVar

import numpy as np
import viser
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.frames import Frames
from hardnet_sfm.photos import PhotoSource
from hardnet_sfm.viewer import selection
from hardnet_sfm.viewer.photo_panel import KEYPOINT_COLOURS, ModelPhotos
from hardnet_sfm.viewer.world import POINT_COLOURS, Rows, World, find_span

T = TypeVar("T")

_MOST_CAMERAS = 1000  # each camera is a separate node in the browser
_ASKED = 12  # number of photos that decide the up direction
_CAMERA, _CHOSEN = (120, 160, 255), (255, 120, 0)
_NOTHING = "(choose)"
_CLOSE = 1e-3  # share of the screen within which two messages describe the same click


@dataclass(frozen=True, eq=False)
class Shown:
    """What the viewer shows.

    Attributes:
        titles: titles of the models; the first is shown first.
        read_world: reads the model with a title. It raises HardnetSfmError if the model is damaged.
        photos: gives the photos; None if their folder is not known.
        notice: why there are no photos to show; empty if there are.
        known: maps a photo's name to the frames of its keypoints in COLMAP's pixels, or to None.
    """

    titles: Sequence[str]
    read_world: Callable[[str], World]
    photos: PhotoSource | None
    notice: str
    known: Callable[[str], Frames | None]


class Window:
    """Shows one model at a time. All connected pages show the same.

    A lock makes the callbacks run one after the other.

    Args:
        server: server that shows the model.
        shown: the models and photos.
        max_points: most points to show.

    Raises:
        HardnetSfmError: the first model is damaged.
    """

    def __init__(self, server: viser.ViserServer, shown: Shown, max_points: int) -> None:
        self.server, self.world, self.notice = server, shown.read_world(shown.titles[0]), shown.notice
        self._shown, self._max_points = shown, max_points
        self._lock = RLock()
        self._camera_hit: tuple[int, tuple[float, float]] = (-1, (0.0, 0.0))
        server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False, control_width="medium")
        self._add_left_panel()
        self._add_controls()
        self._show_model()
        server.scene.on_click()(self._on_click)  # type: ignore[arg-type]  # viser awaits it; its type omits that

    def _add_left_panel(self) -> None:
        gui = self.server.gui
        panel = gui.add_panel()
        with panel.add_tab("Selection", viser.Icon.PHOTO):
            self.page = gui.add_html(selection.WELCOME)
        panel.dock_left()
        panel.set_width(430)

    def _add_controls(self) -> None:
        gui = self.server.gui
        self.facts = gui.add_markdown("")
        titles = self._shown.titles
        self.models = gui.add_dropdown("Model", titles, visible=len(titles) > 1)
        with gui.add_folder("Points"):
            self.point_size = gui.add_slider("Size", 0.2, 10, 0.2, 3)
            self.least_track = gui.add_slider("Least track", 2, 3, 1, 2, hint="Fewest photos that see a point")
            self.point_colour = gui.add_dropdown("Colour", POINT_COLOURS)
            self.legend = gui.add_html("", visible=False)
        with gui.add_folder("Cameras"):
            self.frustum_size = gui.add_slider("Size", 0.2, 10, 0.2, 2)
            self.name_labels = gui.add_checkbox("Names", False)
            self.photos = gui.add_dropdown("Photo", (_NOTHING,))
            self.keypoint_colour = gui.add_dropdown("Keypoints", KEYPOINT_COLOURS)
            self.look = gui.add_button("Look through this camera", disabled=True)
        self.models.on_update(lambda _: self._locked(self._change_model))
        self.point_size.on_update(lambda _: self._locked(self._resize_points))
        self.least_track.on_update(lambda _: self._locked(self._show_points))
        self.point_colour.on_update(lambda _: self._locked(self._show_points))
        self.frustum_size.on_update(lambda _: self._locked(self._resize_frusta))
        self.name_labels.on_update(lambda _: self._locked(self._show_names))
        self.photos.on_update(lambda _: self._locked(self._choose_photo))
        self.keypoint_colour.on_update(lambda _: self._locked(self._show_photo))
        self.look.on_click(self._look_through)

    def _locked(self, act: Callable[[], None]) -> None:
        with self._lock:
            act()

    def _change_model(self) -> None:
        title = self.models.value
        if title == self.world.title:
            return
        try:
            self.world = self._shown.read_world(title)
        except HardnetSfmError as error:
            self.page.content = selection.format_notice(title, str(error))
            return
        self._show_model()

    def _show_model(self) -> None:
        """Redraws the whole model."""
        world, server = self.world, self.server
        self._files = ModelPhotos(world, self._shown.photos, self._shown.known)
        self._unit = world.distance / 100
        up = self._up()
        with server.atomic():
            server.scene.reset()
            server.scene.world_axes.visible = False
            server.scene.set_up_direction(up)
            position, target = world.first_look(up)
            camera = server.initial_camera
            camera.position, camera.look_at, camera.up = position, target, up
            camera.near, camera.far = self._unit, self._unit * 1e5
            self.frusta = {number: self._frustum(number) for number in world.shown_cameras(_MOST_CAMERAS).tolist()}
            for client in server.get_clients().values():
                client.camera.up_direction = up
                client.camera.position, client.camera.look_at = position, target
        self._photo: int | None = None
        self._labels: list[viser.LabelHandle] = []
        self.least_track.max = max(3, int(np.quantile(world.lengths, 0.99)))
        _set(self.least_track, min(self.least_track.value, self.least_track.max))
        self.photos.options = (_NOTHING, *world.tracks.names)
        self._choose(None)
        self.page.content = selection.format_notice("no photos", self.notice) if self.notice else selection.WELCOME
        self._show_points()
        self._show_names()

    def _up(self) -> NDArray[np.float64]:
        """(3,) unit vector: the mean up direction of a few upright photos."""
        some = self.world.shown_cameras(_ASKED).tolist()
        mean = np.mean([self.world.up_of(number, self._files.orientation(number)) for number in some], axis=0)
        length = np.linalg.norm(mean)
        return mean / length if length > 0.1 else self.world.up_of(some[0], 1)

    def _frustum(self, number: int) -> viser.CameraFrustumHandle:
        world = self.world
        width, height = world.tracks.sizes[number].tolist()
        frustum = self.server.scene.add_camera_frustum(
            f"/cameras/{number}",
            float(world.fields_of_view[number]),
            width / height,
            scale=2 * self._unit * self.frustum_size.value,
            thickness=1.5,
            thickness_units="screen",
            color=_CAMERA,
            wxyz=world.wxyz[number],
            position=world.centres[number],
            cast_shadow=False,
            receive_shadow=False,
            variant="filled",  # lines alone are hard to click
        )

        @frustum.on_click
        async def _(event: viser.SceneNodePointerEvent[viser.CameraFrustumHandle]) -> None:
            self._camera_hit = event.client_id, event.screen_pos
            await asyncio.to_thread(self.open_photo, number)

        return frustum

    def _show_points(self) -> None:
        """Redraws the points with the present selection and colours."""
        world, by = self.world, self.point_colour.value
        self._rows: Rows = world.shown(int(self.least_track.value), self._max_points)
        if not len(self._rows):
            self.server.scene.remove_by_name("/points")
        else:
            self._cloud = self.server.scene.add_point_cloud(
                "/points",
                world.tracks.xyz[self._rows].astype(np.float32),
                world.colours(by)[self._rows],
                point_size=self._unit * self.point_size.value / 5,
                point_shape="circle",
                point_shading="flat",
                precision="float32",
            )
        values = world.values(by)
        self.legend.visible = values is not None
        if values is not None:
            unit = " px" if by == "reprojection error" else ""
            self.legend.content = selection.format_legend("", *find_span(values), unit)
        self._show_facts()

    def _show_facts(self) -> None:
        world, shown = self.world, len(self._rows)
        admitted = int((world.lengths >= self.least_track.value).sum())
        cameras, photos = len(self.frusta), len(world.tracks.names)
        lines = [
            f"**{world.title}**: {photos} cameras, {len(world.tracks.xyz)} points, "
            f"{len(world.tracks.point)} observations",
            f"Shown: {shown} points" + (f", thinned evenly from {admitted}" if shown < admitted else ""),
        ]
        if cameras < photos:
            lines.append(f"and {cameras} cameras, thinned evenly; all are in the list of photos")
        self.facts.content = "  \n".join(lines)

    def _resize_points(self) -> None:
        if len(self._rows):
            self._cloud.point_size = self._unit * self.point_size.value / 5

    def _resize_frusta(self) -> None:
        with self.server.atomic():
            for frustum in self.frusta.values():
                frustum.scale = 2 * self._unit * self.frustum_size.value

    def _show_names(self) -> None:
        """Draws name labels at all drawn cameras, or only at the chosen one."""
        for label in self._labels:
            label.remove()
        numbers = set(self.frusta) if self.name_labels.value else set()
        numbers |= {self._photo} if self._photo is not None else set()
        with self.server.atomic():
            self._labels = [
                self.server.scene.add_label(
                    f"/names/{number}", self.world.tracks.names[number], position=self.world.centres[number]
                )
                for number in sorted(numbers)
            ]

    def _choose_photo(self) -> None:
        if self.photos.value != _NOTHING:
            number = self.world.tracks.names.index(self.photos.value)
            if number != self._photo:
                self.open_photo(number)

    def open_photo(self, number: int) -> None:
        """Shows the photo of a row with its keypoints, as a click on its camera does."""
        with self._lock:
            self.server.scene.remove_by_name("/chosen")
            self._choose(number)
            self._show_photo()

    def _choose(self, number: int | None) -> None:
        """Highlights one camera, or none."""
        if self._photo in self.frusta:
            self.frusta[self._photo].color, self.frusta[self._photo].image = _CAMERA, None
        self._photo = number
        if number is not None:
            if number not in self.frusta:
                self.frusta[number] = self._frustum(number)
            self.frusta[number].color = _CHOSEN
        self.look.disabled = number is None
        _set(self.photos, _NOTHING if number is None else self.world.tracks.names[number])
        self._show_names()

    def _show_photo(self) -> None:
        if self._photo is None:
            return
        by = self.keypoint_colour.value
        try:
            drawn = self._files.draw(self._photo, by)
        except HardnetSfmError as error:
            self.page.content = selection.format_notice(self.world.tracks.names[self._photo], str(error))
        else:
            self.frusta[self._photo].image = drawn.stored
            self.page.content = selection.format_photo(self.world, self._photo, drawn, by)

    async def _on_click(self, event: viser.SceneClickEvent) -> None:
        """Handles a click that hits no camera. A click on a camera also arrives here, after the camera's callback."""
        client, at = self._camera_hit
        if event.client_id == client and np.allclose(event.screen_pos, at, atol=_CLOSE):
            self._camera_hit = -1, (0.0, 0.0)
            return
        await asyncio.to_thread(self._pick, event)

    def _pick(self, event: viser.SceneClickEvent) -> None:
        with self._lock:
            camera = event.client.camera
            pixel = camera.fov / max(camera.image_height, 1)
            radius = self._unit * self.point_size.value / 10
            origin, direction = np.array(event.ray_origin), np.array(event.ray_direction)
            point = self.world.pick(self._rows, origin, direction, pixel, radius)
            if point is not None:
                self.open_point(point)

    def open_point(self, point: int) -> None:
        """Shows the patches of the point of a row in all of its photos, as a click on the point does."""
        with self._lock:
            self._choose(None)
            world, scene = self.world, self.server.scene
            cuts = self._files.cut_patches(point)
            here = world.tracks.xyz[point]
            ends = np.stack([np.broadcast_to(here, (len(cuts), 3)), world.centres[[cut.photo for cut in cuts]]], 1)
            with self.server.atomic():
                scene.add_line_segments("/chosen/rays", ends, _CHOSEN, thickness=1, thickness_units="screen")
                scene.add_point_cloud(
                    "/chosen/point",
                    here[None].astype(np.float32),
                    _CHOSEN,
                    precision="float32",
                    point_size=self._unit * max(self.point_size.value / 2, 0.5),
                    point_shape="circle",
                )
            self.page.content = selection.format_point(world, point, cuts)

    def _look_through(self, event: viser.GuiEvent[viser.GuiButtonHandle]) -> None:
        """Moves the viewpoint of one client to the chosen camera."""
        with self._lock:
            if event.client is None or self._photo is None:
                return
            world, camera = self.world, event.client.camera
            with event.client.atomic():
                camera.up_direction = world.up_of(self._photo, self._files.orientation(self._photo))
                camera.position = world.centres[self._photo]
                camera.look_at = (
                    world.centres[self._photo] + world.distance * world.tracks.cam_from_world[self._photo, 2, :3]
                )


def _set(control: viser.GuiInputHandle[T], value: T) -> None:
    """Sets the value of a control. Its callbacks run before this returns."""
    control.value = value  # type: ignore[misc]  # viser defines the setter too far from the getter for mypy
