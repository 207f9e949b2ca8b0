"""What all tests share: the training code is importable, and data sets that may be missing."""

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


@pytest.fixture(autouse=True)
def every_row_worth_a_thread(monkeypatch):
    """Share out even the smallest work, so that small tests show what threads do."""
    monkeypatch.setattr("bitseg.network.plan.NANOSECONDS_WORTH_A_THREAD", 1)
