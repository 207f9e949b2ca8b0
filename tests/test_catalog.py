"""What is said about installed models and about any one of them."""

import hashlib
import json
from dataclasses import replace

import pytest
from models import random_model

from bitseg.catalog import describe_model, list_models
from bitseg.errors import ModelFileError
from bitseg.model_file import HEADER_BYTES, installed_models, read_model, write_model
from bitseg.segmenter import DEFAULT_MODEL


@pytest.fixture(scope="module")
def about():
    """All about the default model."""
    return describe_model(DEFAULT_MODEL)


@pytest.fixture
def random_file(tmp_path):
    """A model file that bitseg does not ship."""
    path = tmp_path / "random.h5"
    write_model(path, random_model())
    return path


def test_installed_models_are_listed_by_name():
    models = list_models()
    assert [model.name for model in models] == [path.stem for path in installed_models()]
    assert DEFAULT_MODEL in [model.name for model in models]
    assert all(0 < model.miou < 1 and model.file_size > 0 for model in models)


def test_description_is_json(about):
    assert json.loads(json.dumps(about, allow_nan=False))["layers"] == about["layers"]


def test_description_repeats_what_the_file_says(about):
    (path,) = (path for path in installed_models() if path.stem == DEFAULT_MODEL)
    model = read_model(path)
    assert about["training"] == model.training
    assert [found["name"] for found in about["classes"]] == list(model.architecture.classes)
    content = path.read_bytes()
    assert about["file"] == {
        "path": str(path),
        "bytes": len(content),
        "format_version": 1,
        "sha256": hashlib.sha256(content[HEADER_BYTES:]).hexdigest(),
    }


def test_totals_are_the_sums_of_the_layers(about):
    for entry in ("weights", "multiplications", "bit_operations"):
        assert about[entry] == sum(layer[entry] for layer in about["layers"]) > 0
    assert about["fp32_bytes"] == 4 * about["weights"] > about["file"]["bytes"] > about["packed_bytes"]


def test_cost_is_that_at_the_working_size_or_at_the_size_that_is_given(about):
    assert about["size"] == [384, 288]
    wide = describe_model(DEFAULT_MODEL, (768, 288))
    assert wide["size"] == [768, 288] and wide["multiplications"] == 2 * about["multiplications"]
    assert wide["layers"][0]["output_size"] == [384, 144]


def test_the_default_size_is_one_that_the_network_takes(tmp_path):
    model = random_model()
    path = tmp_path / "model.h5"
    write_model(path, replace(model, preprocessing=replace(model.preprocessing, working_size=480)))
    assert describe_model(path)["size"] == [480, 384]


def test_licence_is_that_of_the_file_or_of_the_models_that_bitseg_ships(about, random_file, tmp_path, monkeypatch):
    assert about["licence"].startswith("MIT")
    monkeypatch.chdir(installed_models()[0].parent)
    assert describe_model(f"./{DEFAULT_MODEL}.h5")["licence"] == about["licence"]
    assert describe_model(random_file)["licence"] is None
    model = random_model()
    path = tmp_path / "licensed.h5"
    write_model(path, replace(model, training={**model.training, "licence": "CC0"}))
    assert describe_model(path)["licence"] == "CC0"


@pytest.mark.parametrize("name", ["voc7w2a2", "voc-w2a2", "VOC7-W2A2"])
def test_a_mistyped_name_gets_a_suggestion(name):
    with pytest.raises(ModelFileError, match=f"did you mean '{DEFAULT_MODEL}'"):
        describe_model(name)
