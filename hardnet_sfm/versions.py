"""Which versions of what decides a result are installed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("hardnet-sfm", "pycolmap", "torch", "opencv-python-headless", "numpy", "h5py")


def versions() -> dict[str, str]:
    """Of Python and of the packages that compute, by name; those that are not installed are left out."""
    found = {"python": platform.python_version(), **{name: installed(name) for name in _PACKAGES}}
    return {name: of for name, of in found.items() if of}


def installed(package: str) -> str:
    """The version of a package; empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
