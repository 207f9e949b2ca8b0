"""Training batches: augmentation, order, class weights."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_training import MEAN, torch

from bitseg.architecture import Preprocessing
from bitseg.datasets import IGNORE, open_dataset
from bitseg.errors import DatasetError
from tools.train.data import Augmentation, Batches, batch_stream, class_weights, normalise


class TestAugmentation:
    LABELS = np.repeat(np.arange(8, dtype=np.uint8), 12)[None].repeat(80, 0)
    PHOTO = np.stack([LABELS * 30, 200 + np.arange(80, dtype=np.uint8)[:, None].repeat(96, 1) // 2, LABELS * 0], -1)

    def augmented(self, augmentation, seed):
        photo, labels = Image.fromarray(self.PHOTO), Image.fromarray(self.LABELS)
        return augmentation(photo, labels, MEAN, np.random.default_rng(seed))

    @pytest.mark.parametrize("seed", range(8))
    def test_photo_and_mask_stay_together(self, seed):
        window, labels = self.augmented(Augmentation(64, (1.0, 1.0), 0.0), seed)
        assert window.shape == (64, 64, 3) and labels.shape == (64, 64)
        assert (labels != IGNORE).all(), "a crop that fits lies inside the photo"
        np.testing.assert_array_equal(window[..., 0], labels * 30)

    def test_some_crops_are_flipped(self):
        rising = [
            bool((np.diff(self.augmented(Augmentation(64, (1.0, 1.0), 0.0), seed)[1][0].astype(int)) >= 0).all())
            for seed in range(16)
        ]
        assert 3 < sum(rising) < 13

    @pytest.mark.parametrize("seed", range(8))
    def test_outside_the_photo_is_mean_colour_that_does_not_count(self, seed):
        window, labels = self.augmented(Augmentation(128, (1.0, 1.0), 0.3), seed)
        assert (labels != IGNORE).sum() == self.LABELS.size
        assert (window[labels == IGNORE] == MEAN).all()

    @pytest.mark.parametrize("seed", range(8))
    def test_photo_and_mask_are_zoomed_alike(self, seed):
        window, labels = self.augmented(Augmentation(64, (0.6, 1.7), 0.0), seed)
        inside = labels != IGNORE
        # Away from the borders of the stripes, where the photo is blended.
        agree = np.abs(window[inside][:, 0].astype(int) - labels[inside] * 30) < 3
        assert agree.mean() > 0.75
        assert (np.abs(window[inside][:, 0].astype(int) - labels[inside] * 30) <= 30).all()


class TestBatches:
    def batches(self, tiny_data, seed=1):
        return Batches(open_dataset("voc7", tiny_data, "train"), Augmentation(32, (0.7, 1.4), 0.3), MEAN, 4, seed)

    def test_a_number_always_gives_the_same_batch(self, tiny_data):
        images, labels = self.batches(tiny_data)[7]
        assert images.shape == (4, 32, 32, 3) and images.dtype == torch.uint8
        assert labels.shape == (4, 32, 32) and labels.dtype == torch.int64
        again = self.batches(tiny_data)[7]
        assert torch.equal(images, again[0]) and torch.equal(labels, again[1])
        assert not torch.equal(images, self.batches(tiny_data)[8][0])
        assert not torch.equal(images, self.batches(tiny_data, seed=2)[7][0])

    def test_workers_deliver_the_same_batches_in_order(self, tiny_data):
        batches = self.batches(tiny_data)
        for number, (images, labels) in zip((3, 4, 5), batch_stream(batches, range(3, 6), workers=1), strict=True):
            assert torch.equal(images, batches[number][0]) and torch.equal(labels, batches[number][1])

    def test_an_epoch_has_every_sample_once(self, tiny_data):
        dataset = open_dataset("voc7", tiny_data, "train")
        photos = [dataset.sample(index)[0].tobytes() for index in range(len(dataset))]
        seen = []

        def record(image, mask, mean, generator):
            seen.append(photos.index(np.asarray(image).tobytes()))
            return np.asarray(image), np.asarray(mask)

        batches = Batches(dataset, record, MEAN, 2, seed=1)
        for number in range(6):
            batches[number]
        assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
        assert seen[:6] != seen[6:]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_bad_mask_is_one_clear_line(self, tiny_data, tmp_path, workers):
        folder = shutil.copytree(tiny_data, tmp_path / "copy")
        for path in (folder / "masks").iterdir():
            Image.new("L", (5, 5)).save(path)
        with pytest.raises(DatasetError, match=r"^\S+\.png: 5x5 pixels, but \S+\.jpg has 48x40; they must agree$"):
            next(iter(batch_stream(self.batches(folder), [0], workers)))

    def test_masks_without_any_class_are_refused(self, tiny_data, tmp_path):
        dataset = open_dataset("voc7", tiny_data, "train")
        with pytest.raises(DatasetError, match="voc7 train: no pixel of any mask has a class"):
            class_weights(replace(dataset, label_map=np.full(256, IGNORE, np.uint8)))

    def test_rare_classes_weigh_more(self, tiny_data):
        dataset = open_dataset("voc7", tiny_data, "train")
        weights = class_weights(dataset)
        labels = np.stack([dataset.labels(index) for index in range(len(dataset))])
        share = (labels == 0).sum() / (labels != IGNORE).sum()
        assert weights[0].item() == pytest.approx(1 / math.log(1.4 + share))
        assert weights[2].item() == pytest.approx(1 / math.log(1.4))
        assert len(weights) == 7


def test_normalised_input_is_zero_at_the_mean():
    images = torch.tensor([[[[123, 117, 104], [181, 117, 46]]]], dtype=torch.uint8)
    x = normalise(images, Preprocessing(MEAN, 58.0, 512))
    assert x.shape == (1, 3, 1, 2)
    np.testing.assert_allclose(x[0, :, 0], [[0, 1], [0, 0], [0, -1]])
