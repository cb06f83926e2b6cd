"""The command `demo`: a rendered scene with known cameras, reconstructed and held against the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hardnet_sfm.errors import UsageError
from hardnet_sfm.evaluation.poses import PoseErrors, pose_errors
from hardnet_sfm.pipeline import OnStage, reconstruct
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import render
from hardnet_sfm.workspace import Workspace, locked

if TYPE_CHECKING:
    from hardnet_sfm.colmap.model import Model

_PHOTOS = 24


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        model: the reconstruction.
        photos: number of photos that were rendered.
        errors: of the recovered cameras, against those that the photos were rendered with; positions in metres.
    """

    model: Model
    photos: int
    errors: PoseErrors


def demo(
    workspace: Path | str = "demo-out",
    *,
    seed: int = 0,
    resources: Resources | None = None,
    on_stage: OnStage | None = None,
) -> DemoResult:
    """Renders a small town square, reconstructs it and compares the cameras with the truth.

    Args:
        workspace: photos go to `workspace/photos`, the truth to `workspace/truth.json`, the rest as in `reconstruct`.
        seed: of the scene.
        resources: how much of the machine.
        on_stage: told the name and the report of each stage as it ends.

    Raises:
        UsageError: a negative seed.
    """
    if seed < 0:
        raise UsageError("--seed must be at least 0")
    place = Workspace(Path(workspace))
    photos = place.root / "photos"
    with locked(place.root):
        with progress("render", _PHOTOS) as advance:
            scene = render(photos, photos=_PHOTOS, seed=seed, on_photo=lambda _: advance())
        scene.save(place.root / "truth.json")
        model = reconstruct(photos, place.root, resources=resources, on_stage=on_stage)
    true_poses = dict(zip(scene.names, scene.cam_from_world, strict=True))
    return DemoResult(model, len(scene.names), pose_errors(model.cam_from_world(), true_poses))
