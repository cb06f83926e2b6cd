"""Names of the retrieval methods."""

from __future__ import annotations

from typing import Literal, get_args

Method = Literal["bow", "bow+sv", "bow+sv+qe", "he", "he+sv", "hqe", "hqe+ma", "hqe+ma+sv", "asmk"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT_METHOD: Method = "hqe+ma+sv"
