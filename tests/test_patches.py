"""Patches against kornia's, and exactly where the right answer can be worked out by hand.

kornia 0.9 has our convention: pixel centres at whole numbers, the columns of a local affine frame are the images of the
patch's x and y axes, y points down. Its frame spans the patch from -1 to 1, ours is per sigma, so that A = frame *
measurement_size / 2. (Before 0.9 kornia stretched positions by W / (W - 1).)
"""

from __future__ import annotations

from pathlib import Path

import cv2
import kornia.feature as kornia
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.patches import extract_patches, pyramid, resize_patches
from hardnet_sfm.scene import Scene

Grey = NDArray[np.uint8]
Float32 = NDArray[np.float32]


@pytest.fixture(scope="module")
def photo(small_scene: tuple[Path, Scene]) -> Grey:
    folder, scene = small_scene
    return read_photo(folder / scene.names[0]).grey


def similarity(scale: float, degrees: float = 0) -> Float32:
    """(1, 2, 2) frame that turns +x towards +y, which is down."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[[cos, -sin], [sin, cos]]], np.float32) * np.float32(scale)


def random_frames(count: int, seed: int, *, affine: bool) -> tuple[Float32, Float32]:
    """Positions on and around a photo of 480x360 and frames of 0.8 to 20 pixels a sigma, up to 2 to 1 if affine."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.uniform(np.log(0.8), np.log(20), count))
    turn, tilt_at = (np.concatenate([similarity(1, a) for a in rng.uniform(0, 360, count)]) for _ in range(2))
    tilt = np.exp(rng.uniform(0, np.log(2) / 2, count)) if affine else np.ones(count)
    stretch = np.stack([tilt, 1 / tilt], 1)[:, :, None] * np.eye(2)
    frames = scale[:, None, None] * tilt_at @ stretch @ turn
    return rng.uniform((-5, -5), (485, 365), (count, 2)).astype(np.float32), frames.astype(np.float32)


def kornia_patches(grey: Grey, xy: Float32, frames: Float32, size: int, measurement_size: float) -> Float32:
    laf = np.concatenate([frames * np.float32(measurement_size / 2), xy[:, :, None]], 2)
    image = torch.from_numpy(grey).float()[None, None]
    return kornia.extract_patches_from_pyramid(image, torch.from_numpy(laf)[None], size)[0, :, 0].numpy()


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("measurement_size", [12.0, 15.0])
def test_agrees_with_kornia(photo: Grey, measurement_size: float, affine: bool) -> None:
    """kornia's pyramid is float32, ours uint8: each rounding (patch, blur, halving) costs a quarter of a grey level."""
    xy, frames = random_frames(1000, seed=1, affine=affine)
    ours = extract_patches(photo, xy, frames, 32, measurement_size)
    difference = np.abs(ours - kornia_patches(photo, xy, frames, 32, measurement_size))
    pitch = np.sqrt(np.linalg.det(frames)) * measurement_size / 32  # photo pixels a patch pixel
    levels = np.floor(np.log2(pitch)).clip(0)
    assert np.bincount(levels.astype(int)).min() > 20, "every level of the pyramid takes part"
    # Measured: 0.28 and at most 1.6 with OpenCV 5; 0.32 and 3.5 with OpenCV 4.11, whose remap steps by 1/32 pixel.
    assert difference.mean() < 0.4
    assert difference.max() < 4


@pytest.mark.parametrize(("height", "width"), [(301, 403), (97, 479), (40, 50), (20, 31)])
def test_agrees_with_kornia_on_photos_of_odd_and_small_sizes(photo: Grey, height: int, width: int) -> None:
    """Halving an odd size loses half a pixel, which must not move the patches."""
    cropped = np.ascontiguousarray(photo[-height:, -width:])
    xy, frames = random_frames(300, seed=2, affine=True)
    xy = xy / np.float32([480, 360]) * np.float32([width, height])
    difference = np.abs(extract_patches(cropped, xy, frames, 32, 12) - kornia_patches(cropped, xy, frames, 32, 12))
    assert difference.mean() < 0.4


def test_one_patch_pixel_per_photo_pixel_is_a_copy(photo: Grey) -> None:
    # 32 pixels across: the patch's centre lies between pixels 15 and 16 of it.
    xy = np.array([[100.5, 200.5], [15.5, 15.5], [463.5, 343.5]], np.float32)
    patches = extract_patches(photo, xy, np.repeat(similarity(32 / 12), 3, axis=0), 32, 12)
    np.testing.assert_array_equal(patches[0], photo[185:217, 85:117])
    np.testing.assert_array_equal(patches[1], photo[:32, :32])
    np.testing.assert_array_equal(patches[2], photo[-32:, -32:])


