"""What `bitseg doctor` finds out about this computer, and what `bitseg warmup` makes ready on it.

Whatever may be missing or broken is imported where it is used, so that the rest can still be told.
"""

import math
import os
import platform
import sys
import time
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from . import __version__
from .errors import BitsegError

PACKAGES = {"numba": "numba", "llvmlite": "llvmlite", "numpy": "numpy", "pillow": "PIL", "h5py": "h5py"}
"""Packages that do bitseg's work, and the names by which they are imported."""

FEATURES = {
    "popcnt": {"popcnt"},
    "avx2": {"avx2"},
    "avx512bw": {"avx512bw"},
    "vpopcntdq": {"avx512vpopcntdq"},
    "vnni": {"avx512vnni", "avxvnni"},
    "amx": {"amx-int8"},
}
"""CPU features that make a difference to kernels, but on ARM: LLVM's names, of which one suffices."""

ARM_FEATURES = {"neon": {"neon"}, "dotprod": {"dotprod"}}
"""Those of 64-bit ARM."""

_HARDWARE_CAPABILITIES, _DOT_PRODUCT = 16, 1 << 20
"""AT_HWCAP and HWCAP_ASIMDDP of Linux's ``sys/auxv.h`` and ``asm/hwcap.h``."""


@dataclass(frozen=True)
class WarmUp:
    """What `warm_up` did.

    Attributes
    ----------
    compiled : int
        Kernels that had to be compiled; 0: all were there.
    seconds : float
        How long it took.
    folder : Path
        Where compiled kernels are kept.
    """

    compiled: int
    seconds: float
    folder: Path


def warm_up(model):
    """Compile every kernel that a model needs, for photos of any size and any number of threads, and keep them.

    Parameters
    ----------
    model : str or path
        As for `bitseg.load`.

    Returns
    -------
    WarmUp

    Raises
    ------
    ModelFileError
        There is no such model, or its file is damaged.
    BitsegError
        Compiled kernels cannot be kept.
    """
    began = time.perf_counter()
    import numpy as np

    from .kernels import compilation
    from .segmenter import load

    _folder_of_kernels()
    before = compilation.compilations()
    for threads in (1, 2):
        segmenter = load(model, threads)
        side = segmenter.model.preprocessing.working_size
        segmenter.label_map(np.zeros((side, side, 3), np.uint8))
    _self_test()
    # Again, because the disk may have become full.
    return WarmUp(compilation.compilations() - before, time.perf_counter() - began, _folder_of_kernels())


def _folder_of_kernels():
    from .kernels import compilation

    folder = compilation.cache_folder()
    if folder is None:
        raise BitsegError("compiled kernels cannot be kept; set NUMBA_CACHE_DIR to a folder with space for them")
    return folder


def examine():
    """Find out all that bears on whether bitseg works here, and how fast.

    Returns
    -------
    dict
        What JSON can hold: ``versions``; ``import_errors`` of packages; ``environment``, variables that Numba obeys;
        ``cpu``; ``processors``; ``model``, the default one; ``kernels``, how many of its convolutions each computes;
        ``self_test``; ``cache``; and sentences: ``problems``, for which bitseg does not work as it should, and
        ``advice``, what would make it faster. After an import error all that needs the packages is missing.
    """
    versions, import_errors = _versions()
    report = {
        "versions": versions,
        "import_errors": import_errors,
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_")},
    }
    if not import_errors:
        report["cpu"] = _cpu()
        report["processors"] = _processors()
        report["model"], report["kernels"] = _default_model()
        # Instructions that the CPU has not would end the process.
        report["self_test"] = {"error": "not run"} if report["cpu"]["impossible"] else _self_test()
        report["cache"] = _cache()
    return {**report, "problems": list(problems(report)), "advice": list(advice(report))}


def _versions():
    """Versions by package, and for those that cannot be imported the reason."""
    versions, errors = {"bitseg": __version__, "python": platform.python_version()}, {}
    for name, module in PACKAGES.items():
        try:
            versions[name] = import_module(module).__version__
        except Exception as error:  # whatever a package that does not fit its neighbours raises
            errors[name] = _one_line(error)
    return versions, errors


def _one_line(error):
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _cpu():
    from llvmlite.binding import get_host_cpu_features, get_host_cpu_name, get_process_triple

    from .kernels import amx, simd

    name, features = simd.target_cpu()
    triple, host_name = get_process_triple(), get_host_cpu_name()
    host, relevant = simd.cpu_features(triple, host_name, get_host_cpu_features().flatten()), FEATURES
    if simd.is_arm(triple):
        host, relevant = host | _arm_features_by_system(), ARM_FEATURES
    return {
        "model": _cpu_model() or host_name,
        "compiled_for": name,
        "features": {
            **{feature: not features.isdisjoint(names) for feature, names in relevant.items()},
            "byte shuffle": simd.has_byte_shuffle(),
            "tiles": amx.has_tiles(),
        },
        "unused": [feature for feature, names in relevant.items() if host & names and not features & names],
        "impossible": sorted(features - host),
    }


def _arm_features_by_system():
    """What Linux says of 64-bit ARM: LLVM may not know the CPU."""
    import ctypes

    if not sys.platform.startswith("linux"):
        return set()
    return {"dotprod"} if ctypes.CDLL(None).getauxval(_HARDWARE_CAPABILITIES) & _DOT_PRODUCT else set()


def _cpu_model():
    """Name of the CPU as Linux tells it, empty elsewhere and on ARM."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return ""


def _text(path):
    """Content of a small file, empty where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _processors():
    from .network.operations import available_threads

    limit = cpu_limit()
    return {
        "present": os.cpu_count() or 1,
        "usable": available_threads(),
        "limit": None if math.isinf(limit) else limit,
    }


