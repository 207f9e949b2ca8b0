"""Compiled kernels are kept, renewed and done without, as the machine allows."""

import compileall
import os
import shutil
import subprocess
import sys
import time
import weakref
from itertools import combinations
from pathlib import Path
from threading import Thread

import numba
import numpy as np
import pytest
from numba.core.caching import CompileResultCacheImpl

import bitseg
from bitseg.kernels import program
from bitseg.kernels.bitplanes import Planes
from bitseg.kernels.counters import add as add_to
from bitseg.kernels.counters import compare_exchange, read
from bitseg.kernels.program import Program, Worker, kernel, numba_type
from bitseg.kernels.run import AWAY, LISTENS, Board, Run
from bitseg.kernels.sharing import Share

PROGRAM = """
import numpy as np
from bitseg.network.layout import pack_bit_planes
print(int(pack_bit_planes(np.full((1, 1, 5), 3, np.uint8), 2, margin=0).sums[0, 0]))
"""


def copy_of(package, folder):
    """A copy of a package, and a home folder of its own."""
    shutil.copytree(package, folder / "site" / "bitseg")
    (folder / "home").mkdir()
    return folder / "site" / "bitseg"


@pytest.fixture(scope="module")
def bare_package(tmp_path_factory):
    """The installed package without compiled kernels and models."""
    copy = tmp_path_factory.mktemp("bare") / "bitseg"
    shutil.copytree(Path(bitseg.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    return copy


@pytest.fixture
def package(bare_package, tmp_path):
    """A copy of the package with no compiled kernels, and a home folder of its own."""
    return copy_of(bare_package, tmp_path)


@pytest.fixture(scope="module")
def package_that_has_run(bare_package, tmp_path_factory):
    copy = copy_of(bare_package, tmp_path_factory.mktemp("compiled"))
    run(copy)
    return copy


@pytest.fixture
def compiled_package(package_that_has_run, tmp_path):
    """The same with the kernels of `PROGRAM` compiled."""
    return copy_of(package_that_has_run, tmp_path)


def run(package, before="", **environment):
    home = package.parent.parent / "home"
    variables = {**os.environ, "PYTHONPATH": str(package.parent), "HOME": str(home), "XDG_CACHE_HOME": str(home)}
    variables.pop("NUMBA_CACHE_DIR", None)
    return subprocess.run(
        [sys.executable, "-c", before + PROGRAM],
        env={**variables, **environment},
        cwd=package.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_first_run_says_that_it_compiles_and_the_second_is_silent(package):
    first, second = run(package), run(package)
    assert first.stdout == second.stdout == "15\n"
    assert first.stderr.count("bitseg: compiling") == 1 and second.stderr == ""


def with_another_popcount(package):
    """Change a file of a package that has no kernel in it; `PROGRAM` then prints something else."""
    source = package / "kernels" / "simd" / "bits.py"
    text = source.read_text()
    changed = text.replace("builder.zext(builder.ctpop(word)", "builder.zext(builder.not_(builder.ctpop(word))")
    assert changed != text
    source.write_text(changed)


def test_a_change_in_another_file_renews_a_kernel(compiled_package):
    with_another_popcount(compiled_package)
    assert run(compiled_package).stdout != "15\n"


@pytest.mark.parametrize(
    "has_source",
    [
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                not any("Zip" in locator.__name__ for locator in CompileResultCacheImpl._locator_classes),
                reason="this Numba keeps nothing of a zip archive",
            ),
        ),
        False,
    ],
)
def test_a_change_in_a_zip_archive_renews_a_kernel(package, has_source):
    """Without source as in a frozen program, whose kernels alone are kept then."""

    def archive():
        if not has_source:
            compileall.compile_dir(package, quiet=1, legacy=True)
        kept = shutil.ignore_patterns("__pycache__", "*.pyc" if has_source else "*.py")
        shutil.copytree(package, package.parent.parent / "zipped" / "bitseg", ignore=kept, dirs_exist_ok=True)
        shutil.make_archive(package.parent.parent / "bitseg", "zip", package.parent.parent / "zipped")

    def run_archive():
        before = f"import sys\nsys.path.insert(0, {str(package.parent.parent / 'bitseg.zip')!r})\n"
        return run(package, before + ("" if has_source else "sys.frozen = True\n"))

    archive()
    first, second = run_archive(), run_archive()
    assert first.stdout == second.stdout == "15\n" and first.stderr != "" and second.stderr == ""
    with_another_popcount(package)
    archive()
    assert run_archive().stdout != "15\n"


NOTHING_CAN_BE_WRITTEN = """
import tempfile
def refuse(dir):
    raise PermissionError
tempfile.TemporaryFile = refuse
"""

THE_PACKAGE_CANNOT_BE_WRITTEN = """
import io, tempfile
def refuse(dir):
    if dir.endswith("__pycache__"):
        raise PermissionError
    return io.BytesIO()
tempfile.TemporaryFile = refuse
"""


def test_what_another_user_has_compiled_is_read_where_nothing_can_be_written(compiled_package, tmp_path):
    result = run(compiled_package, NOTHING_CAN_BE_WRITTEN)
    assert (result.stdout, result.stderr) == ("15\n", "")
    kept = tmp_path / "kept"
    shutil.move(compiled_package / "kernels" / "__pycache__", tmp_path / "moved")
    assert run(compiled_package, NUMBA_CACHE_DIR=str(kept)).stderr != ""
    result = run(compiled_package, NOTHING_CAN_BE_WRITTEN, NUMBA_CACHE_DIR=str(kept))
    assert (result.stdout, result.stderr) == ("15\n", "")
    assert "in memory" in run(compiled_package, NOTHING_CAN_BE_WRITTEN).stderr


def test_what_another_user_has_compiled_is_read_where_own_kernels_are_kept_elsewhere(compiled_package):
    result = run(compiled_package, THE_PACKAGE_CANNOT_BE_WRITTEN)
    assert (result.stdout, result.stderr) == ("15\n", "")
    with_another_popcount(compiled_package)
    first, second = (run(compiled_package, THE_PACKAGE_CANNOT_BE_WRITTEN) for _ in range(2))
    assert first.stdout == second.stdout != "15\n" and "compiling" in first.stderr and second.stderr == ""


def test_a_folder_that_is_chosen_is_the_only_one(compiled_package, tmp_path):
    assert "compiling" in run(compiled_package, NUMBA_CACHE_DIR=str(tmp_path / "chosen")).stderr


def test_a_damaged_cache_is_replaced(compiled_package):
    files = list((compiled_package / "kernels" / "__pycache__").glob("*.nb?"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    result = run(compiled_package)
    assert result.stdout == "15\n" and "compiling" in result.stderr and "Traceback" not in result.stderr
    assert run(compiled_package).stderr == ""


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_a_cache_with_a_changed_bit_is_replaced(compiled_package, share):
    for file in (compiled_package / "kernels" / "__pycache__").glob("*.nbc"):
        content = bytearray(file.read_bytes())
        content[int(len(content) * share)] ^= 1
        file.write_bytes(content)
    result = run(compiled_package)
    assert result.stdout == "15\n" and "compiling" in result.stderr
    assert run(compiled_package).stderr == ""


def test_a_closed_standard_error_is_no_reason_to_fail(package):
    result = run(package, "import sys\nsys.stderr.close()\n")
    assert result.stdout == "15\n"


def test_without_a_writable_folder_kernels_are_compiled_in_memory(package):
    # A file where each folder should be stops even root, who may write everywhere else.
    (package / "kernels" / "__pycache__").write_text("")
    home = package.parent.parent / "home"
    home.rmdir()
    home.write_text("")
    result = run(package, PYTHONDONTWRITEBYTECODE="1")
    assert result.stdout == "15\n"
    assert "in memory" in result.stderr and "Traceback" not in result.stderr


def test_where_the_system_knows_no_home_no_folder_is_made_for_it(package):
    (package / "kernels" / "__pycache__").write_text("")
    unknown = "import os.path\nos.path.expanduser = lambda path: path\n"  # as for a user who is in no list
    before = sorted(os.listdir(package.parent))
    result = run(package, f"{unknown}os.environ.pop('XDG_CACHE_HOME')\n", PYTHONDONTWRITEBYTECODE="1")
    assert result.stdout == "15\n" and "in memory" in result.stderr
    assert sorted(os.listdir(package.parent)) == before


def test_what_was_not_optimised_is_kept_apart(package):
    assert "bitseg: compiling" in run(package, NUMBA_OPT="0").stderr
    assert "bitseg: compiling" in run(package).stderr
    assert run(package).stderr == run(package, NUMBA_OPT="0").stderr == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full")
def test_a_full_disk_is_no_reason_to_fail(package):
    result = run(package, NUMBA_CACHE_DIR="/dev/full")
    assert result.stdout == "15\n" and "Traceback" not in result.stderr


def test_a_generic_cpu_gives_the_same(package):
    result = run(package, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert result.stdout == "15\n", result.stderr


@kernel
def put_first_doubled(arrays, number, result):
    result[0] = 2 * arrays[0][0] + number


def test_an_entry_point_is_compiled_for_the_very_types_of_its_arguments():
    single, double, result = (np.full(3, 1.5, kind) for kind in (np.float32, np.float64, np.float64))
    found = []
    for arrays in ((single, single), (single,), (double, double), (double[::2], double)):
        found.append(put_first_doubled.entry_point((arrays, 1, result)))
        result[0] = 0
        put_first_doubled(arrays, 1, result)
        assert result[0] == 4
    assert len(set(map(id, found))) == 4
    assert put_first_doubled.entry_point(((single + 1, single), 2, result)) is found[0]


@kernel
def add(numbers, added, pixel, bits, none):
    """Arguments of many types: a tuple in a named tuple, a scalar, an array of 3 axes that is not contiguous, None."""
    if none is None:
        numbers.words[1][0] += added + pixel[1, 1, 1] + len(bits)


def test_a_program_runs_its_kernels_in_order_on_what_their_arguments_hold_by_then():
    words = np.zeros(2, np.int64), np.zeros(3, np.int64)
    pixels = np.zeros((2, 4, 2), np.uint8)
    calls = [
        (add, (Planes(words, None, 1), np.float32(number), pixels[:, ::2], (np.ones(1),) * 3, None))
        for number in (1, 10, 100)
    ]
    program = Program(calls)
    del calls
    pixels[1, 2, 1] = 20
    program.run()
    assert words[1][0] == 111 + 3 * (20 + 3) and words[0][0] == 0
    program.run(1, 2)
    program.run(2)
    assert words[1][0] == 111 + 110 + 5 * (20 + 3)
    run = Run(program)
    run.work(2)
    run.finish(len(program))
    run.work()
    assert words[1][0] == 111 + 110 + 100 + 6 * (20 + 3)


def test_a_run_finds_in_other_pieces_of_memory_what_lay_in_the_first():
    outside, bits = np.full(3, 5), (np.ones(1),)
    first, others = np.zeros(80, np.uint8), [np.zeros(size, np.uint8) for size in (100, 80)]
    second, pixels = np.zeros((2, 2, 2), np.uint8), np.full((2, 2, 2), 3, np.uint8)
    bound = Planes((outside, first[8:16].view(np.int64)), first, 1)
    program = Program([(add, (bound, np.float32(1), second, bits, None))], (first, second), (outside, bits))
    for memory, value in ((first, 5), (others[0], 5), (others[1], 5), (others[0], 10)):
        Run(program, (memory, pixels.reshape(-1))).work()
        assert memory[8] == value and np.count_nonzero(memory) == 1
    program.run()
    assert first[8] == 7 and outside.tolist() == [5] * 3


@kernel
def count(counters, result):
    result[0] = counters[0, 0]
    counters[:] += 1


def test_counters_are_zero_when_a_run_begins_wherever_they_are():
    memory, result = np.full(100, 7, np.uint8), np.zeros(1)
    counters = memory[16:64].view(np.int64).reshape(2, 3)
    program = Program([(count, (counters, result))] * 2, (memory,), counters=counters)
    other = np.full(100, 9, np.uint8)
    for _ in range(2):
        Run(program, (other,)).work()
        assert result[0] == 1 and (other[16:64].view(np.int64) == 2).all()
        assert (other[:16] == 9).all() and (other[64:] == 9).all() and (memory == 7).all()
    program.run()
    assert result[0] == 1 and (counters == 2).all()


@kernel
def fill(result, size):
    result[:] = len(np.empty(size, np.uint8))


def test_a_kernel_that_gets_no_memory_raises():
    result = np.zeros(1)
    fill(result, 7)
    with pytest.raises(MemoryError):
        fill(result, 2**62)
    assert result[0] == 7


def test_what_is_waited_for_is_there_once_a_kernel_has_failed():
    counters, result = np.zeros((1, 3), np.int64), np.zeros(1)
    program = Program([(fill, (result, 7)), (fill, (result, 2**62))], counters=counters)
    run = Run(program)
    run.work(0, 1)
    assert not run.failed and (counters == 0).all()
    with pytest.raises(MemoryError):
        run.work(1)
    assert run.failed and (counters > 2**60).all()
    assert not Run(program).failed and (counters == 0).all()


@kernel
def wait_and_answer(counters):
    add_to(counters, 0, 0, 1)
    while read(counters, 1, 0) == 0:
        pass
    add_to(counters, 2, 0, 1)


def test_a_run_is_closed_when_all_have_left():
    counters = np.zeros((3, 1), np.int64)
    run = Run(Program([(wait_and_answer, (counters,))] * 2))
    inside = Thread(target=run.work)
    inside.start()
    while counters[0, 0] == 0:
        pass
    closing = Thread(target=run.finish, args=(2,))
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    counters[1, 0] = 1
    closing.join(60)
    assert not closing.is_alive()
    inside.join(60)
    assert counters[2, 0] == 1  # of the second one, which had not begun, there is nothing
    run.work()
    assert run.closed and counters[2, 0] == 1


def test_a_finished_run_is_closed_and_holds_nothing():
    pieces, result = (np.zeros(8, np.uint8),), np.zeros(1)
    run, alive = Run(Program([(fill, (result, 7))], pieces), pieces), weakref.ref(pieces[0])
    del pieces
    assert not run.closed and alive() is not None
    run.finish()
    assert run.closed and result[0] == 7 and alive() is None


@kernel
def note_worker(arguments, result):
    (worker, _), _ = arguments
    result[0] = worker.number


def test_a_kernel_learns_which_thread_runs_it():
    result = np.zeros(1)
    program = Program([(note_worker, (((Worker(7), 1), 2), result))])
    for worker in (3, 0, 1):
        Run(program).work(worker=worker)
        assert result[0] == worker


@kernel
def note_workers(arguments, result):
    worker, counters = arguments
    result[worker.number] += 1
    add_to(counters, 0, 0, 1)


def test_a_helper_that_listens_is_called_to_another_run():
    board = Board(2)

    def new_run():
        counters, noted = np.zeros((1, 1), np.int64), np.zeros(3, np.int64)
        return Run(Program([(note_workers, ((Worker(0), counters), noted))] * 2)), counters, noted

    called = 0
    while not called:  # it may have slept when it was to be called
        run, counters, noted = new_run()
        helper = Thread(target=new_run()[0].work, kwargs={"worker": 2, "board": board})
        helper.start()
        while helper.is_alive() and not called:
            called = run.call(board, 2)
    while counters[0, 0] < 2:
        pass
    run.finish(2, board)
    helper.join(60)
    assert not helper.is_alive() and board.rows[:, 0].tolist() == [0, 0, 0]
    assert called == 1 and noted.tolist() == [0, 0, 2]


def test_a_helper_that_does_not_come_is_called_back():
    board = Board(3)
    board.rows[:3, 0] = LISTENS, AWAY, LISTENS
    run = Run(Program([(note_worker, (((Worker(7), 1), 2), np.zeros(1)))]))
    assert run.call(board, 1) == 1
    assert (board.rows[:, 0] > 1).tolist() == [True, False, False, False]
    assert run.call(board, 2) == 1
    run.abandon(board)
    assert board.rows[:, 0].tolist() == [LISTENS, AWAY, LISTENS, 0]


def test_a_helper_does_not_listen_while_there_is_more_to_do():
    board, run = Board(1), Run(Program([(note_worker, (((Worker(7), 1), 2), np.zeros(1)))]))

    def least_time():
        times = []
        for _ in range(50):
            began = time.perf_counter()
            run.work(worker=1, board=board)
            times.append(time.perf_counter() - began)
        return min(times)

    listening = least_time()
    board.more_to_do(1)
    assert least_time() < listening
    board.more_to_do(-1)
    assert board.rows[:, 0].tolist() == [0, 0]


@kernel
def change_first(counters, result):
    result[0] = compare_exchange(counters, 0, 1, 5, 6)
    result[1] = compare_exchange(counters, 0, 1, 5, 7)


def test_a_counter_is_changed_only_from_the_value_that_is_named():
    counters, result = np.full((1, 2), 5), np.zeros(2, np.bool_)
    change_first(counters, result)
    assert counters.tolist() == [[5, 6]] and result.tolist() == [True, False]


def test_types_are_those_that_numba_finds():
    array = np.zeros((4, 6), np.int32)
    read_only = array[:, ::2]
    read_only.flags.writeable = False
    for value in (array, array.T, read_only, np.float32(1), 7, None, (array, (1, 2)), Share(array, *range(9))):
        assert numba_type(value) == numba.typeof(value)


def test_arguments_are_of_one_kind_where_they_are_of_one_type():
    array = np.zeros((4, 6), np.int32)
    column = np.zeros((4, 1), np.int32)
    arrays = array, array[:2], array.T, array[:, ::2], column, column.T, np.zeros((1, 1), np.int32), array[::2, :1]
    read_only = [value.view() for value in arrays]
    for value in read_only:
        value.flags.writeable = False
    for one, other in combinations([*arrays, *read_only, array[0], array.astype(np.int16)], 2):
        of_one_type = numba.typeof(one) == numba.typeof(other)
        assert (program._kind(one) == program._kind(other)) == of_one_type, (one.flags, other.flags)


@pytest.mark.parametrize("cached", [False, True])
def test_a_kernel_cannot_be_called_by_another(tmp_path, cached):
    (tmp_path / "own.py").write_text(
        """
import numba
import numpy as np
from bitseg.kernels.program import kernel

@kernel
def increased(numbers):
    numbers[0] += 1

@numba.njit
def twice(numbers):
    increased(numbers)
    increased(numbers)

numbers = np.ones(1, np.int64)
increased(numbers)
print(numbers[0])
try:
    twice(numbers)
except Exception as error:
    print(error)
"""
    )
    program = [sys.executable, "own.py"]
    outputs = [subprocess.run(program, cwd=tmp_path, capture_output=True, text=True) for _ in range(1 + cached)]
    assert outputs[-1].stdout.startswith("2\n"), outputs[-1].stderr
    assert "increased is a kernel, called from Python alone" in outputs[-1].stdout
    assert ("compiling" in outputs[-1].stderr) is not cached


OWN_TYPE = """
import sys
import numpy as np
from bitseg.kernels.program import kernel

@kernel
def halve(numbers):
    numbers[0] /= 2

numbers = np.full(3, 5, sys.argv[1])
halve(numbers)
print(numbers[0], sum(halve._compiled.stats.cache_misses.values()))
"""


def test_code_that_two_processes_keep_at_the_same_time_has_places_of_its_own(tmp_path):
    (tmp_path / "own.py").write_text(OWN_TYPE)

    def run(kind, folder):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / folder)}
        command = [sys.executable, "own.py", kind]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout

    # As if neither had seen what the other wrote.
    assert run("float32", "one") == "2.5 1\n" and run("uint64", "other") == "2 1\n"
    shutil.copytree(tmp_path / "other", tmp_path / "one", dirs_exist_ok=True)
    assert run("float32", "one") == "2.5 0\n" and run("uint64", "one") == "2 0\n"


FIRST_RUN = """
import os, signal, sys
import numpy as np
from bitseg.kernels import compilation, program
compilation.compile_in_two_processes()
compilation._in_two_processes = True  # however many processors there are
if "lost" in sys.argv:
    start = compilation._Helper.start
    def start_and_lose(self):
        start(self)
        os.kill(self.process, 9)
    compilation._Helper.start = start_and_lose
if "ignored" in sys.argv:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)

@program.kernel
def increase(numbers):
    numbers[0] += 1

@program.kernel
def double(numbers):
    numbers[0] *= 2

kinds = np.int8, np.int16, np.int32, np.int64, np.float32, np.float64
results = [np.full(3, 4, kind) for kind in kinds]
program.Program([(kernel, (numbers,)) for kernel in (increase, double) for numbers in results]).run()
print(compilation.compilations(), *(int(numbers[0]) for numbers in results))
"""


def test_nothing_is_left_for_helpers_to_compile():
    """A process that ends while a thread compiles crashes."""
    code = """
import numpy as np
from bitseg.kernels.run import NATIVE, native
from bitseg.segmenter import load
load("voc7-w2a2", threads=1).predict(np.zeros((9, 9, 3), np.uint8))
before = native.cache_info().misses
for function in NATIVE:
    native(function)
print(before == native.cache_info().misses == len(NATIVE))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only there a second process compiles")
@pytest.mark.parametrize("helper", ["works", "lost", "ignored"])
def test_kernels_are_compiled_whether_the_second_process_finishes_or_not(tmp_path, helper):
    (tmp_path / "first_run.py").write_text(FIRST_RUN)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def compilations(*arguments):
        command = [sys.executable, "first_run.py", *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        compiled, *numbers = result.stdout.split()
        assert numbers == ["10"] * 6
        return int(compiled)

    # Of a child that is ignored nobody learns how many it has compiled.
    assert compilations(helper) > (0 if helper == "ignored" else 10)
    assert compilations("works") == 0