def test_an_odd_patch_is_centred_on_its_pixel(photo: Grey) -> None:
    patch = extract_patches(photo, np.array([[100, 200]], np.float32), similarity(1), 15, 15)
    np.testing.assert_array_equal(patch[0], photo[193:208, 93:108])


@pytest.mark.parametrize(
    ("degrees", "x_axis", "y_axis"),
    [(0, (1, 0), (0, 1)), (90, (0, 1), (-1, 0)), (180, (-1, 0), (0, -1)), (270, (0, -1), (1, 0))],
)
def test_angles_turn_x_towards_y_which_is_down(
    photo: Grey, degrees: float, x_axis: tuple[int, int], y_axis: tuple[int, int]
) -> None:
    """At 90 degrees the patch's x axis points down in the photo, and its y axis to the left."""
    x, y = 100.5, 200.5
    one = np.ones(1, np.float32)
    keypoints = Keypoints(np.array([[x, y]], np.float32), one * 32 / 12, one * degrees, one)
    patch = extract_patches(photo, keypoints.xy, keypoints.frames(), 32, 12)[0]
    steps = np.arange(32) - 15.5
    columns = (x + steps * x_axis[0] + steps[:, None] * y_axis[0]).astype(int)
    rows = (y + steps * x_axis[1] + steps[:, None] * y_axis[1]).astype(int)
    # The cosine of 90 degrees is not quite 0 in float32.
    assert np.abs(patch.astype(int) - photo[rows, columns]).max() <= 1


def test_a_shear_maps_the_patchs_axes_to_the_frames_columns() -> None:
    """One patch pixel along y moves by the second column, (2, 1): two pixels right, one down."""
    rows, columns = np.indices((60, 60))
    grey = (3 * columns + rows).astype(np.uint8)  # at most 236
    frame = np.array([[[1, 2], [0, 1]]], np.float32)
    patch = extract_patches(grey, np.array([[30, 30]], np.float32), frame, 9, 9)[0]
    v, u = np.indices((9, 9)) - 4
    np.testing.assert_array_equal(patch, 3 * (30 + u + 2 * v) + 30 + v)


def test_a_ramp_is_read_where_the_frame_says() -> None:
    """Pins the half pixel: patch pixel k of n lies at (2 k + 1) / n - 1 of half the patch's side."""
    ramp = np.tile(np.arange(200, dtype=np.uint8), (160, 1))
    xy, frames = np.array([[100, 80], [57.25, 33]], np.float32), np.repeat(similarity(0.5), 2, axis=0)
    patches = extract_patches(ramp, xy, frames, 16, 16)  # 16 sigmas of half a pixel: 8 pixels across
    steps = ((2 * np.arange(16) + 1) / 16 - 1) * 4
    for patch, (x, _) in zip(patches, xy, strict=True):
        assert np.abs(patch - (x + steps)).max() <= 0.5
    transposed = extract_patches(np.ascontiguousarray(ramp.T), xy[:, ::-1].copy(), frames, 16, 16)
    np.testing.assert_array_equal(transposed, patches.transpose(0, 2, 1))


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(256, 256), (257, 255)])
def test_a_ramp_keeps_its_place_on_coarser_levels(level: int, height: int, width: int) -> None:
    """Blur and halving leave a linear ramp as it is, but for rounding to uint8.

    Rounding errs to one side where means end in a half. A rising and a falling ramp tell that from a shift: the
    smallest mistake, half a pixel of the photo, would be half a grey level in their difference.
    """
    rising = np.tile(np.arange(width, dtype=np.uint8), (height, 1))
    x = np.random.default_rng(5).uniform(120, 126, 40)
    xy, frames = np.column_stack([x, x]).astype(np.float32), np.repeat(similarity(2.0**level), 40, axis=0)
    up, down = (extract_patches(ramp, xy, frames, 8, 8).astype(float) for ramp in (rising, 255 - rising))
    expected = (x[:, None] + ((2 * np.arange(8) + 1) / 8 - 1) * 4 * 2**level)[:, None]
    assert np.abs(up - expected).max() <= 1.5
    assert np.mean((up - down + 255) / 2 - expected) == pytest.approx(0, abs=0.1)


