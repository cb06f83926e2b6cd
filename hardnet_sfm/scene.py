"""Synthetic scenes with exactly known cameras, rendered on the CPU for the demo and the tests.

A scene is a ground plane with boxes on it, by default a town square. Every surface is a textured planar quad. So its
image is a homography of its texture, and the photos are exact up to resampling.

Image and texture coordinates have their origin at the top-left *corner* of the top-left pixel, as in COLMAP. So a
change of resolution is a pure scaling. OpenCV has its origin at that pixel's *centre*; `_paint` converts to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float64
from hardnet_sfm.files.workspace import read_json, replacing, write_json
from hardnet_sfm.textures import Image, make_texture, shrink

_Quad = tuple[Float64, Float64, Float64]  # top-left corner, edge to the right and edge down, in metres

_RELATIVE_FOCAL_LENGTH = 1.1  # share of the photo's width
_SUPERSAMPLING = 2
_SENSOR_NOISE = 1.5  # standard deviation in grey levels
_JPEG_QUALITY = 95

_ARC_DEGREES = 115.0
_LARGEST_STEP_DEGREES = 5.0
_TARGET = np.array([0.0, 1.0, 0.8])  # metres; the point that the cameras look at
_PYRAMID_LEVELS = 6
_GROUND_SIZE = 64.0  # metres
_GROUND_TEXEL = 0.016  # metres
_WALL_TEXEL = 0.015  # metres
_TO_SUN = np.array([-0.45, -0.55, 0.70])
# Centre x and y, width, depth and height in metres, yaw in degrees; low in front so that the back stays visible.
_BOXES = (
    (-9.5, 8.0, 6.5, 5.0, 7.5, 20.0),
    (-1.0, 11.5, 7.5, 4.5, 5.5, -6.0),
    (8.5, 8.5, 5.0, 6.0, 9.0, -28.0),
    (-9.0, -1.0, 3.5, 5.0, 4.2, 8.0),
    (9.5, -0.5, 4.0, 4.0, 3.4, 37.0),
    (0.5, 3.5, 3.2, 3.2, 4.6, 41.0),
    (-3.8, -3.2, 2.2, 1.6, 1.5, -17.0),
    (4.2, -4.4, 1.7, 2.8, 1.1, 24.0),
    (0.6, -8.0, 1.3, 1.0, 0.8, 61.0),
)


@dataclass(frozen=True, eq=False)
class Scene:
    """A rendered scene: the ground truth for judging a reconstruction.

    Attributes:
        names: File names of the V photos.
        size: Width and height of every photo in pixels.
        focal_length: Focal length in pixels of a pinhole camera without distortion, whose principal point is the image
            centre.
        cam_from_world: (V, 3, 4) rigid transforms in metres; a camera looks along +z, with x right and y down.
    """

    names: tuple[str, ...]
    size: tuple[int, int]
    focal_length: float
    cam_from_world: Float64

    @property
    def centres(self) -> Float64:
        """(V, 3) camera centres in metres."""
        rotations, translations = self.cam_from_world[:, :, :3], self.cam_from_world[:, :, 3:]
        return -(rotations.transpose(0, 2, 1) @ translations)[:, :, 0]

    @property
    def calibration(self) -> Float64:
        """(3, 3) calibration matrix in pixels; the centre of the top-left pixel is (0.5, 0.5)."""
        width, height = self.size
        return np.array([[self.focal_length, 0, width / 2], [0, self.focal_length, height / 2], [0, 0, 1]])

    def save(self, path: Path) -> None:
        """Writes the scene as JSON."""
        write_json(path, asdict(self) | {"cam_from_world": self.cam_from_world.tolist()})

    @classmethod
    def load(cls, path: Path) -> Scene:
        """Reads a file that `save` wrote. Every number is restored exactly."""
        fields = read_json(path)
        names, (width, height) = tuple(fields["names"]), fields["size"]
        return cls(names, (width, height), fields["focal_length"], np.array(fields["cam_from_world"]))


@dataclass(frozen=True, eq=False)
class _Face:
    """A textured quad. It is visible only from the side on which its texture is not mirrored."""

    world_from_texel: Float64  # (3, 3), maps (u, v, 1) in texels of level 0 to a point in metres
    pyramid: tuple[Image, ...]  # (H / 2^k, W / 2^k, 3) for k = 0, 1, ...


class Layout(NamedTuple):
    """What a scene consists of, and where its cameras stand.

    Attributes:
        build: makes the faces from a generator of random numbers.
        place: returns (count, 3, 4) poses from a number of photos and a generator.
    """

    build: Callable[[np.random.Generator], list[_Face]]
    place: Callable[[int, np.random.Generator], Float64]


def render(
    folder: Path,
    *,
    photos: int = 24,
    size: tuple[int, int] = (1024, 768),
    seed: int = 0,
    layout: Layout | None = None,
    on_photo: Callable[[int], None] | None = None,
) -> Scene:
    """Photographs a scene.

    Args:
        folder: Folder for the JPEG files; made if missing.
        photos: Number of photos.
        size: Width and height of every photo in pixels.
        seed: Determines textures, cameras and sensor noise. The same seed gives the same files.
        layout: The scene to photograph. None means the square, with an arc of cameras in front of it.
        on_photo: Called after every photo with the number of photos written so far.

    Returns:
        The names of the photos and the cameras that took them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texture_rng, camera_rng, *noise_rngs = np.random.default_rng(seed).spawn(2 + photos)
    build, place = layout or SQUARE
    faces = build(texture_rng)
    scene = Scene(
        names=tuple(f"view_{index:03d}.jpg" for index in range(photos)),
        size=size,
        focal_length=_RELATIVE_FOCAL_LENGTH * size[0],
        cam_from_world=place(photos, camera_rng),
    )
    for count, (name, pose, rng) in enumerate(zip(scene.names, scene.cam_from_world, noise_rngs, strict=True), 1):
        _write_jpeg(folder / name, _expose(faces, scene.calibration @ pose, size, rng))
        if on_photo is not None:
            on_photo(count)
    return scene


