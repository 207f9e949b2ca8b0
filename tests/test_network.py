"""The whole network: Numba against plain NumPy, for any thread count, on random models and real photos."""

import gc
import os
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from kernel_names import KERNELS
from models import random_model

from bitseg.images import read_image, resize
from bitseg.kernels.counters import add, read
from bitseg.kernels.program import kernel
from bitseg.kernels.run import Run
from bitseg.kernels.sharing import next_row, take_row
from bitseg.network import operations as operations_module
from bitseg.network import plan as plan_module
from bitseg.network.graph import Network
from bitseg.network.layout import unpack_bit_planes
from bitseg.network.operations import Operations
from bitseg.network.plan import Helpers, Plan, Step, Window, empty_bytes, with_shared_memory
from bitseg.network.reference import ReferenceOperations
from bitseg.presets import preset_model

MODELS = {
    "2-2": {},
    "1-2": {"weight_bits": 1},
    "paper's stream of k bits": {"stream_bits": 0},
    "4-4": {"weight_bits": 4, "activation_bits": 4},
    "convolution": {"reconstruction": "convolution", "stream_bits": 0},
    "double convolution": {"reconstruction": "double_convolution"},
    "resnet50": {"encoder": "resnet50", "stage_channels": (8, 20, 12, 36)},
    "stream carried on": {"stream_weight_bits": 4},
    "stream carried on, 8 bits": {"stream_weight_bits": 8, "stage_channels": (8, 16, 40, 65)},
    "stream of k bits carried on": {"stream_bits": 0, "stream_weight_bits": 2, "reconstruction": "convolution"},
    "resnet34 with projections": {"encoder": "resnet34", "stage_channels": (64, 65, 3, 70)},
}


