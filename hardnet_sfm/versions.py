"""Versions of the installed packages that affect results."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

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