def _place_cameras(count: int, rng: np.random.Generator) -> Float64:
    """Returns (count, 3, 4) poses on an arc in front of the square.

    Angles are evenly spaced, the rest varies randomly.
    """
    step = min(_LARGEST_STEP_DEGREES, _ARC_DEGREES / max(count - 1, 1))
    angles = np.radians(step * (np.arange(count) - (count - 1) / 2))
    distances, heights = rng.uniform(21, 25, count), rng.uniform(9, 12, count)
    return _look_at(_around(angles, distances, heights), _TARGET + rng.uniform(-0.7, 0.7, (count, 3)))


def _around(angles: Float64, distances: Float64, heights: Float64) -> Float64:
    """Returns (V, 3) places around the middle of the scene; an angle of 0 is in front of it."""
    return np.column_stack([distances * np.sin(angles), -distances * np.cos(angles), heights])


def _look_at(centres: Float64, targets: Float64) -> Float64:
    """Returns (V, 3, 4) poses of upright cameras at (V, 3) centres that look at (V, 3) targets."""
    forward = targets - centres
    right = np.cross(forward, [0, 0, 1])
    axes = np.stack([right, np.cross(forward, right), forward], axis=1)
    rotations = axes / np.linalg.norm(axes, axis=2, keepdims=True)
    return np.concatenate([rotations, -rotations @ centres[:, :, None]], axis=2)


def _build_square(rng: np.random.Generator) -> list[_Face]:
    """Builds the ground, z = 0, and the boxes on it. z points up."""
    return [_make_ground(rng), *_make_boxes(_BOXES, rng)]


def _make_boxes(boxes: Sequence[tuple[float, ...]], rng: np.random.Generator) -> list[_Face]:
    return [_make_face(quad, _WALL_TEXEL, rng) for box in boxes for quad in _box_quads(*box)]


def _make_ground(rng: np.random.Generator) -> _Face:
    east, south = np.array([_GROUND_SIZE, 0, 0]), np.array([0, -_GROUND_SIZE, 0])
    return _make_face((-(east + south) / 2, east, south), _GROUND_TEXEL, rng)


def _box_quads(x: float, y: float, width: float, depth: float, height: float, yaw: float) -> Iterator[_Quad]:
    """Yields the roof and the walls of a box, as seen from outside."""
    cos, sin = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    right, back = np.array([cos, sin, 0]) * width, np.array([-sin, cos, 0]) * depth
    corner = np.array([x, y, height]) - (right + back) / 2
    yield corner + back, right, -back
    for edge in (right, back, -right, -back):
        yield corner, edge, np.array([0, 0, -height])
        corner = corner + edge


def _make_face(quad: _Quad, texel: float, rng: np.random.Generator) -> _Face:
    """Covers a quad with its own texture, with texels of about the given size in metres."""
    corner, right, down = quad
    # The scale of every level must divide the size, or the levels would be shifted against each other.
    unit = 2 ** (_PYRAMID_LEVELS - 1)
    width, height = (unit * int(np.ceil(np.linalg.norm(edge) / texel / unit)) for edge in (right, down))
    normal = np.cross(down, right)
    sunlight = max(0.0, float(normal @ _TO_SUN / np.linalg.norm(normal)))
    pyramid = [make_texture(width, height, 0.6 + 0.5 * sunlight, rng)]
    for _ in range(_PYRAMID_LEVELS - 1):
        pyramid.append(shrink(pyramid[-1], 2))
    return _Face(np.column_stack([right / width, down / height, corner]), tuple(pyramid))


