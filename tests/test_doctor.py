"""``bitseg doctor`` and ``bitseg warmup``: what they find out, say and compile."""

import json
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from click.testing import CliRunner
from llvmlite.binding import get_process_triple

import bitseg
from bitseg import doctor
from bitseg.cli import main
from bitseg.errors import BitsegError
from bitseg.kernels import compilation, simd
from bitseg.model_file import installed_models
from bitseg.segmenter import DEFAULT_MODEL, load

ON_ARM = simd.is_arm(get_process_triple())
CHELSEA = Path(__file__).parents[1] / "examples" / "chelsea.jpg"


def run(*arguments, folder=None, **environment):
    command, variables = [sys.executable, "-m", "bitseg", *map(str, arguments)], {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=folder, timeout=300)


@pytest.fixture(scope="module")
def examined():
    """What `bitseg doctor --json` finds on this computer."""
    result = run("doctor", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def report(examined):
    """A report on a computer where nothing is wrong and nothing could be better."""
    return {
        **deepcopy(examined),
        "environment": {},
        "cpu": {"model": "", "compiled_for": "", "features": {"avx2": True}, "unused": [], "impossible": []},
        "processors": {"present": 4, "usable": 4, "limit": None},
        "problems": [],
        "advice": [],
    }


@pytest.fixture
def copy(tmp_path):
    """A copy of the package with the kernels compiled so far; a function that runs the command of the copy."""
    load(DEFAULT_MODEL)
    package, home = tmp_path / "site" / "bitseg", tmp_path / "home"
    shutil.copytree(Path(bitseg.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copytree(installed_models()[0].parent, package / "weights")
    shutil.copytree(compilation.cache_folder(), package / "kernels" / "__pycache__")
    home.mkdir()

    def run_copy(*arguments, **environment):
        variables = {"PYTHONPATH": str(package.parent), "HOME": str(home), "XDG_CACHE_HOME": str(home)}
        return run(*arguments, folder=package.parent, **{**variables, "NUMBA_CACHE_DIR": "", **environment})

    return package, run_copy


# Doctor, on this computer.


def test_doctor_names_versions(examined):
    import numba
    import numpy as np

    versions = examined["versions"]
    assert {"bitseg", "python", "numba", "llvmlite", "numpy", "pillow", "h5py"} == set(versions)
    assert versions["bitseg"] == bitseg.__version__
    assert versions["numba"] == numba.__version__ and versions["numpy"] == np.__version__


def test_doctor_says_which_kernels_the_default_model_gets(examined):
    assert examined["model"]["name"] == DEFAULT_MODEL and examined["model"]["error"] is None
    assert sum(examined["kernels"].values()) == 69 and examined["kernels"]["stem"] == 1


def test_doctor_finds_the_kernels_in_their_cache(examined):
    cache = examined["cache"]
    assert cache["writable"] and Path(cache["folder"]).is_dir() and cache["kernels"] > 10 and cache["bytes"] > 1e5


def test_doctor_compares_kernels_with_the_numpy_network(examined):
    assert examined["self_test"]["identical"] and examined["problems"] == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/cpuinfo")
def test_doctor_reads_the_features_of_the_cpu(examined):
    text = Path("/proc/cpuinfo").read_text()
    if ON_ARM and "\nFeatures" not in text:
        pytest.skip("an emulated CPU, which is not in /proc/cpuinfo")
    x86, arm = {name: name for name in ("popcnt", "avx2", "avx512bw")}, {"neon": "asimd", "dotprod": "asimddp"}
    for name, linux_name in (arm if ON_ARM else x86).items():
        assert examined["cpu"]["features"][name] == (linux_name in text.split())


def test_doctor_in_words_has_the_same(examined):
    result = run("doctor")
    assert result.returncode == 0 and result.stderr == ""
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    for name, version in examined["versions"].items():
        assert lines[name].split() == [name, version]
    assert examined["cpu"]["model"] in lines["CPU"]
    assert examined["cache"]["folder"] in lines["cache"]
    assert "Nothing is broken." in result.stdout


def test_doctor_heeds_a_cpu_that_is_forced(monkeypatch, examined):
    # Numba's own reading of the variables, without the half minute that compiling for such a CPU takes.
    code = "import json; from bitseg.doctor import _cpu; print(json.dumps(_cpu()))"
    variables = {**os.environ, "NUMBA_CPU_NAME": "generic"}
    variables.pop("NUMBA_CPU_FEATURES", None)
    cpu = json.loads(subprocess.check_output([sys.executable, "-c", code], env=variables, text=True))
    assert cpu["compiled_for"] == "generic"
    # All of 64-bit ARM have NEON, by which bytes are looked up.
    always = ["neon", "byte shuffle"] if ON_ARM else []
    assert [name for name, present in cpu["features"].items() if present] == always
    known = doctor.ARM_FEATURES if ON_ARM else doctor.FEATURES
    assert cpu["unused"] == [name for name in known if examined["cpu"]["features"][name] and name not in always]


# Doctor, where something is broken.


def test_a_variable_that_numba_refuses_is_named_instead_of_a_traceback():
    result = run("doctor", NUMBA_NUM_THREADS="0")
    assert result.returncode == 1 and "unset what begins with NUMBA_" in result.stdout
    result = run("bench", "-m", "voc7-w2a2", NUMBA_NUM_THREADS="0")
    assert result.returncode == 1 and result.stderr.startswith("Error: Numba cannot be used (Number of threads")
    assert result.stderr.count("\n") == 1


def test_numba_that_may_not_compile_is_broken():
    result = run("doctor", NUMBA_DISABLE_JIT="1")
    assert result.returncode == 1 and "NUMBA_DISABLE_JIT" in result.stdout
    assert "Traceback" not in result.stderr and "Nothing is broken" not in result.stdout


def test_a_package_that_cannot_be_imported_is_broken(tmp_path):
    (tmp_path / "h5py.py").write_text("raise ImportError('no HDF5 library')")
    result = run("doctor", PYTHONPATH=f"{tmp_path}{os.pathsep}{Path(bitseg.__file__).parents[1]}")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "Python cannot import h5py (ImportError: no HDF5 library)" in result.stdout


def test_a_damaged_default_model_is_broken(tmp_path, monkeypatch):
    (path,) = (path for path in installed_models() if path.stem == DEFAULT_MODEL)
    (tmp_path / path.name).write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr("bitseg.model_file.WEIGHTS_FOLDER", tmp_path)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1 and "The default model cannot be used" in result.stdout and "damaged" in result.stdout


def test_kernels_that_compute_something_else_are_broken(monkeypatch):
    from bitseg.network.operations import Operations

    upsample2x = Operations.upsample2x
    monkeypatch.setattr(Operations, "upsample2x", lambda self, scores: upsample2x(self, scores) + scores.max() / 1e6)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1 and "different results" in result.stdout


def test_instructions_that_the_cpu_has_not_are_broken_and_not_tried(report):
    report["cpu"]["impossible"] = ["amx-int8"]
    report["self_test"] = {"error": "not run"}
    (sentence,) = doctor.problems(report)
    assert "amx-int8" in sentence and "Unset" in sentence


# Advice.


def test_nothing_is_said_where_nothing_could_be_better(report):
    assert list(doctor.problems(report)) == list(doctor.advice(report)) == []


@pytest.mark.parametrize(
    "section, entries, words",
    [
        ("cpu", {"unused": ["avx2", "vnni"]}, ["avx2, vnni", "NUMBA_CPU_NAME", "unset"]),
        ("cpu", {"unused": ["dotprod"]}, ["LLVM does not know it", "NUMBA_CPU_FEATURES=+neon,+dotprod"]),
        ("cache", {"folder": None, "writable": False}, ["cannot be kept", "NUMBA_CACHE_DIR"]),
        ("processors", {"limit": 1.5}, ["1.5", "--threads 1"]),
        ("processors", {"limit": 0.5}, ["0.5", "--threads 1"]),
        ("processors", {"usable": 1}, ["1 of 4"]),
        ("processors", {"usable": 1, "present": 1}, ["one processor only"]),
    ],
)
def test_advice_names_what_could_be_better(report, section, entries, words):
    report[section] |= entries
    (sentence,) = doctor.advice(report)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    "groups, files, limit",
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, float("inf")),
        ("0::/a/b", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "200000 100000"}, 0.5),
        ("0::/of/the/host", {"cpu.max": "200000 100000"}, 2),
        ("4:memory:/x\n3:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "25000", "cpu/a/cpu.cfs_period_us": "50000"}, 0.5),
        ("3:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
        ("", {}, float("inf")),
    ],
)
def test_the_limit_of_a_container_is_found(tmp_path, groups, files, limit):
    contents = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert doctor.cpu_limit(tmp_path) == limit


# Warm-up.


def test_warmup_compiles_what_is_missing_and_says_so_once(copy):
    package, run_copy = copy
    for file in (package / "kernels" / "__pycache__").glob("decoder.upsample2x_rows-*.nb?"):
        file.unlink()
    first, second = run_copy("warmup"), run_copy("warmup")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert f"{DEFAULT_MODEL}: compiled 1 of its kernels in " in first.stdout
    assert str(package / "kernels" / "__pycache__") in first.stdout
    assert "all kernels are there already" in second.stdout and second.stderr == ""
    result = run_copy("predict", CHELSEA, "-o", package.parent / "mask.png")
    assert result.returncode == 0 and result.stderr == ""


def test_after_warmup_no_photo_needs_another_kernel():
    program = """
import numpy as np
from bitseg.doctor import warm_up
from bitseg.kernels import compilation, simd
from bitseg.segmenter import load

def variants():
    return sum(len(compiled.signatures) for compiled in compilation._dispatchers)

warm_up("voc7-w2a2")
before = variants()
for threads in (1, 2, 3):
    segmenter = load("voc7-w2a2", threads)
    for shape in ((1, 1), (1, 4000), (33, 50), (300, 451), (700, 900)):
        for size in (None, 64, 100):
            segmenter.predict(np.zeros((*shape, 3), np.uint8), size)
print(before, variants())
"""
    before, after = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert int(before) == int(after) > 5


def test_warmup_fails_where_nothing_can_be_kept(copy):
    package, run_copy = copy
    # A file where each folder should be stops even root, who may write everywhere else.
    shutil.rmtree(package / "kernels" / "__pycache__")
    (package / "kernels" / "__pycache__").write_text("")
    home = package.parent.parent / "home"
    home.rmdir()
    home.write_text("")
    result = run_copy("warmup", PYTHONDONTWRITEBYTECODE="1")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("Error: ") and "NUMBA_CACHE_DIR" in result.stderr and result.stderr.count("\n") == 1


def test_warmup_fails_where_a_kernel_was_not_kept(monkeypatch):
    load(DEFAULT_MODEL)
    monkeypatch.setattr(compilation._dispatchers[0]._cache, "keeps_all", False)
    with pytest.raises(BitsegError, match="NUMBA_CACHE_DIR"):
        doctor.warm_up(DEFAULT_MODEL)


def test_warmup_of_an_unknown_model():
    result = CliRunner().invoke(main, ["warmup", "-m", "voc7w2a2"])
    assert result.exit_code == 1 and f"did you mean '{DEFAULT_MODEL}'" in result.stderr
