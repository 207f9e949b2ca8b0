"""The documentation runs as written: docstring examples, the guide, and the applications."""

import contextlib
import doctest
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bitseg

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
APPLICATIONS = DOCS / "applications"
MODULES = ("bitseg", *(f"bitseg.{name}" for name in ("images", "palette", "rle", "segmentation", "segmenter")))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder but for the example photos, which is the current one."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(workplace, name):
    result = doctest.testmod(import_module(name))
    assert result.attempted and not result.failed


@pytest.mark.parametrize("name", ["load", "Segmenter.predict", "Segmenter.predict_many", "Segmentation.save"])
def test_what_is_called_first_has_an_example(name):
    function = bitseg
    for part in name.split("."):
        function = getattr(function, part)
    assert ">>> " in function.__doc__


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_python_runs_from_top_to_bottom_and_prints_what_the_page_says(workplace, page):
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == text.count("```python\n") and text.count("```") == 2 * sum(1 + bool(b[1]) for b in blocks)
    names = {"__name__": "guide"}
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), names)
        assert printed.getvalue() == expected, code


@pytest.mark.parametrize("page", ["README.md", "weights/README.md", *(f"docs/{p.name}" for p in DOCS.glob("*.md"))])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    for link in links:
        assert link.startswith("https://") or ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize(
    "page, folders", [("README.md", ["avx512-vnni", "avx2-only-zen5"]), ("docs/speed.md", ["amx"])]
)
def test_speed_tables_are_what_was_measured(page, folders):
    tables = (ROOT / page).read_text().split("| network, bits, size, threads | bitseg |")[1:]
    for table, folder in zip(tables, folders, strict=True):
        rows = re.findall(r"^\| `([\w-]+)`, (\d-\d), (\d+x\d+), (\d) \| (.*) \|$", table, re.MULTILINE)
        assert len(rows) > 10
        for name, bits, size, threads, cells in rows:
            parts = [name, *([bits] if name.endswith("50") else []), size, threads]
            measured = json.loads((DOCS / "measured" / folder / f"{'-'.join(parts)}.json").read_text())
            assert (measured["bits"], measured["threads"]) == (bits, int(threads))
            expected = [*measured["median_ms"].values(), measured["ratio_fp32"], measured["ratio_int8"]]
            for cell, value in zip(cells.split(" | "), expected, strict=True):
                printed = cell.strip("*x")
                assert printed == f"{value:.{len(printed.partition('.')[2])}f}", (name, cell)


def test_the_guide_leads_to_every_application():
    links = re.findall(r"\]\(([^)]+)\)", (DOCS / "guide.md").read_text())
    assert {f"applications/{path.name}" for path in APPLICATIONS.glob("*.py")} <= set(links)