def test_fine_texture_is_averaged_in_a_coarse_patch() -> None:
    checkerboard = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    coarse = extract_patches(checkerboard, np.array([[128, 128]], np.float32), similarity(4 * 32 / 12), 32, 12)[0]
    assert np.abs(coarse.astype(int) - 127).max() <= 2
    fine = extract_patches(checkerboard, np.array([[127.5, 127.5]], np.float32), similarity(32 / 12), 32, 12)[0]
    np.testing.assert_array_equal(fine, checkerboard[112:144, 112:144])


@pytest.mark.parametrize(("pitch", "grey"), [(1.0, False), (1.9, False), (2.01, True), (3.9, True)])
def test_the_level_has_the_largest_pixels_not_larger_than_the_patchs(pitch: float, grey: bool) -> None:
    """A checkerboard of 1 px is sharp on level 0 and grey on level 1."""
    checkerboard = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    patch = extract_patches(checkerboard, np.array([[127.5, 127.5]], np.float32), similarity(pitch), 32, 32)[0]
    assert (patch.std() < 2) == grey


def test_the_border_is_repeated(photo: Grey) -> None:
    xy = np.array([[-0.5, -0.5], [479.5, 359.5]], np.float32)
    patches = extract_patches(photo, xy, np.repeat(similarity(32 / 12), 2, axis=0), 32, 12)
    np.testing.assert_array_equal(patches[0], np.pad(photo[:16, :16], ((16, 0), (16, 0)), mode="edge"))
    np.testing.assert_array_equal(patches[1], np.pad(photo[-16:, -16:], ((0, 16), (0, 16)), mode="edge"))
    far = extract_patches(photo, np.array([[-5000, 9000]], np.float32), similarity(1), 32, 12)[0]
    np.testing.assert_array_equal(far, photo[-1, 0])


def test_many_patches_at_once_are_those_one_by_one(photo: Grey) -> None:
    """3000 patches of 32 rows are three times what cv2.remap takes at once."""
    xy, frames = random_frames(3000, seed=3, affine=True)
    together = extract_patches(photo, xy, frames, 32, 12)
    for row in [*range(0, 3000, 37), 1022, 1023, 1024, 2045, 2046, 2047, 2999]:
        alone = extract_patches(photo, xy[row : row + 1], frames[row : row + 1], 32, 12)
        np.testing.assert_array_equal(together[row], alone[0])


def test_no_keypoints_give_no_patches(photo: Grey) -> None:
    nothing = Keypoints.empty()
    assert extract_patches(photo, nothing.xy, nothing.frames(), 32, 12).shape == (0, 32, 32)


def test_the_photo_stays_as_it_is(photo: Grey) -> None:
    before = photo.copy()
    extract_patches(photo, *random_frames(50, seed=4, affine=True), 32, 12)
    np.testing.assert_array_equal(photo, before)


def test_the_pyramid_halves_until_the_shorter_side_would_be_below_32() -> None:
    shapes = [level.shape for level in pyramid(np.zeros((360, 481), np.uint8))]
    assert shapes == [(360, 481), (180, 240), (90, 120), (45, 60)]
    assert [level.shape for level in pyramid(np.zeros((64, 64), np.uint8))] == [(64, 64), (32, 32)]
    assert [level.shape for level in pyramid(np.zeros((20, 500), np.uint8))] == [(20, 500)]


@pytest.mark.parametrize("size", [16, 32, 64])
def test_patches_shrink_by_pixel_area_each_by_itself(size: int) -> None:
    """Against shares of 65 pixels in each new one, and never with a neighbour in the stack."""
    patches = np.random.default_rng(0).integers(0, 256, (300, 65, 65), np.uint8)
    edges, pixels = np.arange(size + 1) * 65 / size, np.arange(65)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = shared.clip(0) * size / 65
    found = resize_patches(patches, size)
    assert np.abs(weights @ patches @ weights.T - found).max() < 0.6


def test_patches_grow_each_by_itself_and_stay_as_they_are() -> None:
    patches = np.random.default_rng(0).integers(0, 256, (9, 32, 32), np.uint8)
    for patch, grown in zip(patches, resize_patches(patches, 64), strict=True):
        np.testing.assert_array_equal(grown, cv2.resize(patch, (64, 64), interpolation=cv2.INTER_LINEAR))
    assert resize_patches(patches, 32) is patches
    assert resize_patches(patches[:0], 16).shape == (0, 16, 16)
