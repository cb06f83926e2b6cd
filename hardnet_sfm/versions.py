"""Which versions of what decides a result are installed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("hardnet-sfm", "pycolmap", "torch", "opencv-python-headless", "numpy", "h5py")


def versions() -> dict[str, str]:
    """Of Python and of the packages that compute, by name; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