@contextlib.contextmanager
def started(name, *arguments):
    """An application that runs in its own process, ended at last."""
    environment = {**os.environ, "PYTHONPATH": str(Path(bitseg.__file__).parents[1])}
    command = [sys.executable, str(APPLICATIONS / name), *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def finished(name, *arguments):
    """Exit status, output and errors of an application that ends by itself."""
    with started(name, *arguments) as process:
        stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_folder_watcher_treats_photos_as_they_appear(tmp_path, examples, chelsea):
    inbox, outbox = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    outbox.mkdir()
    shutil.copy(examples / "chelsea.jpg", inbox)
    (inbox / "notes.txt").write_text("no photo")
    with started("folder_watcher.py", inbox, outbox, "--interval", "0.05") as watcher:
        wait_for((outbox / "chelsea.jpg.mask.png").exists)
        content = (examples / "astronaut.jpg").read_bytes()
        (inbox / "cut.jpg").write_bytes(content[:20000])
        shutil.copy(examples / "astronaut.jpg", inbox / "astronaut.JPG")
        wait_for((outbox / "astronaut.JPG.mask.png").exists)
        watcher.terminate()
        stdout, stderr = watcher.communicate(timeout=30)
    assert stdout.splitlines()[0] == f"{outbox / 'chelsea.jpg.mask.png'}: cat, background"
    assert stderr.count("\n") <= 1 and "Traceback" not in stderr
    assert sorted(os.listdir(outbox)) == ["astronaut.JPG.mask.png", "chelsea.jpg.mask.png"]
    with Image.open(outbox / "chelsea.jpg.mask.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), chelsea.mask)


def test_folder_watcher_reports_an_unusable_photo_once_and_goes_on_when_it_changes(tmp_path, examples):
    inbox, outbox = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    outbox.mkdir()
    (inbox / "photo.jpg").write_bytes(b"no picture")
    with started("folder_watcher.py", inbox, outbox, "--as", "overlay", "--interval", "0.05") as watcher:
        assert watcher.stderr.readline().startswith(f"Error: {inbox / 'photo.jpg'}: not a picture")
        time.sleep(0.3)
        shutil.copy(examples / "chelsea.jpg", inbox / "photo.jpg")
        wait_for((outbox / "photo.jpg.overlay.png").exists)
        watcher.terminate()
        assert watcher.communicate(timeout=30)[1] == ""


def test_folder_watcher_refuses_one_folder_for_both(tmp_path):
    status, _, stderr = finished("folder_watcher.py", tmp_path, tmp_path)
    assert status == 2 and "give two folders" in stderr


@pytest.fixture(scope="module")
def endpoint():
    """Host and port of the HTTP endpoint."""
    with started("http_endpoint.py", "--port", "0") as server:
        yield server.stdout.readline().strip().removeprefix("http://")


def answer_to(endpoint, method, path, body=None, headers=None):
    """Status, content type and content of an answer."""
    connection = http.client.HTTPConnection(endpoint, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read()


def test_endpoint_answers_a_photo_with_its_mask(endpoint, examples, chelsea):
    status, content_type, content = answer_to(endpoint, "POST", "/mask", (examples / "chelsea.jpg").read_bytes())
    assert status == 200 and content_type == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), chelsea.mask)


def test_endpoint_answers_a_photo_with_json(endpoint, examples, chelsea):
    status, content_type, content = answer_to(endpoint, "POST", "/json", (examples / "chelsea.jpg").read_bytes())
    assert status == 200 and content_type == "application/json"
    assert json.loads(content) == chelsea.summary()


@pytest.mark.parametrize(
    "method, path, body, headers, status, line",
    [
        ("POST", "/mask", b"no picture", {}, 415, "picture data: not a picture"),
        ("POST", "/mask", b"", {}, 415, "picture data: is empty"),
        ("POST", "/masks", b"photo", {}, 404, "no such path: POST a photo to /mask, "),
        ("GET", "/mask", None, {}, 405, "POST a photo to /mask, "),
        ("PUT", "/mask", b"photo", {}, 501, "Unsupported method"),
        ("POST", "/mask", bytes(20_000_001), {}, 413, "too large: send at most 20 MB"),
        ("POST", "/mask", None, {"Content-Length": "-1"}, 411, "send the photo with a Content-Length"),
        ("POST", "/mask", None, {"Content-Length": "9" * 5000}, 411, "send the photo with a Content-Length"),
        ("POST", "/mask", None, {"Transfer-Encoding": "chunked"}, 411, "send the photo with a Content-Length"),
        ("POST", "/mask", b"--x", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "a form: send the photo"),
    ],
)
def test_endpoint_refuses_with_one_line(endpoint, method, path, body, headers, status, line):
    found_status, content_type, content = answer_to(endpoint, method, path, body, headers)
    assert found_status == status and content_type.startswith("text/plain")
    assert content.decode().startswith(line) and content.count(b"\n") == 1


def test_endpoint_refuses_a_small_file_with_too_many_pixels(endpoint):
    content = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(content, "PNG")
    status, _, line = answer_to(endpoint, "POST", "/mask", content.getvalue())
    assert status == 415 and b"too many pixels" in line


def test_endpoint_keeps_a_connection_after_an_error(endpoint, examples):
    connection = http.client.HTTPConnection(endpoint, timeout=30)
    with contextlib.closing(connection):
        for body, status in ((b"no picture", 415), ((examples / "chelsea.jpg").read_bytes(), 200)):
            connection.request("POST", "/mask", body)
            response = connection.getresponse()
            response.read()
            assert response.status == status


def test_endpoint_answers_many_who_ask_at_once(endpoint):
    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(lambda _: answer_to(endpoint, "POST", "/mask", b"no picture")[0], range(60)))
    assert answers == [415] * 60


