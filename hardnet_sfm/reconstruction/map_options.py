"""Options of the stage `map`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from hardnet_sfm.errors import UsageError, check_choice

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does without
    from hardnet_sfm.colmap.cameras import CameraSetup

Mapper = Literal["auto", "incremental", "global"]
Mode = Literal["auto", "single", "per-folder", "per-image"]
FIRST_CAMERA_MODEL = "SIMPLE_RADIAL"


@dataclass(frozen=True)
class MapOptions:
    """Cameras, geometric verification and mapping."""

    mapper: Mapper = "auto"
    """incremental registers photo by photo: robust, but it needs two photos with parallax to start from. global places
    all photos at once: faster on many photos of known focal length. auto runs the incremental mapper, tries the global
    one too if most of the connected photos are left out, and keeps the better model. global tries the incremental one
    in the same case."""
    camera_mode: Mode = "auto"
    """Which photos share a camera. auto: photos of equal size and EXIF data, after a trial that maps a few of them.
    single: all photos. per-folder: the photos of each folder. per-image: each photo has its own."""
    camera_model: str = "auto"
    """COLMAP's name of the camera model. auto starts with SIMPLE_RADIAL and changes cameras of eight photos or more to
    RADIAL, OPENCV or OPENCV_FISHEYE at the end, if their photos ask for it. State a model to keep it."""
    camera_params: str | None = None
    """Known parameters of every camera in COLMAP's order and pixels, such as "f,cx,cy,k". Default: from EXIF."""
    fix_intrinsics: bool = False
    """Keep the cameras as given by --camera-params or EXIF."""
    refine_principal_point: bool = True
    """Refine the principal point of cameras that took eight photos or more, at the end, where the photos determine it,
    also one that --camera-params states; not with --fix-intrinsics."""
    max_error: float = 4.0
    """Largest error of an inlier of a verified pair, pixels of the photo as keypoints were found in it, shrunk if it is
    large. Higher for photos of strong distortion."""
    min_inliers: int = 15
    """Fewest inliers of a verified pair."""
    guided_matching: bool = False
    """Look for more matches of verified pairs near the epipolar lines: one per cent more, for two seconds a pair of
    12000 keypoints each."""
    min_model_size: int = 3
    """Smaller models are dropped, but for the only one, photos."""
    retry: bool = True
    """Merge smaller models into the largest one where verified matches join them, and try photos that were left out
    again; `reconstruct` also matches these with more photos where the index proposed pairs. A step that does not make
    the largest model larger changes nothing."""
    seed: int = 0
    """Of everything that is drawn by chance in verification and mapping."""

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        check_choice("mapper", self.mapper, Mapper)
        check_choice("camera-mode", self.camera_mode, Mode)
        self.camera_setup().check()
        for name, value, least in (
            ("max-error", self.max_error, 0.1),
            ("min-inliers", self.min_inliers, 8),
            ("min-model-size", self.min_model_size, 2),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise UsageError(f"--{name} must be at least {least}")

    def camera_setup(self) -> CameraSetup:
        """What is asked of the cameras, in COLMAP's terms."""
        from hardnet_sfm.colmap.cameras import CameraSetup

        try:
            params = tuple(float(part) for part in (self.camera_params or "").replace(",", " ").split())
        except ValueError as error:
            raise UsageError(
                f"--camera-params: not numbers: {self.camera_params}",
                "They are numbers with commas between them, as 1840,1840,768,512.",
            ) from error
        return CameraSetup(self.camera_mode, self.first_camera_model(), params)

    def first_camera_model(self) -> str:
        """The camera model that mapping starts with."""
        return FIRST_CAMERA_MODEL if self.camera_model == "auto" else self.camera_model

    def grow_distortion(self) -> bool:
        """Whether the user left the camera model open."""
        return self.camera_model == "auto" and self.camera_params is None

    def of_database(self) -> dict[str, Any]:
        """The options that decide what is in the database, fit for JSON."""
        decided = {**asdict(self), "camera_model": self.first_camera_model()}
        return {name: value for name, value in decided.items() if name not in self.of_mapper()}

    def of_mapper(self) -> dict[str, Any]:
        """The options that decide what the mapper makes of a database, fit for JSON."""
        names = ("mapper", "fix_intrinsics", "refine_principal_point", "min_model_size", "retry")
        return {name: getattr(self, name) for name in names} | {"grow_distortion": self.grow_distortion()}