def cpu_limit(root="/"):
    """Processor seconds a second that control groups (containers, services) grant this process.

    Parameters
    ----------
    root : path
        Where ``proc`` and ``sys`` are.

    Returns
    -------
    float
        Infinity without a limit.
    """
    root = Path(root)
    limit = math.inf
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        folder = top / group.lstrip("/")
        # A group has no more than those around it.
        for part in (folder, *folder.parents):
            limit = min(limit, _quota(part))
            if part == top:
                break
    return limit


def _quota(folder):
    """Processors' worth of one control group, version 2 (``cpu.max``) or 1."""
    version1 = f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
    words = (_text(folder / "cpu.max") or version1).split()
    # Without a limit the quota is "max" or "-1".
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdecimal() else math.inf


def _default_model():
    """The default model, and how many of its convolutions each kernel computes."""
    from .model_file import find_model, read_model
    from .network.graph import STEM
    from .network.layout import select_kernel
    from .segmenter import DEFAULT_MODEL

    try:
        path = find_model(DEFAULT_MODEL)
        convolutions = read_model(path).architecture.convolutions()
    except BitsegError as error:
        return {"name": DEFAULT_MODEL, "error": str(error)}, {}
    kernels = Counter("stem" if name == STEM else select_kernel(c) for name, c in convolutions.items())
    return {"name": DEFAULT_MODEL, "path": str(path.resolve()), "error": None}, dict(kernels)


def _self_test():
    """Compare the kernels with the NumPy network on a small random one, of the bits that the default model has."""
    import numpy as np

    from .architecture import Architecture
    from .network.graph import Network
    from .network.operations import Operations
    from .network.reference import ReferenceOperations
    from .presets import random_model

    began = time.perf_counter()
    channels = 5, (8, 12, 68, 16), (3, 5, 66, 6)
    model = random_model(Architecture("resnet50", *channels, ("a", "b", "c"), 2, 2, 8, stream_weight_bits=4))
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    try:
        scores, expected = (Network(model, kind()).scores(image) for kind in (Operations, ReferenceOperations))
        labels, expected_labels = (
            kind().label_map(expected, (70, 90), (64, 80)) for kind in (Operations, ReferenceOperations)
        )
    except Exception as error:  # whatever Numba and LLVM raise where they do not work
        return {"error": _one_line(error)}
    identical = np.array_equal(scores, expected) and np.array_equal(labels, expected_labels)
    return {"error": None, "identical": identical, "seconds": time.perf_counter() - began}


def _cache():
    from .kernels import compilation

    folder = compilation.cache_folder()
    if folder is None:
        return {"folder": None, "writable": False, "kernels": 0, "bytes": 0}
    # Numba's data files, one for each kernel and the types of its arguments.
    sizes = [file.stat().st_size for file in folder.glob("*.nbc")]
    return {"folder": str(folder), "writable": True, "kernels": len(sizes), "bytes": sum(sizes)}


def problems(report):
    """Yield a sentence for each thing in a report of `examine` that keeps bitseg from working as it should."""
    for name, reason in report["import_errors"].items():
        # Numba refuses values of its variables so.
        by_variables = name == "numba" and reason.startswith("ValueError")
        mend = "unset what begins with NUMBA_" if by_variables else f"run pip install --force-reinstall {name}"
        yield f"Python cannot import {name} ({reason.rstrip('.')}): {mend}."
    if report["environment"].get("NUMBA_DISABLE_JIT", "0") != "0":
        yield "NUMBA_DISABLE_JIT keeps Numba from compiling, and kernels do not run without: unset it."
    if report["import_errors"]:
        return
    if report["cpu"]["impossible"]:
        names = ", ".join(report["cpu"]["impossible"])
        yield (
            f"NUMBA_CPU_NAME or NUMBA_CPU_FEATURES asks for {names}, which this CPU has not: kernels would end the "
            "process. Unset it."
        )
    elif report["self_test"]["error"]:
        yield f"Kernels do not run ({report['self_test']['error']})."
    elif not report["self_test"]["identical"]:
        yield (
            "Kernels and the NumPy network give different results: empty the cache folder and try again; "
            "if it stays so, report it with this output."
        )
    if report["model"]["error"]:
        yield f"The default model cannot be used: {report['model']['error']}."


def advice(report):
    """Yield a sentence for each thing in a report of `examine` that could be changed to make bitseg faster."""
    if report["import_errors"]:
        return
    cpu, usable, limit = report["cpu"], report["processors"]["usable"], report["processors"]["limit"]
    if cpu["unused"]:
        without = f"Kernels do without {', '.join(cpu['unused'])}, which this CPU has, because"
        if "dotprod" in cpu["unused"] and not {"NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"} & set(report["environment"]):
            yield f"{without} LLVM does not know it: set NUMBA_CPU_FEATURES=+neon,+dotprod."
        else:
            yield f"{without} Numba was told so (NUMBA_CPU_NAME, NUMBA_CPU_FEATURES or NUMBA_ENABLE_AVX): unset it."
    if not report["cache"]["writable"]:
        yield (
            "Compiled kernels cannot be kept, so that each start takes as long as the first: "
            "set NUMBA_CACHE_DIR to a folder with space for them."
        )
    if limit is not None and limit < usable:
        yield (
            f"A container or service grants the time of {limit:g} processors, but bitseg uses {usable} threads: "
            f"raise its CPU limit, or give --threads {max(1, int(limit))}."
        )
    if usable < report["processors"]["present"]:
        yield (
            f"bitseg may use {usable} of {report['processors']['present']} processors: "
            "others are closed to it, by taskset or a container, for example."
        )
    elif usable == 1:
        yield "There is one processor only: bitseg would be faster with a second one."
