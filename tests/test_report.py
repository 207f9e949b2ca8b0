"""The page that `bitseg eval --report` writes: sound HTML, nothing from elsewhere, the best and the worst photos."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitseg.datasets import IGNORE
from bitseg.errors import ImageError
from bitseg.evaluation import EvaluatedPhoto
from bitseg.metrics import confusion_matrix
from bitseg.palette import palette_for
from bitseg.report import Gallery, check_report, write_report

CLASSES = ("background", "cat", "<dog> & 'co'")
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements of a page, which must be closed in order, with their attributes and texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute of {tag} stands there twice"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else None, data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def texts_of(self, tag):
        return [text for name, text in self.texts if name == tag]


def evaluated(name, wrong, shape=(20, 10)):
    """A photo half background and half cat, of whose pixels `wrong` are predicted as the third class."""
    truth = np.zeros(shape, np.uint8)
    truth[:, shape[1] // 2 :] = 1
    truth[0, 0] = IGNORE
    prediction = truth.copy()
    prediction.ravel()[[0, *range(2, 2 + wrong)]] = 2
    photo = np.full((*shape, 3), 100, np.uint8)
    return EvaluatedPhoto(Path(name), photo, truth, prediction, confusion_matrix(truth, prediction, 3))


@pytest.fixture
def gallery():
    gallery = Gallery(CLASSES, 2)
    for wrong in (4, 0, 5, 3, 1, 2):
        gallery.add(evaluated(f"wrong{wrong}<b>.jpg", wrong))
    return gallery


@pytest.fixture
def text(gallery, tmp_path):
    confusion = np.array([[900, 50, 50], [4, 96, 0], [0, 0, 0]])
    facts = {"command": "bitseg eval --root '<script>alert(1)</script>' https://example.org/"}
    write_report(tmp_path / "report.html", "model & data", facts, CLASSES, confusion, gallery)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def page(text):
    return Page(text)


def decode(jpeg):
    with Image.open(BytesIO(jpeg)) as picture:
        assert picture.format == "JPEG"
        return np.asarray(picture, int)


def test_the_gallery_keeps_the_best_and_the_worst_photos(gallery):
    assert [photo.name for photo in gallery.best] == ["wrong0<b>.jpg", "wrong1<b>.jpg"]
    assert [photo.name for photo in gallery.worst] == ["wrong5<b>.jpg", "wrong4<b>.jpg"]
    assert gallery.best[0].miou == 1 and gallery.best[0].iou["cat"] == 1


def test_the_gallery_does_not_grow_with_the_photos():
    gallery = Gallery(CLASSES, 3)
    order = np.random.default_rng(0).permutation(60)
    for wrong in order:
        gallery.add(evaluated(str(wrong), wrong))
    assert [photo.name for photo in gallery.best] == ["0", "1", "2"]
    assert [photo.name for photo in gallery.worst] == ["59", "58", "57"]


@pytest.mark.parametrize(("photos", "best", "worst"), [(0, 0, 0), (1, 1, 0), (3, 2, 1), (4, 2, 2)])
def test_of_few_photos_none_is_shown_twice(photos, best, worst):
    gallery = Gallery(CLASSES, 6)
    for wrong in range(photos):
        gallery.add(evaluated(str(wrong), wrong))
    assert (len(gallery.best), len(gallery.worst)) == (best, worst)
    assert len({photo.name for photo in gallery.best + gallery.worst}) == photos


def test_a_photo_without_counted_pixels_is_not_shown():
    nothing = np.full((4, 4), IGNORE, np.uint8)
    gallery = Gallery(CLASSES)
    photo = np.zeros((4, 4, 3), np.uint8)
    gallery.add(EvaluatedPhoto(Path("void.jpg"), photo, nothing, nothing * 0, np.zeros((3, 3), np.int64)))
    assert gallery.best == gallery.worst == []


def test_thumbnails_are_small_and_show_the_classes():
    gallery = Gallery(CLASSES)
    gallery.add(evaluated("large.jpg", 0, (1000, 500)))
    truth, prediction = (decode(jpeg) for jpeg in (gallery.best[0].truth, gallery.best[0].prediction))
    assert truth.shape == prediction.shape == (400, 200, 3)
    # Background keeps the grey of the photo, the cat takes on its class colour.
    assert np.abs(truth[200, 40] - 100).max() < 5
    expected = 0.4 * 100 + 0.6 * palette_for(CLASSES)[1].astype(int)
    assert np.abs(prediction[200, 160] - expected).max() < 8


def test_ignored_pixels_are_pale():
    shape = (64, 64)
    truth = np.full(shape, IGNORE, np.uint8)
    truth[:, 32:] = 0
    confusion = confusion_matrix(truth, truth * 0, 3)
    gallery = Gallery(CLASSES)
    gallery.add(EvaluatedPhoto(Path("a.jpg"), np.zeros((*shape, 3), np.uint8), truth, truth * 0, confusion))
    picture = decode(gallery.best[0].truth)
    assert picture[32, 8].min() > 140 and picture[32, 56].max() < 10


def test_the_page_is_sound_html_with_all_parts(text, page):
    assert text.startswith("<!DOCTYPE html>")
    assert {"lang": "en"} in page.all("html") and page.texts_of("title") == page.texts_of("h1") == ["model & data"]
    assert page.texts_of("h2") == ["Classes", "Confusion matrix", "Best photos", "Worst photos"]
    for name in CLASSES:
        assert name in page.texts_of("th")


def test_the_page_shows_figures_and_a_row_normalised_confusion_matrix(page):
    figures = page.texts_of("dd")
    # IoU: 900 / 1004, 96 / 150, 0 / 50; of 1100 pixels 996 are right.
    assert figures[:2] == ["51.2%", "90.5%"]
    cells = [attributes for attributes in page.all("td") if "title" in attributes]
    assert [cell["title"] for cell in cells[:2]] == [
        "background found as background: 90.0%, 900 pixels",
        "background found as cat: 5.0%, 50 pixels",
    ]
    assert [cell["class"].split()[0] for cell in cells] == ["hit", "miss", "miss", "miss", "hit", "miss"]
    assert "96" in page.texts_of("td")


def test_the_page_holds_truth_and_prediction_of_its_photos(page):
    pictures = page.all("img")
    assert [picture["alt"] for picture in pictures[:2]] == ["truth of wrong0<b>.jpg", "prediction of wrong0<b>.jpg"]
    assert len(pictures) == 8
    for picture in pictures:
        head, _, data = picture["src"].partition(",")
        assert head == "data:image/jpeg;base64"
        assert decode(base64.b64decode(data, validate=True)).shape == (20, 10, 3)


def test_the_page_loads_nothing(text, page):
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in {"href", "srcset", "action", "background"}, (tag, name)
            assert name != "src" or value.startswith("data:")
    assert not re.search(r"url\(|@import", text)
    # What looks like an address is text of the command.
    assert text.count("://") == 1 and any("https://example.org/" in text for text in page.texts_of("dd"))
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_names_cannot_become_markup(text, page):
    assert "<script" not in text and "<dog>" not in text and "<b>." not in text
    assert any("<script>alert(1)</script>" in text for text in page.texts_of("dd"))


def test_names_that_are_no_text_do_not_stop_a_report(tmp_path):
    gallery = Gallery(CLASSES)
    gallery.add(evaluated("\udcff.jpg", 1))
    write_report(tmp_path / "report.html", "\udcff", {}, CLASSES, np.zeros((3, 3), np.int64), gallery)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.texts_of("h1") == ["?"] and page.texts_of("dd")[:2] == ["-", "-"]


@pytest.mark.parametrize(
    ("name", "message"), [("photo.jpg", r"photo\.jpg: reports end in \.html"), ("none/r.html", "none does not exist")]
)
def test_a_report_that_cannot_be_written_is_refused(tmp_path, name, message):
    with pytest.raises(ImageError, match=message):
        check_report(tmp_path / name)
