"""Options of the stage `map`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from hardnet_sfm.errors import UsageError, check_choice, check_least

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does not need it
    from hardnet_sfm.colmap.cameras import CameraSetup

Mapper = Literal["auto", "incremental", "global"]
Mode = Literal["auto", "single", "per-folder", "per-image"]
FIRST_CAMERA_MODEL = "SIMPLE_RADIAL"


@dataclass(frozen=True)
class MapOptions:
    """Cameras, geometric verification and mapping."""

    mapper: Mapper = "auto"
    """incremental registers photo by photo: robust, but it needs two photos with parallax to start from. global places
    all photos at once: faster on many photos of known focal length. auto runs the incremental mapper. It also tries the
    global one if the incremental one finds no pair to start from, or leaves out most of the connected photos. It keeps
    the better model. If global leaves out most of them, it tries the incremental one, too."""
    camera_mode: Mode = "auto"
    """Which photos share a camera. auto: photos of equal size and EXIF data may share one, and a trial that maps a few
    of them decides. single: all photos. per-folder: the photos of each folder. per-image: none, each photo has its own
    camera."""
    camera_model: str = "auto"
    """Camera model, by its COLMAP name. auto starts with SIMPLE_RADIAL. At the end it changes cameras of eight photos
    or more to RADIAL, OPENCV or OPENCV_FISHEYE, if their photos ask for it. Name a model to keep it."""
    camera_params: str | None = None
    """Known parameters of every camera in COLMAP's order and in pixels, such as "f,cx,cy,k". Default: from EXIF."""
    fix_intrinsics: bool = False
    """Keep the cameras as --camera-params or EXIF gives them, instead of refining them."""
    refine_principal_point: bool = True
    """At the end, refine the principal point of cameras of eight photos or more, if the photos determine it. This also
    changes a principal point from --camera-params. It has no effect with --fix-intrinsics."""
    max_error: float = 4.0
    """Largest error of an inlier of a verified pair, in pixels of the photo after --max-image-size. Raise it for photos
    with strong distortion."""
    min_inliers: int = 15
    """Reject pairs with fewer inliers than this."""
    guided_matching: bool = False
    """Look for more matches of verified pairs near their epipolar lines. It finds one per cent more and takes two
    seconds for a pair of photos with 12000 keypoints each."""
    min_model_size: int = 3
    """Drop models with fewer photos than this, unless it is the only model."""
    retry: bool = True
    """Merge smaller models into the largest one if verified matches connect them, and try photos that were left out
    again. If retrieval proposed the pairs, `reconstruct` also matches these photos with more photos. A step that does
    not make the largest model larger changes nothing."""
    seed: int = 0
    """Random seed for verification and mapping."""

    def check(self) -> None:
        """Raises UsageError if a value makes no sense."""
        check_choice("mapper", self.mapper, Mapper)
        check_choice("camera-mode", self.camera_mode, Mode)
        self.camera_setup().check()
        check_least(self, max_error=0.1, min_inliers=8, min_model_size=2, seed=0)

    def camera_setup(self) -> CameraSetup:
        """Returns the camera options in COLMAP's terms."""
        from hardnet_sfm.colmap.cameras import CameraSetup

        try:
            params = tuple(float(part) for part in (self.camera_params or "").replace(",", " ").split())
        except ValueError as error:
            raise UsageError(
                f"--camera-params: not numbers: {self.camera_params}",
                "Write numbers with commas between them, such as 1840,1840,768,512.",
            ) from error
        return CameraSetup(self.camera_mode, self.first_camera_model(), params)

    def first_camera_model(self) -> str:
        """Returns the camera model that mapping starts with."""
        return FIRST_CAMERA_MODEL if self.camera_model == "auto" else self.camera_model

    def grow_distortion(self) -> bool:
        """Says whether distortion models may grow: the user chose neither a camera model nor its parameters."""
        return self.camera_model == "auto" and self.camera_params is None

    def of_database(self) -> dict[str, Any]:
        """Returns the options that the content of the database depends on, for JSON."""
        decided = {**asdict(self), "camera_model": self.first_camera_model()}
        return {name: value for name, value in decided.items() if name not in self.of_mapper()}

    def of_cameras(self) -> dict[str, Any]:
        """Returns the options that the cameras in the database depend on, for JSON."""
        setup = self.camera_setup()
        return {"mode": setup.mode, "model": setup.model, "params": setup.params}

    def of_verification(self) -> dict[str, Any]:
        """Returns the options that the verification of a pair depends on, for JSON."""
        names = ("max_error", "min_inliers", "guided_matching", "seed")
        return {name: getattr(self, name) for name in names}

    def of_mapper(self) -> dict[str, Any]:
        """Returns the options that the mapper's result depends on, for JSON."""
        names = ("mapper", "fix_intrinsics", "refine_principal_point", "min_model_size", "retry")
        return {name: getattr(self, name) for name in names} | {"grow_distortion": self.grow_distortion()}
