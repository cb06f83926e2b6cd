"""A COLMAP model: what is in it, and how it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pycolmap
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.sights import NO_POINT, Sight


def models_in(place: Path) -> list[Path]:
    """Folders of the models in a workspace of ours, its largest first, or of COLMAP's; or a model's own folder.

    Raises:
        HardnetSfmError: there is none.
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
        colmap: the `pycolmap.Reconstruction`, for all that is not here.
    """

    colmap: pycolmap.Reconstruction

    @classmethod
    def read(cls, folder: Path) -> Model:
        """Reads a binary or text model.

        Raises:
            HardnetSfmError: there is none in the folder, or it is damaged.
        """
        if not _holds_model(folder):
            raise HardnetSfmError(f"no COLMAP model in {folder}", "It would hold a cameras.bin or cameras.txt.")
        try:
            return cls(pycolmap.Reconstruction(folder))
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            raise HardnetSfmError(
                f"{folder}: the model is damaged: {error}", "Delete the folder and run `hardnet-sfm map` again."
            ) from error

    def write(self, folder: Path, form: Literal["binary", "text", "ply"] = "binary") -> None:
        """Writes the model, or with "ply" its points alone as points3D.ply, into a folder (made if missing)."""
        folder.mkdir(parents=True, exist_ok=True)
        if form == "binary":
            self.colmap.write_binary(folder)
        elif form == "text":
            self.colmap.write_text(folder)
        else:
            self.colmap.export_PLY(folder / "points3D.ply")

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
        """Observations a point."""
        return float(self.colmap.compute_mean_track_length())

    @property
    def mean_reprojection_error(self) -> float:
        """Pixels, over all observations."""
        return float(self.colmap.compute_mean_reprojection_error())

    def camera_models(self) -> dict[str, int]:
        """Number of cameras of each camera model, among those that took registered photos."""
        used = {self.colmap.image(number).camera_id for number in self.colmap.reg_image_ids()}
        return dict(sorted(Counter(self.colmap.camera(number).model_name for number in used).items()))

    def keypoints(self, name: str) -> NDArray[np.float64]:
        """(N, 2) all keypoints of a registered photo, COLMAP's pixels, whether or not they see a point."""
        image = self.colmap.find_image_with_name(name)
        return np.array([keypoint.xy for keypoint in image.points2D], np.float64).reshape(-1, 2)

    def fields_of_view(self) -> NDArray[np.float64]:
        """(V,) angle that each registered photo sees from top to bottom, radians.

        Without lens distortion, and as if the principal point were in the middle, as viewers draw cameras.
        """
        images = (self.colmap.image(number) for number in sorted(self.colmap.reg_image_ids()))
        cameras = (self.colmap.camera(image.camera_id) for image in images)
        return np.array([2 * np.arctan(camera.height / (2 * camera.focal_length_y)) for camera in cameras])

    def cam_from_world(self) -> dict[str, NDArray[np.float64]]:
        """(3, 4) pose of each registered photo by its name: world to camera, x right, y down, z forward."""
        images = (self.colmap.image(number) for number in self.colmap.reg_image_ids())
        return {image.name: np.asarray(image.cam_from_world().matrix()) for image in images}

    def sights(self) -> tuple[dict[str, Sight], NDArray[np.float64]]:
        """What each registered photo sees of the model, by its name, and (P, 3) the points of the model."""
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
        """The figures people look at first, fit for JSON."""
        return {
            "photos": len(self.names),
            "points": self.points,
            "observations": self.observations,
            "mean_track_length": round(self.mean_track_length, 3),
            "mean_reprojection_error": round(self.mean_reprojection_error, 4),
        }