def _expose(faces: list[_Face], projection: Float64, size: tuple[int, int], rng: np.random.Generator) -> Image:
    """Takes a (height, width, 3) noisy photo of faces and sky through a (3, 4) projection from metres to pixels."""
    width, height = _SUPERSAMPLING * size[0], _SUPERSAMPLING * size[1]
    sky = np.linspace((215, 165, 125), (235, 225, 215), height).astype(np.uint8)
    canvas = np.repeat(sky[:, None], width, axis=1)
    inverse_depth = np.zeros((height, width), np.float32)
    for face in faces:
        _draw(face, np.diag([_SUPERSAMPLING, _SUPERSAMPLING, 1]) @ projection, canvas, inverse_depth)
    noise = _SENSOR_NOISE * rng.standard_normal((size[1], size[0], 3), dtype=np.float32)
    return np.clip(np.rint(shrink(canvas, _SUPERSAMPLING) + noise), 0, 255).astype(np.uint8)


def _draw(face: _Face, projection: Float64, canvas: Image, inverse_depth: NDArray[np.float32]) -> None:
    """Draws a face where it is nearer than the content of the (H, W, 3) canvas and the (H, W) depth buffer."""
    image_from_texel = projection @ np.vstack([face.world_from_texel, [0, 0, 1]])
    if np.linalg.det(image_from_texel) <= 0:  # seen from behind
        return
    # Depth is the third homogeneous coordinate, so the inverse maps (x, y, 1) to (u, v, 1) / depth.
    texel_from_image = np.linalg.inv(image_from_texel)
    height, width = face.pyramid[0].shape[:2]
    left, top, right, bottom = _bounds(image_from_texel, (width, height), canvas)
    x, y = np.arange(left, right) + 0.5, np.arange(top, bottom)[:, None] + 0.5
    u, v, w = ((a * x + (b * y + c)).astype(np.float32) for a, b, c in texel_from_image)
    nearest = inverse_depth[top:bottom, left:right]
    visible = (u >= 0) & (v >= 0) & (u <= width * w) & (v <= height * w) & (w > nearest)
    nearest[visible] = w[visible]

    # A pixel covers det / w^3 texels. The level where it covers one texel neither blurs nor aliases.
    covered = np.linalg.det(texel_from_image) / w[visible] ** 3
    level = np.full(visible.shape, _PYRAMID_LEVELS, np.uint8)
    level[visible] = np.clip(np.rint(np.log2(covered) / 2), 0, _PYRAMID_LEVELS - 1)
    for k, texture in enumerate(face.pyramid):
        level_from_image = np.diag([0.5**k, 0.5**k, 1]) @ texel_from_image @ _translation(left, top)
        _paint(canvas[top:bottom, left:right], level == k, texture, level_from_image)


def _paint(canvas: Image, mask: NDArray[np.bool_], texture: Image, texture_from_canvas: Float64) -> None:
    """Warps a texture by a (3, 3) homography onto the part of an (H, W, 3) canvas that an (H, W) mask selects."""
    if not mask.any():
        return
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    warp = _translation(-0.5, -0.5) @ texture_from_canvas @ _translation(left + 0.5, top + 0.5)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(texture, warp, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    window = slice(top, top + height), slice(left, left + width)
    np.copyto(canvas[window], warped, where=mask[window][..., None])


def _bounds(image_from_texel: Float64, texture_size: tuple[int, int], canvas: Image) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of the part of the canvas that can show a texture."""
    u, v = texture_size
    x, y, depth = image_from_texel @ np.array([[0, u, u, 0], [0, 0, v, v], [1, 1, 1, 1]])
    height, width = canvas.shape[:2]
    if depth.min() <= 0:  # corners behind the camera have no image
        return 0, 0, width, height
    left, right = np.clip([(x / depth).min(), (x / depth).max() + 1], 0, width).astype(int).tolist()
    top, bottom = np.clip([(y / depth).min(), (y / depth).max() + 1], 0, height).astype(int).tolist()
    return left, top, right, bottom


def _translation(x: float, y: float) -> Float64:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])


def _write_jpeg(path: Path, photo: Image) -> None:
    _, data = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    with replacing(path) as beside:
        beside.write_bytes(data.tobytes())


SQUARE = Layout(_build_square, _place_cameras)
