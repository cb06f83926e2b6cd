"""Checks the installed packages and the abilities of the machine. The checks import packages and compute nothing."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import requires

from packaging.requirements import Requirement

from hardnet_sfm.checks.findings import Finding
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.weight_files import find_weights, shipped_names, verify
from hardnet_sfm.resources import Resources
from hardnet_sfm.versions import installed

# Other distributions that provide the same module as a required distribution.
_ALTERNATIVES = {
    "faiss-cpu": ("faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12"),
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
}
# CPU instructions that torch reports and that matter for this package.
_INSTRUCTIONS = ("avx2", "avx512_f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "avx512_vpopcntdq")
_ARM_INSTRUCTIONS = ("neon", "bf16", "i8mm", "sve", "sve2")


def machine() -> list[Finding]:
    """Checks the installed packages, the device for networks, and the CPU instructions in use."""
    return [_system(), *packages(), _device(), _cpu(), _faiss(), _numba(), *weights()]


def _system() -> Finding:
    return Finding("system", "ok", f"Python {platform.python_version()} on {platform.platform()}")


def packages() -> list[Finding]:
    """Checks each required package against the required range of versions.

    Packages of extras are checked only if they are installed. All packages without a problem share one finding.
    """
    wanted = {one.name: one for one in map(Requirement, requires("hardnet-sfm") or ()) if one.name != "hardnet-sfm"}
    good, findings = [f"hardnet-sfm {installed('hardnet-sfm')}"], []
    for one in wanted.values():
        there = [name for name in (one.name, *_ALTERNATIVES.get(one.name, ())) if installed(name)]
        if not there:
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                hint = f'Run: python -m pip install "{one.name}{one.specifier}"'
                findings.append(Finding(one.name, "broken", "not installed", hint))
            continue
        found = installed(there[0])
        if one.specifier.contains(found, prereleases=True):
            good.append(f"{there[0]} {found}")
        else:
            hint = f'Run: python -m pip install "{there[0]}{one.specifier}"'
            findings.append(Finding(there[0], "broken", f"{found}, but {one.specifier} is needed", hint))
    return [Finding("packages", "ok", ", ".join(good)), *findings]


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return Finding("device", "ok", f"CUDA {torch.version.cuda}: {', '.join(names)}")
    if torch.version.cuda:
        said = f"CPU: torch was built for CUDA {torch.version.cuda}, but finds no CUDA device"
        return Finding("device", "note", said, "If there should be one, run nvidia-smi to see why.")
    if shutil.which("nvidia-smi"):
        hint = "A CUDA build of torch would describe and match on the GPU: see https://pytorch.org/get-started."
        return Finding("device", "note", "CPU: there is an NVIDIA driver, but torch was built for the CPU alone", hint)
    return Finding("device", "ok", "CPU (torch was built for the CPU alone)")


def _cpu() -> Finding:
    """Reports threads, instructions, and the resulting types for networks and for products of descriptors."""
    import numpy as np
    import torch

    from hardnet_sfm.matching.nearest import rounding_for
    from hardnet_sfm.networks.device import fast_type

    able = torch.cpu.get_capabilities()
    has = [name for name in (*_INSTRUCTIONS, *_ARM_INSTRUCTIONS) if able.get(name)]
    described, matched = fast_type("cpu"), rounding_for(np.zeros((0, 128), np.float16), "cpu").kind
    types = f"describes in {_name(described)}, matches in {_name(matched)}"
    said = f"{Resources().threads} threads; {', '.join(has) or 'no vector instructions that matter here'}; {types}"
    slower = [torch.float32] * 2 == [described, matched]
    return Finding("CPU", "ok", said + (" (there are no faster types on this CPU)" if slower else ""))


def _name(kind: object) -> str:
    return str(kind).removeprefix("torch.")


def _faiss() -> Finding:
    import faiss

    gpus = f"{faiss.get_num_gpus()} GPUs" if hasattr(faiss, "StandardGpuResources") else "the CPU alone"
    level = _faiss_level()
    said = f"{faiss.__version__} for {gpus}; uses {level or 'no vector instructions'}"
    if not level:
        hint = "Install the package again; on x86 it has code for AVX2 and AVX-512, and chooses by the CPU."
        return Finding("faiss", "note", f"{said}: words are assigned slowly", hint)
    return Finding("faiss", "ok", said)


def _faiss_level() -> str:
    """Returns the instructions that faiss chose on import; empty if it uses none."""
    import faiss

    if hasattr(faiss, "SIMDConfig"):
        return str(faiss.SIMDConfig.get_level_name()).replace("NONE", "")
    # Older versions of faiss choose between several libraries instead of within one library.
    loaded = [name.removeprefix("faiss.swigfaiss_") for name in sys.modules if name.startswith("faiss.swigfaiss_")]
    return loaded[0].upper() if loaded else ""


def _numba() -> Finding:
    from llvmlite import binding

    from hardnet_sfm.retrieval import kernels

    if not hasattr(kernels.embedded_matches, "signatures"):
        hint = "Unset NUMBA_DISABLE_JIT."
        return Finding(
            "numba", "broken", "compiling is switched off: a search would take hundreds of times longer", hint
        )
    counts = binding.get_host_cpu_features().get("popcnt", platform.machine() in ("arm64", "aarch64"))
    said = f"compiles searches for {binding.get_host_cpu_name()}"
    if not counts:
        return Finding("numba", "note", f"{said}, which does not count bits in one instruction: searches are slow")
    return Finding("numba", "ok", said)


def weights() -> list[Finding]:
    """Checks the shipped weights against the checksums in their cards."""
    findings = []
    for name in shipped_names():
        try:
            findings.append(Finding(f"weights {name}", "ok", f"as its card says, sha256 {verify(find_weights(name))}"))
        except HardnetSfmError as error:
            findings.append(Finding(f"weights {name}", "broken", error.message, error.hint))
    missing = "no weights come with this installation"
    return findings or [Finding("weights", "broken", missing, "Install the package again.")]
