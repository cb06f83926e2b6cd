"""The command `view` shows a model in the browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, check_least
from hardnet_sfm.files.photo_checks import check_sizes
from hardnet_sfm.files.photo_folders import PhotoFolder
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.workspace import DEFAULT, Workspace
from hardnet_sfm.terminal import output

if TYPE_CHECKING:  # viser is an extra
    from hardnet_sfm.viewer.window import Window
    from hardnet_sfm.viewer.world import World

_SAY_WHERE = "start the viewer with --images FOLDER"


@dataclass(frozen=True)
class ViewOptions:
    """Address of the viewer, and how much it shows."""

    host: str = "127.0.0.1"
    """Address to listen on. If others can reach it, as with 0.0.0.0, the viewer asks for a token. Nothing is
    encrypted."""
    port: int = 8080
    """Port to listen on. 0 takes a free one."""
    token: bool = False
    """Ask for a token on this machine, too. Use it if others have accounts on it."""
    max_points: int = 200_000
    """Most points to show. If more have tracks that are long enough, the viewer shows a part of them, spread evenly."""

    def check(self) -> None:
        """Raises UsageError if a value is invalid."""
        check_least(self, max_points=1)


@contextmanager
def viewing(
    place: Path, images: Path | None = None, options: ViewOptions | None = None
) -> Iterator[tuple[Window, str, str | None]]:
    """Serves a viewer while the block runs.

    Args:
        place: workspace of this package or of COLMAP, or folder of any COLMAP model.
        images: folder of the photos. The default is the folder that the workspace's features were extracted from.
        options: options of the viewer.

    Yields:
        The window, the address to open on this machine, and the address to open on other machines; None if they have
        no access.

    Raises:
        HardnetSfmError: viser is not installed, there is no model, the model is damaged, the folder of photos does not
            exist, or the port is taken.
        UsageError: an option is invalid.
    """
    try:
        from hardnet_sfm.viewer.guard import serving
        from hardnet_sfm.viewer.window import Shown, Window
    except ModuleNotFoundError as error:
        raise HardnetSfmError(
            f"the viewer needs more packages: {error}", "Install them: pip install hardnet-sfm[view]"
        ) from error
    from hardnet_sfm.colmap.model import models_in
    from hardnet_sfm.frames import beside, known_frames

    options = options or ViewOptions()
    options.check()
    folders = {_title(folder): folder for folder in models_in(place)}
    titles = list(folders)
    if images is not None and not images.is_dir():
        raise HardnetSfmError(f"no such folder: {images}", "Give the folder that holds the model's photos.")
    first, keypoints = read_world(folders[titles[0]]), beside(folders[titles[0]])
    images = images or _images_of(keypoints)
    if images is None:
        notice = f"where they are is not known; {_SAY_WHERE}"
    else:
        check_sizes(images, first.tracks.sizes_by_name(), "its camera")
        notice = "" if images.is_dir() else f"{images} is gone; {_SAY_WHERE}"

    def read(title: str) -> World:
        return first if title == first.title else read_world(folders[title])

    with (
        known_frames(keypoints) as known,
        serving(options.host, options.port, token=options.token, label="hardnet-sfm") as served,
    ):
        photos = None if images is None else PhotoFolder(images)
        shown = Shown(titles, read, photos, notice, known)
        yield Window(served.viser, shown, options.max_points), served.address, served.elsewhere


def read_world(folder: Path) -> World:
    """Reads a binary or text model for the viewer.

    Raises:
        HardnetSfmError: there is no model, the model is damaged, or it has no tracks.
    """
    from hardnet_sfm.colmap.model import Model
    from hardnet_sfm.colmap.tracks import tracks_of
    from hardnet_sfm.viewer.world import World

    model = Model.read(folder)
    return World(_title(folder), model, tracks_of(model, folder))


def _title(folder: Path) -> str:
    """Makes the title of a model, for example "sparse/0"."""
    return folder.name if not folder.name.isdecimal() else f"{folder.parent.name}/{folder.name}"


def _images_of(keypoints: Path | None) -> Path | None:
    """Returns the folder that features were extracted from; None if there are no features of this package."""
    if keypoints is None or keypoints.name != Workspace().features.name:
        return None
    with FeatureStore(keypoints) as features:
        return Path(features.header["images"])


@dataclass(frozen=True)
class ViewCommand:
    """Options of `hardnet-sfm view`.

    Examples:
        hardnet-sfm view
        hardnet-sfm view model/ --images photos/ --port 8090
    """

    workspace: Annotated[Path, Positional, arg(metavar="WORKSPACE")] = DEFAULT
    """Workspace that `reconstruct` made, or the folder of any COLMAP model."""
    images: Path | None = None
    """Folder of the photos, if they moved after `extract`."""
    debug: bool = False
    """Show where in the program an error came from."""
    view: ViewOptions = field(default_factory=ViewOptions)

    def run(self) -> None:
        with viewing(self.workspace, self.images, self.view) as (window, address, elsewhere):
            if window.notice:
                output.print(f"[yellow]no photos:[/] {escape(window.notice)}")
            output.print(f"[bold]open[/]  {escape(address)}")
            if elsewhere:
                output.print(f"[bold]  or[/]  {escape(elsewhere)} from elsewhere; the connection is not encrypted")
            output.print("Ctrl-C stops it.")
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                output.print("Stopped.")
