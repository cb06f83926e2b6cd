"""The command `demo` renders a scene with known cameras, reconstructs it and compares the cameras with the truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hardnet_sfm.errors import UsageError
from hardnet_sfm.files.ownership import claim
from hardnet_sfm.files.workspace import Workspace, locked
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import render
from hardnet_sfm.stages import OnStage, ignore
from hardnet_sfm.terminal import output, print_result
from hardnet_sfm.verbs.map import print_summary
from hardnet_sfm.verbs.reconstruct import reconstruct

if TYPE_CHECKING:
    from hardnet_sfm.colmap.model import Model
    from hardnet_sfm.evaluation.poses import PoseErrors

_PHOTOS = 24


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo.

    Attributes:
        model: the reconstruction.
        photos: number of rendered photos.
        errors: errors of the recovered cameras relative to the cameras of the rendering; positions in metres.
    """

    model: Model
    photos: int
    errors: PoseErrors


def demo(
    workspace: Path | str = "demo-out",
    *,
    seed: int = 0,
    resources: Resources | None = None,
    on_stage: OnStage = ignore,
) -> DemoResult:
    """Renders a small town square, reconstructs it and compares the cameras with the truth.

    Args:
        workspace: folder to write to. The photos go to `workspace/photos` and the true cameras to
            `workspace/truth.json`. All other files are those of `reconstruct`.
        seed: random seed of the scene.
        resources: threads and device to use.
        on_stage: called with the name and the result of each stage as it ends.

    Raises:
        UsageError: the seed is negative.
    """
    from hardnet_sfm.evaluation.poses import pose_errors

    if seed < 0:
        raise UsageError("--seed must be at least 0")
    place = Workspace(Path(workspace))
    photos = place.root / "photos"
    claim(place.root, photos.name, "truth.json")
    with locked(place.root):
        with progress("render", _PHOTOS) as advance:
            scene = render(photos, photos=_PHOTOS, seed=seed, on_photo=lambda _: advance())
        scene.save(place.root / "truth.json")
        model = reconstruct(photos, place.root, resources=resources, on_stage=on_stage)
    true_poses = dict(zip(scene.names, scene.cam_from_world, strict=True))
    return DemoResult(model, len(scene.names), pose_errors(model.cam_from_world(), true_poses))


@dataclass(frozen=True)
class DemoCommand:
    """Options of `hardnet-sfm demo`.

    Examples:
        hardnet-sfm demo
        hardnet-sfm demo --workspace /tmp/demo --seed 1
    """

    workspace: Path = Path("demo-out")
    """Folder for the photos and all results."""
    seed: int = 0
    """Random seed for the scene."""
    debug: bool = False
    """Show where in the program an error came from."""
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        result = demo(self.workspace, seed=self.seed, resources=self.resources, on_stage=print_result)
        print_summary(Workspace(self.workspace))
        at = result.errors
        output.print(
            f"Against the true cameras: {result.photos - len(at.missing)} of {result.photos} recovered, position error "
            f"{1000 * at.positions.mean():.1f} mm mean, {1000 * at.positions.max():.1f} mm largest (the square is 20 m "
            f"wide), AUC@1 degree {at.auc(1):.3f}"
        )
