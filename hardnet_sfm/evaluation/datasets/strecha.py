"""Reads scenes with surveyed cameras in the layout of Strecha et al. (CVPR 2008): images/ and gt_dense_cameras/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.photo_files import list_photos, read_photo


@dataclass(frozen=True)
class StrechaScene:
    """Photos with surveyed cameras.

    Attributes:
        images: folder of the photos.
        calibration: (3, 3) calibration matrix for the photos at their present size. The centre of the top-left pixel is
            at (0, 0).
        cam_from_world: (3, 4) pose of each camera by the photo's name, in metres.
    """

    images: Path
    calibration: NDArray[np.float64]
    cam_from_world: dict[str, NDArray[np.float64]]

    def colmap_pinhole(self) -> tuple[float, ...]:
        """Returns the parameters of COLMAP's PINHOLE model, which puts pixel centres half a pixel farther."""
        k = self.calibration
        return (k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5)


def read_strecha(folder: Path) -> StrechaScene:
    """Reads a scene. The calibration is scaled if the photos are smaller than the surveyed photos.

    Raises:
        HardnetSfmError: photos or camera files are missing or damaged, or the cameras differ in calibration.
    """
    images = folder / "images"
    names = list_photos(images)
    cameras = {name: _read_camera(folder / "gt_dense_cameras" / f"{name}.camera") for name in names}
    calibrations = np.array([calibration for calibration, _, _ in cameras.values()])
    if not np.allclose(calibrations, calibrations[0]):
        raise HardnetSfmError(
            f"{folder}: photos with different calibrations are not supported",
            "Take one scene of the data set at a time.",
        )
    surveyed_width = cameras[names[0]][2]
    factor = read_photo(images / names[0]).size[0] / surveyed_width
    # The scaling keeps the corner of the photo fixed, which is at (-1/2, -1/2).
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    calibration = np.linalg.inv(shift) @ np.diag([factor, factor, 1]) @ shift @ calibrations[0]
    return StrechaScene(images, calibration, {name: pose for name, (_, pose, _) in cameras.items()})


def _read_camera(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Reads the calibration, the (3, 4) world-to-camera pose and the width of the surveyed photo."""
    try:
        numbers = np.array(path.read_text(encoding="ascii").split(), np.float64)
    except (OSError, ValueError) as error:
        raise HardnetSfmError(
            f"{path}: missing, or not a .camera file",
            "A scene has images/NAME and gt_dense_cameras/NAME.camera for each photo.",
        ) from error
    if len(numbers) != 26:
        raise HardnetSfmError(
            f"{path}: {len(numbers)} numbers, but a .camera file has 26",
            "Take the file from the data set again: it has been cut short or changed.",
        )
    world_from_cam, position = numbers[12:21].reshape(3, 3), numbers[21:24]
    pose = np.column_stack([world_from_cam.T, -world_from_cam.T @ position])
    return numbers[:9].reshape(3, 3), pose, int(numbers[24])
