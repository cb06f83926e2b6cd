"""Versions of what affects results: the installed packages, this package's commit, and the running program."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("hardnet-sfm", "pycolmap", "torch", "opencv-python-headless", "numpy", "h5py")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that compute, by name.

    Packages that are not installed are left out.
    """
    found = {"python": platform.python_version(), **{name: installed(name) for name in _PACKAGES}}
    return {name: of for name, of in found.items() if of}


def installed(package: str) -> str:
    """Returns the version of a package, or an empty text if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def name_program() -> str:
    """Returns the name of the running program without its folder."""
    name = Path(sys.argv[0]).name
    return "hardnet-sfm" if name == "__main__.py" else name


def find_commit() -> str:
    """Returns the commit of the package and whether it has local changes; empty if it does not run from a clone."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""  # without git the commit cannot be determined
    return described.stdout.strip()
