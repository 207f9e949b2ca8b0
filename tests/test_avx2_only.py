"""`tools.avx2_only`: a program that finds no more than AVX2, and that otherwise runs as it would."""

import json
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools import avx2_only

ROOT = Path(__file__).parents[1]

FEATURES = """
import json, sys
from threading import Thread
from llvmlite.binding import get_host_cpu_features
found = [get_host_cpu_features()]
thread = Thread(target=lambda: found.append(get_host_cpu_features()))
thread.start()
thread.join()
print(json.dumps([sys.argv[1:], *([name for name, has in features.items() if has] for features in found)]))
"""


def run(launcher, program, *arguments):
    command = [sys.executable, *launcher, str(program), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def launcher(tmp_path):
    nothing = tmp_path / "nothing.py"
    nothing.write_text("")
    launcher = ["-m", "tools.avx2_only"]
    result = run(launcher, nothing)
    if result.returncode:
        assert result.stderr.startswith("Error: ") and "CPUID" in result.stderr
        pytest.skip(result.stderr.strip())
    return launcher


def test_what_is_newer_is_hidden_from_all_threads_and_nothing_else(tmp_path, launcher):
    program = tmp_path / "features.py"
    program.write_text(FEATURES)
    _, present, _ = map(set, json.loads(run([], program).stdout))
    arguments, hidden, hidden_from_thread = json.loads(run(launcher, program, "--size", "1").stdout)
    assert arguments == ["--size", "1"]
    newer = {name for name in present if name.startswith(("avx512", "avx10", "avxvnni", "avxifma", "avxne", "amx"))}
    assert set(hidden) == set(hidden_from_thread) == present - newer - {"gfni", "vaes", "vpclmulqdq"}


def test_another_fault_ends_the_process_as_ever(tmp_path, launcher):
    program = tmp_path / "fault.py"
    program.write_text("import ctypes; ctypes.string_at(0)")
    assert run(launcher, program).returncode == -signal.SIGSEGV


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="a CPU of another kind")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump, of binutils")
def test_of_a_library_nothing_but_its_cpuid_is_replaced():
    library = next(Path(np.__file__).parent.rglob("_multiarray_umath*.so"))
    before = np.frombuffer(library.read_bytes(), np.uint8)
    after = np.frombuffer(avx2_only.without_cpuid(library), np.uint8)
    (changed,) = np.nonzero(before != after)
    assert len(changed) and set(before[changed]) == {0x0F} and set(after[changed]) == {0xCD}
    assert set(before[changed + 1]) == {0xA2}


def test_a_program_that_is_not_there_is_refused():
    result = run(["-m", "tools.avx2_only"], "nowhere.py")
    assert result.returncode == 2 and "nowhere.py" in result.stderr and "Traceback" not in result.stderr
