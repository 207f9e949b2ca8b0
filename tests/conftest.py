"""What all tests share: the training code is importable, and data sets that may be missing."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Last, so that `bitseg` is the installed package where there is one; tools/ is never installed.
sys.path.append(str(ROOT))


@pytest.fixture(scope="session")
def examples():
    """Folder of the example photos."""
    return ROOT / "examples"


@pytest.fixture(scope="session")
def voc7():
    """Folder of the VOC subset; tests that need it are skipped where it is missing."""
    folder = ROOT.parent / "shared" / "data" / "voc7"
    if not folder.is_dir():
        pytest.skip("needs the VOC subset beside the checkout (../shared/data/voc7)")
    return folder


@pytest.fixture(scope="session")
def segmenter():
    """The default model on two threads."""
    import bitseg

    return bitseg.load(threads=2)


@pytest.fixture(scope="session")
def chelsea(segmenter, examples):
    """What the default model finds in a photo of a cat."""
    return segmenter.predict(examples / "chelsea.jpg")


@pytest.fixture(scope="session")
def ffmpeg():
    """Path of ffmpeg; tests that need it are skipped where it is missing."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError:
        path = shutil.which("ffmpeg")
        return path or pytest.skip("needs ffmpeg: install it, or `pip install imageio-ffmpeg`")
    return get_ffmpeg_exe()


@pytest.fixture(scope="module")
def uncompiled_on_one_thread():
    """Compiling takes longer than all tests of the training code; what is compiled is tested against this."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.compiler.set_stance("force_eager"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A tiny data set in the layout of ``voc7``."""
    import tiny_training

    return tiny_training.write_data(tmp_path_factory.mktemp("tiny") / "voc7")


@pytest.fixture(autouse=True)
def every_row_worth_a_thread(monkeypatch):
    """Share out even the smallest work, so that small tests show what threads do."""
    monkeypatch.setattr("bitseg.network.plan.NANOSECONDS_WORTH_A_THREAD", 1)
    monkeypatch.setattr("bitseg.network.plan.NANOSECONDS_WORTH_A_HELPER", 0)
