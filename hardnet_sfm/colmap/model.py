"""A COLMAP model: reads, writes and summarizes it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pycolmap
from numpy.typing import NDArray

from hardnet_sfm.colmap.model_files import check_binary_model, find_damage, full_names
from hardnet_sfm.errors import HardnetSfmError, file_error
from hardnet_sfm.sights import NO_POINT, Sight

_REMEDY = (
    "If `hardnet-sfm map` made this model, run it again. Otherwise get the file again from where the model came from."
)


def models_in(place: Path) -> list[Path]:
    """Lists the folders of models.

    The place is our workspace, whose largest model comes first, a workspace of COLMAP, or a model's own folder.

    Raises:
        HardnetSfmError: there is no model.
    """
    for folder in (place / "sparse", place):
        numbered = [inner for inner in folder.glob("*") if inner.name.isdecimal() and _holds_model(inner)]
        if numbered:
            return sorted(numbered, key=lambda inner: int(inner.name))
        if _holds_model(folder):
            return [folder]
    if not place.is_dir():
        raise HardnetSfmError(f"no such folder: {place}", "Run `hardnet-sfm reconstruct IMAGES` first.")
    raise HardnetSfmError(
        f"no COLMAP model in {place}",
        "Run `hardnet-sfm reconstruct IMAGES` first, or give a folder with a cameras.bin or cameras.txt.",
    )


def _holds_model(folder: Path) -> bool:
    return any((folder / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt"))


@dataclass(frozen=True)
class Model:
    """A sparse reconstruction.

    Attributes:
        colmap: the `pycolmap.Reconstruction`, for everything that this class does not provide.
    """

    colmap: pycolmap.Reconstruction

    @classmethod
    def read(cls, folder: Path) -> Model:
        """Reads a binary or text model.

        Raises:
            HardnetSfmError: the folder has no model, or a file of it is missing, damaged or may not be read.
        """
        if not _holds_model(folder):
            raise HardnetSfmError(f"no COLMAP model in {folder}", "A model has a cameras.bin or cameras.txt.")
        try:
            damage = find_damage(folder)
            if damage:  # COLMAP reads some incomplete files without an error
                raise HardnetSfmError(f"{folder}: the model is incomplete: {damage}", _REMEDY)
            check_binary_model(folder)
            colmap = pycolmap.Reconstruction(folder)
            for number, name in full_names(folder).items():
                colmap.image(number).name = name
        except OSError as error:
            raise file_error(error.filename or folder, error, "a file of a COLMAP model", _REMEDY) from error
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            raise file_error(folder, error, "a COLMAP model", _REMEDY) from error
        return cls(colmap)

    def write(self, folder: Path, form: Literal["binary", "text", "ply"] = "binary") -> None:
        """Writes the model into a folder (made if missing). The form "ply" writes only its points, as points3D.ply.

        The files are written into a hidden folder next to it, read again and then renamed. COLMAP does not notice that
        a disk is full, and would leave truncated files.

        Raises:
            HardnetSfmError: the files are incomplete. Existing files are kept.
        """
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            if form == "binary":
                self.colmap.write_binary(beside)
            elif form == "text":
                self.colmap.write_text(beside)
            else:
                self.colmap.export_PLY(beside / "points3D.ply")
            if not (self._has_all_points(beside / "points3D.ply") if form == "ply" else self._is_equal_to(beside)):
                raise HardnetSfmError(
                    f"cannot write the model to {folder}: its files are incomplete",
                    "Make room on the disk, then run the same command again.",
                )
            for path in sorted(beside.iterdir()):
                path.replace(folder / path.name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _is_equal_to(self, folder: Path) -> bool:
        """Whether a folder has a model with as many cameras, registered photos, points and observations."""
        try:
            written = Model.read(folder).colmap
        except HardnetSfmError:
            return False
        return all(
            count(written) == count(self.colmap)
            for count in (
                pycolmap.Reconstruction.num_cameras,
                pycolmap.Reconstruction.num_reg_images,  # it writes no others
                pycolmap.Reconstruction.num_points3D,
                pycolmap.Reconstruction.compute_num_observations,
            )
        )

    def _has_all_points(self, path: Path) -> bool:
        """Whether a binary PLY file has its header and 15 bytes for each point: three float32, three uint8."""
        data = path.read_bytes()
        return len(data) == data.find(b"end_header\n") + len(b"end_header\n") + 15 * self.points

    @property
    def names(self) -> list[str]:
        """Names of the registered photos, in the order of their numbers."""
        return [self.colmap.image(number).name for number in sorted(self.colmap.reg_image_ids())]

    @property
    def points(self) -> int:
        """Number of 3D points."""
        return int(self.colmap.num_points3D())

    @property
    def observations(self) -> int:
        """Number of observations of all points together."""
        return int(self.colmap.compute_num_observations())

    @property
    def mean_track_length(self) -> float:
        """Mean number of observations of a point."""
        return float(self.colmap.compute_mean_track_length())

    @property
    def mean_reprojection_error(self) -> float:
        """Mean reprojection error of all observations, pixels."""
        return float(self.colmap.compute_mean_reprojection_error())

    def camera_models(self) -> dict[str, int]:
        """Number of cameras of each camera model, among those that took registered photos."""
        used = {self.colmap.image(number).camera_id for number in self.colmap.reg_image_ids()}
        return dict(sorted(Counter(self.colmap.camera(number).model_name for number in used).items()))

    def keypoints(self, name: str) -> NDArray[np.float64]:
        """Returns the (N, 2) keypoints of a registered photo, COLMAP's pixels.

        They include keypoints that observe no point.
        """
        image = self.colmap.find_image_with_name(name)
        return np.array([keypoint.xy for keypoint in image.points2D], np.float64).reshape(-1, 2)

    def fields_of_view(self) -> NDArray[np.float64]:
        """Returns the (V,) vertical angles of view of the registered photos, radians.

        It ignores lens distortion and assumes a principal point in the middle, as viewers do when they draw cameras.
        """
        images = (self.colmap.image(number) for number in sorted(self.colmap.reg_image_ids()))
        cameras = (self.colmap.camera(image.camera_id) for image in images)
        return np.array([2 * np.arctan(camera.height / (2 * camera.focal_length_y)) for camera in cameras])

    def cam_from_world(self) -> dict[str, NDArray[np.float64]]:
        """Returns the (3, 4) pose of each registered photo by its name: world to camera, x right, y down, z forward."""
        images = (self.colmap.image(number) for number in self.colmap.reg_image_ids())
        return {image.name: np.asarray(image.cam_from_world().matrix()) for image in images}

    def sights(self) -> tuple[dict[str, Sight], NDArray[np.float64]]:
        """Returns the sight of each registered photo by its name, and the (P, 3) points of the model."""
        points = self.colmap.points3D
        row_of = {number: row for row, number in enumerate(points)}
        xyz = np.array([point.xyz for point in points.values()], np.float64).reshape(-1, 3)
        images = (self.colmap.image(number) for number in sorted(self.colmap.reg_image_ids()))
        return {image.name: self._sight(image, row_of) for image in images}, xyz

    def _sight(self, image: pycolmap.Image, row_of: Mapping[int, int]) -> Sight:
        camera, keypoints = self.colmap.camera(image.camera_id), image.points2D
        xy = np.array([keypoint.xy for keypoint in keypoints], np.float64).reshape(-1, 2)
        points = [row_of.get(keypoint.point3D_id, NO_POINT) for keypoint in keypoints]
        return Sight(
            np.asarray(image.cam_from_world().matrix()),
            np.asarray(camera.cam_from_img(xy), np.float32).reshape(-1, 2),
            np.array(points, np.int64),
            max(camera.width, camera.height) / camera.mean_focal_length(),
        )

    def facts(self) -> dict[str, int | float]:
        """Returns the main figures of the model, for JSON."""
        return {
            "photos": len(self.names),
            "points": self.points,
            "observations": self.observations,
            "mean_track_length": round(self.mean_track_length, 3),
            "mean_reprojection_error": round(self.mean_reprojection_error, 4),
        }
