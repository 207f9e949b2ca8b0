"""The model in use: many photos, several threads, pickling, forks."""

import inspect
import io
import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import typing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from models import random_model
from PIL import Image, ImageSequence

import bitseg
from bitseg.errors import BitsegError, ImageError
from bitseg.network import plan
from bitseg.segmenter import Segmenter


@pytest.fixture(scope="module")
def small():
    """A small random network on two threads."""
    return Segmenter(random_model(), threads=2)


def photos(count):
    """Noise of different sizes, so that some take longer than others."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (20 + 50 * (i % 3), 33, 3), np.uint8) for i in range(count)]


def assert_same(first, second):
    np.testing.assert_array_equal(first.mask, second.mask)


def test_all_kinds_of_images_give_the_same_mask(small, examples, tmp_path):
    path = tmp_path / "photo.png"
    with Image.open(examples / "chelsea.jpg") as photo:
        photo.save(path)
    expected = small.predict(path)
    content = path.read_bytes()
    for image in (str(path), content, io.BytesIO(content), Image.open(path), np.asarray(Image.open(path))):
        assert_same(small.predict(image), expected)


def test_path_is_kept_where_there_is_one(small, examples):
    path = examples / "chelsea.jpg"
    assert small.predict(str(path)).path == path
    assert small.predict(path.read_bytes()).path is None


def test_scores_come_at_a_quarter_of_the_working_size_and_only_when_asked_for(small):
    (photo,) = photos(1)
    assert small.predict(photo).scores is None
    segmentation = small.predict(photo, scores=True)
    assert segmentation.scores.dtype == np.float32 and segmentation.scores.shape == (3, 5, 9)
    large = np.zeros((100, 400, 3), np.uint8)
    assert small.predict(large, scores=True).scores.shape == (3, 4, 16)
    assert small.predict(large, size=120, scores=True).scores.shape == (3, 8, 30)


def test_scores_are_largest_where_the_mask_is(segmenter, chelsea, examples):
    scores = segmenter.predict(examples / "chelsea.jpg", scores=True).scores
    coarse = np.asarray(Image.fromarray(chelsea.mask).resize(scores.shape[:0:-1], Image.Resampling.NEAREST))
    assert np.mean(scores.argmax(axis=0) == coarse) > 0.95


@pytest.mark.parametrize("size", [0, -1, 1.5, "512", True, "Native"])
def test_unusable_size_is_refused_with_the_mend(small, size):
    for refused in (lambda: small.predict(photos(1)[0], size=size), lambda: small.predict_many([], size=size)):
        with pytest.raises(BitsegError, match="size must be a whole number of pixels or 'native'"):
            refused()


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_unusable_thread_count_is_refused(threads):
    with pytest.raises(BitsegError, match="threads must be a whole number, at least 1"):
        Segmenter(random_model(), threads)


def test_more_threads_than_any_machine_has_are_refused():
    with pytest.raises(BitsegError, match="threads must be at most 1024"):
        Segmenter(random_model(), 10**20)


def test_a_numba_that_does_not_compile_is_refused(monkeypatch):
    monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    with pytest.raises(BitsegError, match="NUMBA_DISABLE_JIT keeps Numba from compiling"):
        bitseg.load(threads=1)


def test_unknown_kernel_and_palette_are_refused():
    with pytest.raises(BitsegError, match="unknown kernel 'fast': choose"):
        Segmenter(random_model(), kernel="fast")
    with pytest.raises(BitsegError, match="unknown palette 'VOC': did you mean 'voc'"):
        Segmenter(random_model(), palette="VOC")


def test_palette_is_chosen_when_the_model_is_loaded(small):
    model = random_model()
    model.palette[:] = [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    colors = {name: Segmenter(model, 1, palette=name).palette.tolist() for name in ("voc", "model")}
    assert colors == {"voc": [[0, 0, 0], [64, 0, 0], [64, 0, 128]], "model": [[0, 0, 0], [1, 2, 3], [4, 5, 6]]}
    assert small.palette.tolist() == Segmenter(model, 1, palette="safe").palette.tolist()
    assert small.predict(photos(1)[0]).palette is small.palette


@pytest.mark.parametrize("jobs", [None, 1, 2, 5])
def test_many_photos_give_what_each_gives_alone_in_their_order(small, jobs):
    images = photos(12)
    segmentations = list(small.predict_many(images, jobs=jobs))
    assert len(segmentations) == 12
    for image, segmentation in zip(images, segmentations, strict=True):
        np.testing.assert_array_equal(segmentation.image, image)
        assert_same(segmentation, small.predict(image))


def test_size_and_scores_reach_every_photo(small):
    for segmentation in small.predict_many([np.zeros((100, 400, 3), np.uint8)] * 2, size=120, scores=True):
        assert segmentation.scores.shape == (3, 8, 30)


def test_networks_of_many_photos_are_made_once():
    segmenter = Segmenter(random_model(), threads=5)
    images = photos(4)
    for _ in range(2):
        assert len(list(segmenter.predict_many(images, jobs=2))) == 4
    network = segmenter._network_for(2)
    assert network is segmenter._network_for(2) and network.operations.threads == 3
    assert segmenter._network_for(5) is segmenter._network_for(50) is not network
    assert segmenter._network_for(1) is segmenter.network and segmenter.network.operations.threads == 5
    assert network.layers is segmenter.network.layers


def test_of_a_large_photo_no_memory_is_kept(small, monkeypatch):
    monkeypatch.setattr(plan, "KEPT_BYTES", 1)
    assert len(list(small.predict_many(photos(3), jobs=2))) == 3
    kept = small._network_for(2).operations._idle_workspaces
    assert kept and not any(len(workspace._memory) for workspace in kept)


def test_callers_of_jobs_have_the_threads_among_them(small):
    segmenter, images = Segmenter(small.model, threads=3, jobs=2), photos(6)
    assert (segmenter.threads, segmenter.jobs, segmenter.network.operations.threads) == (3, 2, 2)
    with ThreadPoolExecutor(2) as pool:
        for segmentation, image in zip(pool.map(segmenter.predict, images), images, strict=True):
            assert_same(segmentation, small.predict(image))
    assert pickle.loads(pickle.dumps(segmenter)).jobs == 2
    with pytest.raises(BitsegError, match="jobs must be a whole number, at least 1, not 0"):
        Segmenter(small.model, jobs=0)


def test_photos_are_in_work_at_the_same_time(small, monkeypatch):
    both = threading.Barrier(2, timeout=20)
    predict = small._predict

    def meet(*arguments):
        both.wait()
        return predict(*arguments)

    monkeypatch.setattr(small, "_predict", meet)
    assert len(list(small.predict_many(photos(4), jobs=2))) == 4


@pytest.mark.parametrize("jobs", [1, 3])
def test_endless_images_are_read_only_a_little_ahead(small, jobs):
    read = []

    def endless():
        for photo in itertools.cycle(photos(3)):
            read.append(photo)
            yield photo

    segmentations = small.predict_many(endless(), jobs=jobs)
    for taken in range(1, 20):
        next(segmentations)
        assert len(read) < taken + 2 * jobs
    segmentations.close()


def test_images_are_asked_for_in_the_thread_of_the_caller(small):
    def images():
        for photo in photos(5):
            assert threading.current_thread() is threading.main_thread()
            yield photo

    assert len(list(small.predict_many(images(), jobs=2))) == 5


def test_nothing_is_read_before_the_first_result_is_asked_for(small):
    small.predict_many(pytest.fail(name) for name in ("read",))


def test_leaving_early_ends_the_threads(small):
    for _ in small.predict_many(itertools.repeat(photos(1)[0]), jobs=3):
        break
    deadline = time.monotonic() + 20
    while any(thread.name.startswith("bitseg-photo") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_error_is_raised_at_its_place(small):
    images = [*photos(5), "missing.jpg", *photos(5)]
    done = 0
    with pytest.raises(ImageError, match=r"missing\.jpg: not found"):
        for _ in small.predict_many(images, jobs=3):
            done += 1
    assert done == 5


def test_photos_with_errors_are_reported_in_order_and_left_out(small):
    first, second, third = photos(3)
    reported = []
    segmentations = small.predict_many(
        ["missing.jpg", first, b"no picture", second, third, None],
        jobs=2,
        on_error=lambda image, error: reported.append((image, type(error), str(error).split(":")[0])),
    )
    for image, segmentation in zip((first, second, third), segmentations, strict=True):
        assert_same(segmentation, small.predict(image))
    assert reported == [
        ("missing.jpg", ImageError, "missing.jpg"),
        (b"no picture", ImageError, "picture data"),
        (None, ImageError, "not a picture"),
    ]


@pytest.mark.parametrize("most", [0, 1])
def test_as_many_threads_as_the_system_allows_take_part(small, monkeypatch, most):
    started, refused = [], []

    def start(thread):
        if len(started) == most:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real_start(thread)

    photo, expected = photos(1)[0], small.predict(photos(1)[0])  # for which the network has its threads
    real_start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    segmented = list(small.predict_many([photo] * 7, jobs=3))
    monkeypatch.undo()
    assert len(segmented) == 7 and len(started) == most and refused
    for segmentation in segmented:
        assert_same(segmentation, expected)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="has no timers that interrupt")
def test_after_an_interrupt_at_any_time_nobody_waits(small):
    class Interrupt(Exception):
        pass

    def interrupt(number, frame):
        raise Interrupt

    images = photos(6)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(60):
            signal.setitimer(signal.ITIMER_REAL, 1e-4 * (1 + number))
            try:
                for _ in small.predict_many(images * 20, jobs=2):
                    pass
            except Interrupt:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert_same(next(iter(small.predict_many(images))), small.predict(images[0]))


NOT_CLOSED = """
from bitseg.segmenter import in_order