def test_endpoint_takes_no_body_for_a_request(endpoint):
    connection = http.client.HTTPConnection(endpoint, timeout=30)
    with contextlib.closing(connection):
        for method, status in (("GET", 405), ("POST", 415)):
            connection.request(method, "/mask", b"no picture")
            response = connection.getresponse()
            response.read()
            assert response.status == status


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_endpoint_closes_a_connection_as_asked(endpoint, method):
    host, port = endpoint.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{method} /mask HTTP/1.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.1 4")


def test_endpoint_says_in_one_line_why_it_cannot_begin(endpoint):
    for port, reason in (endpoint.rpartition(":")[2], "Address already in use"), ("99999", "Invalid value"):
        status, _, stderr = finished("http_endpoint.py", "--port", port)
        assert status in (1, 2) and "Traceback" not in stderr
        assert stderr.splitlines()[-1].startswith("Error: ") and reason in stderr


def test_watcher_says_in_one_line_what_is_wrong(tmp_path, examples):
    for name in ("inbox", "outbox"):
        (tmp_path / name).mkdir()
    status, _, stderr = finished("folder_watcher.py", tmp_path / "inbox", tmp_path / "outbox", "--interval", "nan")
    assert status == 2 and "--interval must be a number" in stderr
    with started("folder_watcher.py", tmp_path / "inbox", tmp_path / "outbox", "--interval", "0.05") as watcher:
        shutil.copy(examples / "chelsea.jpg", tmp_path / "inbox")
        wait_for((tmp_path / "outbox" / "chelsea.jpg.mask.png").exists)
        shutil.rmtree(tmp_path / "inbox")
        _, stderr = watcher.communicate(timeout=60)
    assert watcher.returncode == 1 and "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("Error: ") and "inbox" in stderr


def test_privacy_filter_goes_on_after_a_photo_that_no_jpeg_can_hold(tmp_path, examples):
    Image.new("RGB", (70_000, 2)).save(tmp_path / "wide.png")
    status, stdout, stderr = finished("privacy_filter.py", tmp_path / "wide.png", examples / "chelsea.jpg", tmp_path)
    assert status == 1 and f"Error: {tmp_path / 'wide.blurred.jpg'}: cannot be written" in stderr
    assert stdout.split() == [str(tmp_path / "chelsea.blurred.jpg")]
    assert not (tmp_path / "wide.blurred.jpg").exists()


def test_privacy_filter_wants_a_probability_that_is_a_number(tmp_path, examples):
    status, _, stderr = finished("privacy_filter.py", examples / "chelsea.jpg", tmp_path, "--probability", "nan")
    assert status == 2 and "--probability must be a number" in stderr and not list(tmp_path.iterdir())


def test_privacy_filter_blurs_people_and_nothing_else(tmp_path, examples):
    status, stdout, stderr = finished(
        "privacy_filter.py", examples / "astronaut.jpg", examples / "chelsea.jpg", tmp_path / "missing.jpg", tmp_path
    )
    # Before it, a line may say that kernels are being compiled.
    assert status == 1 and stderr.splitlines()[-1] == f"Error: {tmp_path / 'missing.jpg'}: not found; check the path"
    assert "Traceback" not in stderr
    assert stdout.split() == [str(tmp_path / f"{name}.blurred.jpg") for name in ("astronaut", "chelsea")]
    before, after = (sharpness(path) for path in (examples / "astronaut.jpg", tmp_path / "astronaut.blurred.jpg"))
    face, rocket = np.s_[80:170, 180:270], np.s_[20:250, 390:430]
    assert after[face].mean() < 0.4 * before[face].mean()
    assert after[rocket].mean() > 0.8 * before[rocket].mean()
    before, after = (sharpness(path) for path in (examples / "chelsea.jpg", tmp_path / "chelsea.blurred.jpg"))
    assert after.mean() > 0.8 * before.mean()


def sharpness(path):
    """How much each pixel differs from the next."""
    with Image.open(path) as photo:
        return np.abs(np.diff(np.asarray(photo.convert("L"), float), axis=1))


def test_privacy_filter_replaces_nothing(tmp_path, examples):
    (tmp_path / "chelsea.blurred.jpg").write_text("mine")
    status, _, stderr = finished("privacy_filter.py", examples / "chelsea.jpg", tmp_path, "--model", "voc7-w2a2")
    assert status == 1 and "exists already" in stderr and stderr.count("\n") == 1
    assert (tmp_path / "chelsea.blurred.jpg").read_text() == "mine"