def random_image(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_numba_gives_the_scores_and_mask_of_numpy(options):
    model = random_model(**options)
    kernels, plain = Network(model, Operations(2)), Network(model, ReferenceOperations())
    for seed, (height, width) in enumerate([(32, 32), (64, 96), (96, 32)]):
        image = random_image(height, width, seed)
        expected = plain.scores(image)
        # At 32x32 the coarsest scale is a single cell: no boundary anywhere, so finer branches do not count.
        assert len(np.unique(expected)) > expected.size // 2 or (height, width) == (32, 32)
        assert np.array_equal(kernels.scores(image), expected)
        shape = height - 5, width + 3
        expected = plain.label_map(image, shape, (height - 1, width))
        assert np.array_equal(kernels.label_map(image, shape, (height - 1, width)), expected)


@pytest.mark.parametrize("photo", ["astronaut.jpg", "chelsea.jpg"])
def test_every_feature_map_of_a_photo_equals_numpy(examples, photo):
    model = preset_model("thin50", "2-2", stream_weight_bits=4)
    image = resize(read_image(examples / photo), (96, 128))
    found = list(_feature_maps(Network(model, Operations(2)), image))
    expected = list(_feature_maps(Network(model, ReferenceOperations()), image))
    assert len(found) == len(expected) > 80
    for (name, codes), (expected_name, expected_codes) in zip(found, expected, strict=True):
        assert name == expected_name
        assert len(np.unique(expected_codes)) > 1, f"{name} is constant: the test would show nothing"
        assert np.array_equal(codes, expected_codes), name


def _feature_maps(network, image):
    """Run a network: the name of every operation and the codes or scores that it gives, a list of pairs."""
    recorder = _Recorder(network.operations)
    network.operations = recorder
    network.scores(image)
    return recorder.results


class _Recorder:
    """Passes operations on and keeps the codes that they give, of streams and of activations."""

    def __init__(self, operations):
        self.operations, self.results = operations, []

    def run(self, function, image):
        return function(image)  # each operation at once, without a plan

    def __getattr__(self, name):
        def call(*arguments):
            result = getattr(self.operations, name)(*arguments)
            channels = next((a.convolution.out_channels for a in arguments if hasattr(a, "convolution")), None)
            for codes in result if type(result) is tuple else (result,):
                if hasattr(codes, "words"):
                    codes = unpack_bit_planes(codes, channels)
                elif codes is not None and codes.dtype == np.uint8:
                    codes = codes[:, :, :channels]
                if codes is not None:
                    self.results.append((name, codes))
            return result

        return call


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_the_thread_count_does_not_change_the_mask(examples, threads):
    model = preset_model("thin50", "1-2")
    image = resize(read_image(examples / "astronaut.jpg"), (160, 224))
    expected = Network(model, Operations(1)).scores(image)
    assert np.array_equal(Network(model, Operations(threads)).scores(image), expected)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("worker", [1, 2])
def test_a_thread_that_is_alone_does_what_was_for_the_others_after_its_own(kernel, worker):
    model, image = random_model(stream_weight_bits=4), random_image(160, 64, 0)
    operations = Operations(3, kernel)
    network = Network(model, operations)
    plan = operations.plan(network.compute_scores, image.shape)
    expected = Network(model, Operations(1)).scores(image)
    result = np.zeros_like(expected)
    pieces = empty_bytes(plan.size), image.reshape(-1), result.reshape(-1).view(np.uint8)
    Run(plan._program, pieces).work(worker=worker)
    assert np.array_equal(result, expected)


def test_any_array_of_an_images_values_may_be_segmented_and_the_result_is_its_own():
    network, image = Network(random_model(), Operations(2)), random_image(64, 96, 0)
    expected, other = network.scores(image), network.scores(random_image(64, 96, 1))
    read_only = image.copy()
    read_only.flags.writeable = False
    for same in (image[::-1].copy()[::-1], np.asfortranarray(image), read_only):
        result = network.scores(same)
        assert np.array_equal(result, expected) and not np.array_equal(result, other)
        result[:] = 0
    assert np.array_equal(network.scores(image), expected)


def test_a_plan_refuses_images_of_another_shape():
    operations = Operations(1)
    plan = operations.plan(Network(random_model(), operations).compute_scores, (64, 64, 3))
    with pytest.raises(ValueError, match="make one for it"):
        operations.execute(plan, random_image(64, 32, 0))


def test_one_network_may_be_used_by_several_threads_at_once():
    network = Network(random_model(), Operations(2))
    images = [random_image(64, 64, seed) for seed in range(8)]
    expected = [network.scores(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for scores, alone in zip(pool.map(network.scores, images), expected, strict=True):
            assert np.array_equal(scores, alone)


def test_threads_are_shared_out_among_jobs():
    def threads(all_threads, jobs):
        """Of one call, and all that may be at work at a time with so many calls."""
        operations = Operations(all_threads, jobs=jobs)
        return operations.threads, jobs + operations._most_helpers

    assert [threads(8, jobs) for jobs in (1, 2, 8)] == [(8, 8), (4, 8), (1, 8)]
    assert threads(3, 2) == (2, 3) and threads(5, 3) == (2, 5) and threads(2, 5) == (1, 5)
    network, image = Network(random_model(), Operations(5, jobs=3)), random_image(64, 96, 0)
    expected = Network(random_model(), Operations(1)).scores(image)
    with ThreadPoolExecutor(3) as pool:
        assert all(np.array_equal(scores, expected) for scores in pool.map(network.scores, [image] * 30))


def test_a_network_that_is_no_longer_used_goes_at_once():
    gc.disable()
    try:
        network = Network(random_model(), Operations(2))
        network.label_map(random_image(64, 96, 0), (64, 96), (64, 96))
        alive = weakref.ref(network), weakref.ref(network.operations)
        del network
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_lie_in_one_piece_of_memory_each_from_a_cache_line_on(kernel):
    layers = Network(random_model(), Operations(1, kernel)).layers
    assert len(layers) > 20
    weights = plan_module._arrays(tuple(layers.values()))
    assert len({id(array.base) for array in weights}) == 1
    assert all(array.ctypes.data % 64 == 0 for array in weights)


def test_buffers_used_before_do_not_show_in_the_next_mask():
    model = random_model()
    network, plain = Network(model, Operations(2)), Network(model, ReferenceOperations())
    for seed, size in enumerate([(64, 96), (64, 96), (96, 64), (64, 96)]):
        image = random_image(*size, seed)
        assert np.array_equal(network.scores(image), plain.scores(image))


def test_the_latest_plans_are_kept_and_memory_which_grows_and_shrinks(monkeypatch):
    operations = Operations(1)
    network = Network(random_model(), operations)

    def run(*shapes):
        """Shapes for which there are plans afterwards, and the memory."""
        for number, shape in enumerate(shapes):
            network.scores(random_image(*shape, number))
        (workspace,) = operations._idle_workspaces
        return [shape[:2] for _, shape in operations._plans], workspace.memory(0)

    monkeypatch.setattr(operations_module, "KEPT_PLANS", 5)
    shapes = [(64, 32 * columns) for columns in range(5, 0, -1)]
    kept, memory = run(*shapes)
    assert kept == shapes and len(memory) > 64 * 160 * 3
    kept, same_memory = run(shapes[0], (32, 32))  # one used again, which so is not the oldest, and a new one
    assert kept == [*shapes[2:], shapes[0], (32, 32)] and same_memory is memory
    kept, more_memory = run((96, 160))
    assert kept == [*shapes[3:], shapes[0], (32, 32), (96, 160)] and len(more_memory) > len(memory)
    monkeypatch.setattr(plan_module, "KEPT_BYTES", len(more_memory) - 1)
    assert len(run((32, 32))[1]) < len(memory)


def test_a_plan_does_not_keep_the_memory_it_was_made_with():
    operations = Operations(2)
    network, image, alive = Network(random_model(), operations), random_image(64, 64, 0), []

    def allocate(size):
        memory = empty_bytes(size)
        alive.append(weakref.ref(memory if memory.base is None else memory.base))
        return memory

    plan = operations.plan(network.compute_scores, image.shape, allocate=allocate)
    assert len(alive) == 1 and alive[0]() is None
    assert np.array_equal(operations.execute(plan, image), network.scores(image))


def test_a_network_may_be_run_while_its_own_thread_plans_a_run():
    operations = Operations(2)
    network, image = Network(random_model(), operations), random_image(64, 64, 0)
    expected, found = Network(random_model(), ReferenceOperations()).scores(image), []

    def interrupted(image, *more):
        found.append(network.scores(random_image(64, 64, 0)))
        return network.compute_scores(image, *more)

    assert np.array_equal(operations.run(interrupted, image), expected)
    assert np.array_equal(found[0], expected)


def test_one_plan_may_be_run_in_several_pieces_of_memory_at_once():
    operations, plain = Operations(2), ReferenceOperations()
    network, images = Network(random_model(), operations), [random_image(64, 96, seed) for seed in range(8)]
    expected = [Network(random_model(), plain).scores(image) for image in images]
    plan = operations.plan(network.compute_scores, images[0].shape)
    with ThreadPoolExecutor(4) as pool:
        memory = [np.full(plan.size + 64, 255, np.uint8) for _ in images]
        memory = [bytes[-bytes.ctypes.data % 64 :] for bytes in memory]
        runs = [pool.submit(plan.execute, image, operations._helpers(), place) for image, place in zip(images, memory)]
        assert all(np.array_equal(run.result(), scores) for run, scores in zip(runs, expected))


def test_label_maps_are_part_of_the_plan_where_photos_of_one_size_follow_one_another():
    operations = Operations(2)
    network, plain = Network(random_model(), operations), Network(random_model(), ReferenceOperations())

    def planned(shape, inside, seed):
        """Functions that were planned until a label map was made, the latest last."""
        image = random_image(64, 96, seed)
        assert np.array_equal(network.label_map(image, shape, inside), plain.label_map(image, shape, inside))
        return [function().__name__ for function, *_ in operations._plans]

    assert planned((60, 90), (60, 90), 0) == ["compute_scores"]
    assert planned((61, 90), (60, 90), 1) == ["compute_scores"]
    assert planned([61, 90], [60, 90], 2) == ["compute_scores", "compute_label_map"]
    assert planned((61, 90), (60, 90), 3) == ["compute_scores", "compute_label_map"]
    assert planned((60, 90), (60, 90), 4) == ["compute_label_map", "compute_scores"]
    assert planned((60, 90), (60, 90), 5) == ["compute_label_map", "compute_scores", "compute_label_map"]


def test_as_many_pieces_of_memory_are_kept_as_were_needed_at_a_time():
    operations = Operations(1)
    network, image = Network(random_model(), operations), random_image(64, 64, 0)
    expected = network.scores(image)
    together, execute = Barrier(3), operations._execute

    def wait_and_execute(*arguments):
        together.wait(60)
        return execute(*arguments)

    operations._execute = wait_and_execute
    with ThreadPoolExecutor(3) as pool:
        assert all(np.array_equal(scores, expected) for scores in pool.map(network.scores, [image] * 6))
    assert len(operations._idle_workspaces) == 3


@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_run_can_be_interrupted_between_its_steps(monkeypatch, threads):
    operations, image = Operations(threads), random_image(64, 64, 0)
    network = Network(random_model(), operations)
    expected = network.scores(image)
    monkeypatch.setattr(plan_module, "STEPWISE_NANOSECONDS", 0)
    plan = operations.plan(network.compute_scores, image.shape)
    assert np.array_equal(operations.execute(plan, image), expected)

    class Times(list):
        def append(self, time):
            if len(self) == 3:
                raise KeyboardInterrupt
            super().append(time)

    times = Times()
    with pytest.raises(KeyboardInterrupt):
        operations.execute(plan, image, times)
    assert np.array_equal(operations.execute(plan, image), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_segments_too():
    network, image = Network(random_model(), Operations(2)), random_image(64, 64, 0)
    expected = network.scores(image)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(network.scores(image), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_threads_share_memory_only_of_maps_that_no_step_under_way_needs():
    maps = [np.zeros(100, np.uint8) for _ in range(7)]
    steps = [Step(str, (), (maps[i],), 1, 1, (maps[i + 1],)) for i in range(6)]
    shared, _ = with_shared_memory(steps, maps[0], empty_bytes, threads=2)
    buffers = [step.outputs[0] for step in shared]
    overlap = {(i, j) for j in range(6) for i in range(j) if np.shares_memory(buffers[i], buffers[j])}
    # The fourth step begins while some threads are busy with the third one.
    assert (0, 2) not in overlap and (1, 3) not in overlap and (0, 3) in overlap


def test_maps_that_are_not_needed_together_share_memory():
    maps = [np.zeros(size, np.uint8) for size in (100, 300, 200, 100, 50, 7)]
    steps = [Step(str, (), (maps[i],), 1, 1, (maps[i + 1],)) for i in range(5)]
    shared, placed = with_shared_memory(steps, maps[0], empty_bytes)
    counters = placed.counters
    assert 500 <= len(placed.memory) - counters.nbytes < 750
    assert not any(np.shares_memory(array, counters) for step in shared for array in (*step.inputs, *step.outputs))
    first, second, third, fourth, _ = (step.outputs[0] for step in shared)
    assert [step.inputs[0] is buffer for step, buffer in zip(shared[1:], (first, second, third))] == [True] * 3
    assert np.shares_memory(first, third) and not np.shares_memory(third, fourth)
    assert not np.shares_memory(first, second) and not np.shares_memory(second, third)


def test_image_and_result_are_not_in_the_memory_of_a_plan():
    image, a, b = (np.zeros(100, np.uint8) for _ in range(3))
    steps = [Step(str, (), (image,), 1, 1, (a,)), Step(str, (), (a, image), 1, 1, (b,), a)]
    shared, placed = with_shared_memory(steps, image, empty_bytes)
    assert shared[0].inputs[0] is shared[1].inputs[1] is placed.image and placed.image is not image
    assert shared[1].outputs[0] is placed.result and placed.result is not b
    assert not any(np.shares_memory(placed.memory, array) for array in (placed.image, placed.result))
    assert np.shares_memory(placed.memory, shared[0].outputs[0])


def test_a_result_takes_the_place_of_what_it_updates_unless_that_is_needed_later():
    image, a, b, c, d, e = (np.zeros(200, np.uint8) for _ in range(6))
    steps = [
        Step(None, (), (image,), 1, 0, (a,)),
        Step(None, (), (a,), 1, 0, (b,), a),
        Step(None, (), (b,), 1, 0, (c,), b),
        Step(None, (), (c, b), 1, 0, (d,), c),
        Step(None, (), (d,), 1, 0, (e,)),
    ]
    shared, placed = with_shared_memory(steps, image, empty_bytes)
    first, second, third, fourth, _ = (step.outputs[0] for step in shared)
    assert second is first and shared[1].inputs[0] is first
    assert not np.shares_memory(second, third)
    assert fourth is third and shared[3].inputs == (third, second)
    assert 400 <= len(placed.memory) - placed.counters.nbytes < 600


@kernel
def take_all_rows(share):
    y = take_row(share)
    while y < share.height:
        y = next_row(share, y)


@kernel
def note_rows(share, order):
    number = 0
    y = take_row(share)
    while y < share.height:
        order[number], number = y, number + 1
        y = next_row(share, y)


@pytest.mark.parametrize("worker, first", [(0, 0), (1, 2), (2, 6)])
def test_a_thread_begins_with_rows_of_its_own(worker, first):
    order = np.zeros(10, np.int64)
    Run(Plan([Step(note_rows, (), (), 10, 1e9, (order,))], 3)._program).work(worker=worker)
    assert order.tolist() == [*range(first, 10), *range(first)]


def test_a_thread_is_woken_only_where_it_is_worth_it(monkeypatch):
    monkeypatch.undo()
    step = Step(take_all_rows, (), (), 100, 1e5, ())
    assert Plan([step], 2).most_helpers == 0
    assert Plan([step] * 3, 2).most_helpers == 1


@pytest.mark.parametrize("height", [1, 2, 5, 10, 20, 36, 96])
@pytest.mark.parametrize("nanoseconds", [0, 1e9])
def test_threads_that_are_equally_fast_get_as_many_rows(height, nanoseconds):
    plan = Plan([Step(take_all_rows, (), (), height, nanoseconds, ())], 2)
    (_, (share,)), _ = plan._program._kept[1]
    parts = [min(share.rows, height - first) for first in range(0, height, share.rows)]
    if nanoseconds == 0:
        assert parts == [height]
    else:
        assert sum(parts[::2]) == -(-height // 2)


@pytest.mark.parametrize("each_take, rows", [(0, 2), (1e6, 2), (1e7, 5), (1e9, 10)])
def test_rows_are_taken_the_more_at_a_time_the_more_it_costs(each_take, rows):
    plan = Plan([Step(take_all_rows, (), (), 20, 1e9, (), each_take=each_take)], 2)
    (_, (share,)), _ = plan._program._kept[1]
    assert share.rows == rows


@kernel
def copy_last_row_late(values, counters, share, result):
    """The last row only after another thread has done a row of the next step."""
    y = take_row(share)
    while y < share.height:
        while y == share.height - 1 and read(counters, 0, 0) == 0:
            pass
        result[y] = values[y]
        y = next_row(share, y)


@kernel
def add_rows(counters, stride, reach, values, share, result):
    y = take_row(share)
    while y < share.height:
        for row in range(max(stride * y - reach, 0), min(stride * y + reach + 1, len(values))):
            result[y] += values[row]
        add(counters, 0, 0, 1)
        y = next_row(share, y)


@pytest.mark.parametrize("stride, reach", [(1, 0), (1, 1), (2, 0), (2, 1), (2, 3)])
def test_a_step_begins_with_rows_that_are_there_and_waits_for_the_others(stride, reach):
    values, height = np.arange(1, 41), 40 // stride
    counters, copy, result = np.zeros((1, 1), np.int64), np.zeros(40, np.int64), np.zeros(height, np.int64)
    steps = [
        Step(copy_last_row_late, (), (values, counters), 40, 1e9, (copy,)),
        Step(
            add_rows, (counters, stride, reach), (copy,), height, 1e9, (result,), window=Window(stride, -reach, reach)
        ),
    ]
    Plan(steps, 2).run(Helpers(1))
    around = [values[max(stride * y - reach, 0) : stride * y + reach + 1].sum() for y in range(height)]
    assert result.tolist() == around


def test_a_step_needs_all_of_the_one_before_where_it_writes_what_that_one_reads_or_another_input_is_its_result():
    a, b, c, d = (np.zeros(30, np.uint8) for _ in range(4))
    window = Window(2, -1, 1)

    def needed(inputs, outputs, window=window):
        before = Step(None, (), (a, b), 30, 1e9, (c,))
        steps = before, Step(None, (), inputs, 15, 1e9, outputs, window=window)
        _, (_, rows, _, *part) = plan_module._needed(steps, [5, 5], [6, 3])
        return part if rows else None

    assert needed((c, b), (d,)) == [2, -1, 1]
    assert needed((b,), (d,)) is None
    everything = [0, 0, 29]
    assert needed((c, b), (d,), window=None) == everything
    assert needed((b, c), (d,)) == needed((c, c[:1]), (d,)) == everything
    assert needed((c,), (b,)) == needed((c,), (d, c)) == everything


INTERRUPTED = """
import faulthandler, random, signal, time
import numpy as np
from bitseg.network import plan
from bitseg.network.graph import Network
from bitseg.network.operations import Operations
from models import random_model

faulthandler.dump_traceback_later(60, exit=True)
plan.NANOSECONDS_WORTH_A_HELPER, plan.NANOSECONDS_WORTH_A_THREAD = 0, 100
runs = []

class Run(plan.Run):
    has_called = False

    def __init__(self, *arguments):
        super().__init__(*arguments)
        runs.append(self)

    def call(self, *arguments):
        self.has_called = True
        return super().call(*arguments)

class Stop(Exception):
    pass

def stop(*_):
    raise Stop

network = Network(random_model(), Operations(2))
image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
expected = network.scores(image)
plan.Run = Run
signal.signal(signal.SIGALRM, stop)
end, stopped = time.monotonic() + 4, 0
while time.monotonic() < end:
    runs.clear()
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 3e-4))
        for _ in range(5):
            network.scores(image)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Stop:
        stopped += 1
    # One to which nobody was called needs no end.
    assert all(run.closed or not run.has_called for run in runs)
assert stopped > 100 and np.array_equal(network.scores(image), expected)
print("closed")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs timers that send signals")
def test_a_run_that_a_signal_interrupts_is_closed():
    command = [sys.executable, "-c", INTERRUPTED]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert result.stdout == "closed\n", result.stderr


@kernel
def run_out_of_memory(share):
    if len(np.empty(2**62, np.uint8)) == share.step:
        take_row(share)


def test_an_error_in_one_thread_ends_the_others_and_is_raised():
    steps = [Step(kernel, (), (), 4, 1e9, ()) for kernel in (take_all_rows, run_out_of_memory, take_all_rows)]
    with pytest.raises(MemoryError, match="what a kernel needs"):
        Plan(steps, 3).run(Helpers(2))


def test_helpers_serve_several_callers_and_an_error_is_raised_to_its_own():
    helpers = Helpers(2)
    works, fails = (Step(kernel, (), (), 4, 1e9, ()) for kernel in (take_all_rows, run_out_of_memory))
    plans = [Plan([works, works if number % 5 else fails, works], 3) for number in range(100)]
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(plan.run, helpers) for plan in plans]
        failed = [run.exception() is not None for run in runs]
    assert failed == [number % 5 == 0 for number in range(100)]
    assert helpers._not_started == []
    assert_soon(lambda: helpers.board.rows[:, 0].tolist() == [0, 0, 0])


def assert_soon(condition):
    began = time.monotonic()
    while not condition() and time.monotonic() < began + 60:
        time.sleep(0.001)
    assert condition()


@pytest.mark.parametrize(
    "image, mend",
    [
        (np.zeros((32, 40, 3), np.uint8), "multiples of 32"),
        (np.zeros((0, 32, 3), np.uint8), "multiples of 32"),
        (np.zeros((32, 32, 3), np.float32), "give uint8"),
        (np.zeros((32, 32), np.uint8), "give uint8"),
    ],
)
def test_an_image_that_the_kernels_would_misread_is_refused(image, mend):
    with pytest.raises(ValueError, match=mend):
        Network(random_model(), Operations(1)).scores(image)


def test_the_full_preset_has_the_parameters_of_the_paper():
    architecture = preset_model("bfcn50", "1-2").architecture
    parameters = sum(c.weights + c.out_channels for c in architecture.convolutions().values())
    assert abs(parameters / 34.4e6 - 1) < 0.02