def main():
    results = in_order(str, range(100), 2)
    for result in results:
        raise ValueError(result)

main()
"""


def test_a_program_ends_that_leaves_photos_in_work():
    result = subprocess.run([sys.executable, "-c", NOT_CLOSED], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and result.stderr.endswith("ValueError: 0\n")


def test_an_error_of_the_program_is_not_taken_for_one_of_a_photo(small, monkeypatch):
    monkeypatch.setattr(small, "_predict", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(small.predict_many(photos(3), on_error=lambda image, error: None))


def test_frames_count_as_they_were_when_they_were_taken(small):
    buffer = np.zeros((40, 50, 3), np.uint8)

    def frames():
        for number in range(10):
            buffer[:] = 20 * number
            yield buffer

    assert [segmentation.image[0, 0, 0] for segmentation in small.predict_many(frames())] == [*range(0, 200, 20)]
    content = io.BytesIO()
    Image.new("RGB", (50, 40), "black").save(
        content, "GIF", save_all=True, append_images=[Image.new("RGB", (50, 40), (40 * n,) * 3) for n in range(1, 6)]
    )
    animation = ImageSequence.Iterator(Image.open(content))
    assert [segmentation.image[0, 0, 0] for segmentation in small.predict_many(animation)] == [*range(0, 240, 40)]


def test_an_array_that_is_no_photo_is_reported_as_it_was_given(small):
    refused = np.zeros((4, 4))
    reported = []
    images = [*photos(1), refused, *photos(1)]
    assert len(list(small.predict_many(images, on_error=lambda image, error: reported.append((image, error))))) == 2
    ((image, error),) = reported
    assert image is refused and isinstance(error, ImageError)


def test_buffers_and_files_may_change_or_be_closed_once_the_next_one_is_taken(small, tmp_path):
    contents = []
    for shade in range(0, 240, 20):
        Image.new("RGB", (40, 30), (shade, 0, 0)).save(tmp_path / "photo.png")
        contents.append((tmp_path / "photo.png").read_bytes())

    def buffers():
        buffer = bytearray()
        for content in contents:
            buffer[:] = content
            yield buffer

    def views():
        buffer = bytearray(max(map(len, contents)))
        for content in contents:
            buffer[: len(content)] = content
            yield memoryview(buffer)[: len(content)]

    def files():
        for content in contents:
            (tmp_path / "photo.png").write_bytes(content)
            with open(tmp_path / "photo.png", "rb") as file:
                yield file

    for images in (buffers, views, files):
        found = [segmentation.image[0, 0, 0] for segmentation in small.predict_many(images(), jobs=2)]
        assert found == [*range(0, 240, 20)]


def test_what_comes_before_an_error_of_the_source_is_segmented(small):
    def camera():
        yield from photos(5)
        raise ConnectionError("camera lost")

    segmentations = []
    with pytest.raises(ConnectionError, match="camera lost"):
        segmentations.extend(small.predict_many(camera(), jobs=2))
    for image, segmentation in zip(photos(5), segmentations, strict=True):
        np.testing.assert_array_equal(segmentation.image, image)


@pytest.mark.parametrize("images", ["photo.jpg", b"content", io.BytesIO(), photos(1)[0], Image.new("RGB", (9, 9))])
def test_one_photo_instead_of_several_is_refused_with_the_mend(small, images):
    with pytest.raises(BitsegError, match="pass a list"):
        small.predict_many(images)


@pytest.mark.parametrize("jobs", [0, 1.5, "2"])
def test_unusable_number_of_jobs_is_refused(small, jobs):
    with pytest.raises(BitsegError, match="jobs must be a whole number"):
        small.predict_many([], jobs=jobs)


def test_several_threads_may_use_one_segmenter(small):
    images = photos(24)
    expected = [small.predict(image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        for segmentation, alone in zip(pool.map(small.predict, images), expected, strict=True):
            assert_same(segmentation, alone)


def test_several_threads_may_segment_many_photos_at_once(small):
    images = photos(6)
    expected = [small.predict(image) for image in images]
    with ThreadPoolExecutor(3) as pool:
        for segmentations in pool.map(lambda _: list(small.predict_many(images)), range(3)):
            for segmentation, alone in zip(segmentations, expected, strict=True):
                assert_same(segmentation, alone)


def test_pickled_segmenter_keeps_model_and_settings():
    segmenter = Segmenter(random_model(), threads=3, kernel="popcount", palette="voc")
    (photo,) = photos(1)
    expected = segmenter.predict(photo)
    copy = pickle.loads(pickle.dumps(segmenter))
    assert_same(copy.predict(photo), expected)
    assert copy.threads == 3 and copy.network.operations.kernel == "popcount"
    np.testing.assert_array_equal(copy.palette, segmenter.palette)


def test_pickle_holds_little_more_than_the_weights(segmenter):
    weights = sum(layer.codes.size for layer in segmenter.model.layers.values())
    assert len(pickle.dumps(segmenter)) < 1.2 * weights


def test_result_can_be_pickled(small):
    segmentation = small.predict(photos(1)[0], scores=True)
    copy = pickle.loads(pickle.dumps(segmentation))
    assert_same(copy, segmentation)
    assert copy.classes == segmentation.classes


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="only Unix forks")


@needs_fork
def test_forked_child_segments_while_its_parent_is_at_work(small):
    images = photos(3)
    expected = [small.predict(image) for image in images]
    with ThreadPoolExecutor(2) as pool:
        stop = threading.Event()
        busy = [pool.submit(_segment_until, stop, small, images[0]) for _ in range(2)]
        try:
            for _ in range(5):
                assert (
                    _status_of_fork(lambda: [assert_same(*pair) for pair in zip(map(small.predict, images), expected)])
                    == 0
                )
                assert _status_of_fork(lambda: list(small.predict_many(images, jobs=2))) == 0
        finally:
            stop.set()
        for worker in busy:
            worker.result()


def _segment_until(stop, segmenter, image):
    while not stop.is_set():
        segmenter.predict(image)


def _status_of_fork(work):
    """Exit status of a forked child that does some work: 0, 1 after an error, or -9 if it hangs."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 20
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.002)


@needs_fork
def test_pool_of_forked_processes_may_use_a_segmenter(small):
    images = photos(4)
    expected = [small.predict(image) for image in images]
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        for segmentation, alone in zip(pool.map(small.predict, images), expected, strict=True):
            assert_same(segmentation, alone)


def test_loaded_model_is_the_one_of_this_name(segmenter):
    assert segmenter.model.name == "voc7-w2a2" and segmenter.threads == 2
    assert segmenter.class_names == ("background", "cat", "cow", "dog", "horse", "person", "sheep")
    with pytest.raises(bitseg.ModelFileError, match="did you mean 'voc7-w2a2'"):
        bitseg.load("voc7-w2a")


@pytest.mark.parametrize("owner", [bitseg.load, Segmenter, bitseg.Segmentation])
def test_public_functions_say_their_types(owner):
    functions = [owner] if inspect.isfunction(owner) else [f for n, f in vars(owner).items() if inspect.isfunction(f)]
    for function in functions:
        if not function.__name__.startswith("_"):
            assert set(typing.get_type_hints(function)) >= {*inspect.signature(function).parameters} - {
                "self",
                "options",
            }
