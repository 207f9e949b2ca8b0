"""Readers of labelled data on tiny folders of the official layout, and what they say about broken ones."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bitseg.datasets import CLASSES, IGNORE, KINDS, open_dataset, read_class_names
from bitseg.errors import DatasetError, ImageError
from bitseg.images import PHOTO_ENDINGS

PHOTO = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(array, np.uint8))
    (picture.convert(mode) if mode else picture).save(path, quality=95)
    return path


@pytest.fixture
def voc_folder(tmp_path):
    """Two photos listed in val.txt, one that is not."""
    for name in ("2007_000001", "2007_000002", "2007_000003"):
        save(tmp_path / "images" / f"{name}.jpg", PHOTO)
        save(tmp_path / "masks" / f"{name}.png", [[0, 8, 10, 12, 13, 15], [17, 1, 20, 255, 0, 0], *[[0] * 6] * 2])
    (tmp_path / "val.txt").write_text("2007_000003\n2007_000001\n")
    return tmp_path


@pytest.fixture
def camvid_folder(tmp_path):
    save(tmp_path / "val" / "images" / "0001TP_2.jpg", PHOTO)
    save(tmp_path / "val" / "images" / "0001TP_1.jpg", PHOTO)
    (tmp_path / "val" / "images" / "Thumbs.db").write_text("not a photo")
    for name in ("0001TP_1", "0001TP_2"):
        save(tmp_path / "val" / "masks" / f"{name}.png", [range(6), range(6, 12), *[[11] * 6] * 2])
    return tmp_path


def test_voc7_maps_voc_ids_to_seven_classes(voc_folder):
    dataset = open_dataset("voc7", voc_folder, "val")
    assert dataset.name == "voc7 val" and dataset.classes == CLASSES["voc7"]
    assert [path.stem for path, _ in dataset.samples] == ["2007_000003", "2007_000001"]
    photo, labels = dataset.sample(0)
    assert photo.shape == (4, 6, 3) and photo.dtype == labels.dtype == np.uint8
    np.testing.assert_array_equal(labels[:2], [[0, 1, 2, 3, 4, 5], [6, 0, 0, IGNORE, 0, 0]])


def test_camvid_keeps_its_ids_and_ignores_unlabelled_pixels(camvid_folder):
    dataset = open_dataset("camvid", camvid_folder, "val")
    assert [path.name for path, _ in dataset.samples] == ["0001TP_1.jpg", "0001TP_2.jpg"]
    np.testing.assert_array_equal(dataset.labels(1)[:2], [range(6), [6, 7, 8, 9, 10, IGNORE]])


def test_a_palette_mask_is_read_as_its_indices(voc_folder):
    path = voc_folder / "masks" / "2007_000003.png"
    mask = Image.open(path).convert("P")
    mask.putpalette(np.arange(768) % 256)
    indices = np.asarray(mask)
    mask.save(path)
    dataset = open_dataset("voc7", voc_folder, "val")
    np.testing.assert_array_equal(dataset.labels(0), dataset.label_map[indices])


@pytest.fixture
def voc_2012(tmp_path):
    """PASCAL VOC 2012 as distributed, with the masks of the Semantic Boundaries Dataset beside it."""
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_000033\n2007_000042\n")
    (lists / "trainaug.txt").write_text("2007_000032\n2008_000002\n")
    (lists / "train_aug.txt").write_text("/JPEGImages/2008_000002.jpg /SegmentationClassAug/2008_000002.png\n")
    for name in ("2007_000032", "2007_000033", "2007_000042", "2008_000002"):
        save(tmp_path / "JPEGImages" / f"{name}.jpg", PHOTO)
    for name in ("2007_000033", "2007_000042"):
        mask = Image.fromarray(np.array([range(6), [255, 15, 20, 0, 0, 0], *[[0] * 6] * 2], np.uint8))
        mask.putpalette(np.arange(768, dtype=np.uint8).tobytes()[::-1])
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        mask.save(tmp_path / "SegmentationClass" / f"{name}.png")
    for name in ("2007_000032", "2008_000002"):
        save(tmp_path / "SegmentationClassAug" / f"{name}.png", np.full((4, 6), 20))
    return tmp_path


def test_voc_reads_the_palette_masks_of_the_official_layout(voc_2012):
    dataset = open_dataset("voc", voc_2012, "val")
    assert dataset.name == "voc val" and len(dataset) == 2
    assert len(dataset.classes) == 21 and dataset.classes[15] == "person" and dataset.classes[20] == "tvmonitor"
    _, labels = dataset.sample(1)
    np.testing.assert_array_equal(labels[:2], [range(6), [IGNORE, 15, 20, 0, 0, 0]])


@pytest.mark.parametrize(
    ("split", "photos"), [("trainaug", ["2007_000032", "2008_000002"]), ("train_aug", ["2008_000002"])]
)
def test_voc_takes_augmented_splits_from_their_own_masks(voc_2012, split, photos):
    dataset = open_dataset("voc", voc_2012, split)
    assert [path for path, _ in dataset.samples] == [voc_2012 / "JPEGImages" / f"{name}.jpg" for name in photos]
    assert {mask.parent.name for _, mask in dataset.samples} == {"SegmentationClassAug"}
    assert (dataset.sample(0)[1] == 20).all()


@pytest.fixture
def cityscapes(tmp_path):
    """Two cities with the label ids of the download."""
    for city, frame in (("munster", "munster_000000_000019"), ("aachen", "aachen_000001_000019")):
        save(tmp_path / "leftImg8bit" / "val" / city / f"{frame}_leftImg8bit.png", PHOTO)
        values = [[0, 7, 8, 11, 12, 13], [17, 19, 20, 21, 22, 23], [24, 25, 26, 27, 28, 31], [32, 33, 29, 30, 4, 255]]
        save(tmp_path / "gtFine" / "val" / city / f"{frame}_gtFine_labelIds.png", values)
        save(tmp_path / "gtFine" / "val" / city / f"{frame}_gtFine_color.png", PHOTO)
    return tmp_path


def test_cityscapes_maps_label_ids_to_19_train_ids(cityscapes):
    dataset = open_dataset("cityscapes", cityscapes, "val")
    assert [path.parent.name for path, _ in dataset.samples] == ["aachen", "munster"]
    assert len(dataset.classes) == 19 and dataset.classes[0] == "road" and dataset.classes[18] == "bicycle"
    _, labels = dataset.sample(0)
    np.testing.assert_array_equal(labels.ravel(), [IGNORE, *range(19), *[IGNORE] * 4])


def test_cityscapes_takes_train_ids_where_every_photo_has_them(cityscapes):
    for city, frame in (("munster", "munster_000000_000019"), ("aachen", "aachen_000001_000019")):
        assert open_dataset("cityscapes", cityscapes, "val").label_map[7] == 0
        path = cityscapes / "gtFine" / "val" / city / f"{frame}_gtFine_labelTrainIds.png"
        save(path, [range(6), range(6, 12), range(12, 18), [18, 255, 255, 255, 255, 255]])
    dataset = open_dataset("cityscapes", cityscapes, "val")
    np.testing.assert_array_equal(dataset.labels(0).ravel(), [*range(19), *[IGNORE] * 5])


def test_a_photo_of_cityscapes_without_labels_is_named(cityscapes):
    path = cityscapes / "gtFine" / "val" / "aachen" / "aachen_000001_000019_gtFine_labelIds.png"
    path.unlink()
    with pytest.raises(DatasetError, match=f"{path.name}: belongs to the val split but is not there"):
        open_dataset("cityscapes", cityscapes, "val")


def test_camvid_reads_the_layout_of_segnet(camvid_folder):
    (camvid_folder / "val" / "images").rename(camvid_folder / "test")
    (camvid_folder / "val" / "masks").rename(camvid_folder / "testannot")
    dataset = open_dataset("camvid", camvid_folder, "test")
    assert dataset.samples[0] == (camvid_folder / "test" / "0001TP_1.jpg", camvid_folder / "testannot" / "0001TP_1.png")
    np.testing.assert_array_equal(dataset.sample(0)[1][:2], [range(6), [6, 7, 8, 9, 10, IGNORE]])


@pytest.fixture
def camvid_original(tmp_path):
    """Frames around the borders of SegNet's splits, with coloured masks."""
    for frame in ("0001TP_008520", "0001TP_008550", "0006R0_f00930", "0016E5_07920", "0016E5_07959", "0016E5_08159"):
        save(tmp_path / "701_StillsRaw_full" / f"{frame}.png", PHOTO)
        mask = np.zeros((4, 6, 3), np.uint8)
        mask[0, :5] = (128, 128, 128), (64, 192, 0), (192, 0, 64), (64, 128, 192), (0, 128, 192)
        save(tmp_path / "LabeledApproved_full" / f"{frame}_L.png", mask)
    save(tmp_path / "701_StillsRaw_full" / "Seq05VD_f00000.png", PHOTO)
    save(tmp_path / "LabeledApproved_full" / "Seq05VD_f00000_L.png", np.full((4, 6, 3), (192, 128, 64)))
    return tmp_path


@pytest.mark.parametrize(
    ("split", "frames"),
    [
        ("train", ["0001TP_008520", "0006R0_f00930", "0016E5_07920"]),
        ("val", ["0016E5_07959", "0016E5_08159"]),
        ("test", ["0001TP_008550", "Seq05VD_f00000"]),
    ],
)
def test_camvid_splits_the_original_frames_as_segnet_does(camvid_original, split, frames):
    assert [path.stem for path, _ in open_dataset("camvid", camvid_original, split).samples] == frames


def test_camvid_turns_the_original_colours_into_11_classes(camvid_original):
    classes = CLASSES["camvid"]
    labels = open_dataset("camvid", camvid_original, "val").labels(0)
    # Sky, wall, lane marking, pick-up, bicyclist; void.
    assert [classes[label] for label in labels[0, :5]] == ["sky", "building", "road", "car", "bicyclist"]
    assert (labels[1:] == IGNORE).all() and labels[0, 5] == IGNORE
    child = open_dataset("camvid", camvid_original, "test").labels(1)
    assert (child == classes.index("pedestrian")).all()


def test_a_colour_that_is_no_class_is_named(camvid_original):
    path = camvid_original / "LabeledApproved_full" / "0016E5_07959_L.png"
    save(path, np.full((4, 6, 3), (1, 2, 255)))
    with pytest.raises(DatasetError, match=f"{path.name}: holds the colour #0102ff, which is no class of camvid val"):
        open_dataset("camvid", camvid_original, "val").labels(0)


@pytest.fixture
def own_folder(tmp_path):
    """Three photos of a user, of which val.txt lists two."""
    (tmp_path / "classes.txt").write_text("background\ntraffic light\n", encoding="utf-8-sig")
    for photo in ("b.PNG", "c d.jpeg", "a.jpg"):
        save(tmp_path / "images" / photo, PHOTO)
        save(tmp_path / "masks" / f"{photo.split('.')[0]}.png", [[0, 1, 255, 1, 0, 0]] * 4)
    (tmp_path / "images" / "._a.jpg").write_bytes(b"what a Mac leaves behind")
    (tmp_path / "val.txt").write_text("c d.jpeg\nb\n\n")
    return tmp_path


def test_a_folder_takes_its_classes_from_a_file(own_folder):
    dataset = open_dataset("folder", own_folder, "val")
    assert dataset.classes == read_class_names(own_folder) == ("background", "traffic light")
    assert dataset.name == "folder val"
    np.testing.assert_array_equal(dataset.sample(0)[1][0], [0, 1, IGNORE, 1, 0, 0])


def test_the_lists_of_a_folder_name_photos_with_or_without_ending(own_folder):
    dataset = open_dataset("folder", own_folder, "val")
    assert [(photo.name, mask.name) for photo, mask in dataset.samples] == [("c d.jpeg", "c d.png"), ("b.PNG", "b.png")]


def test_the_split_all_of_a_folder_needs_no_list(own_folder):
    dataset = open_dataset("folder", own_folder, "all")
    assert [photo.name for photo, _ in dataset.samples] == ["a.jpg", "b.PNG", "c d.jpeg"]


def test_photos_of_a_folder_are_those_that_predict_would_take(own_folder):
    for ending in PHOTO_ENDINGS:
        path = own_folder / "images" / f"photo of {ending[1:]}{ending}"
        path.write_bytes(b"")
        save(own_folder / "masks" / f"{path.stem}.png", [[0]])
    assert len(open_dataset("folder", own_folder, "all").samples) == 3 + len(PHOTO_ENDINGS)


def test_a_folder_that_its_user_has_not_split_keeps_every_fifth_photo_for_val(own_folder):
    (own_folder / "val.txt").unlink()
    for photo in "defgh":
        save(own_folder / "images" / f"{photo}.jpg", PHOTO)
        save(own_folder / "masks" / f"{photo}.png", [[0] * 6] * 4)
    train, val = (open_dataset("folder", own_folder, split).samples for split in ("train", "val"))
    assert [photo.stem for photo, _ in val] == ["a", "f"]
    assert [photo.stem for photo, _ in train] == ["b", "c d", "d", "e", "g", "h"]


def test_a_folder_may_have_a_folder_for_each_split(own_folder):
    (own_folder / "test").mkdir()
    for part in ("images", "masks"):
        (own_folder / part).rename(own_folder / "test" / part)
    dataset = open_dataset("folder", own_folder, "test")
    assert len(dataset) == 3 and dataset.samples[0][1] == own_folder / "test" / "masks" / "a.png"


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        (lambda root: None, "train", r"train\.txt: not found; list the photos of the split in it, one name a line, or"),
        (
            lambda root: (root / "images").rename(root / "photos"),
            "val",
            "images: not found; give the folder that holds",
        ),
        (lambda root: (root / "val.txt").write_text("z"), "val", "images.z: belongs to the val split but is not there"),
        (lambda root: (root / "masks" / "b.png").unlink(), "val", r"b\.png: belongs to the val split but is not there"),
        (
            lambda root: save(root / "images" / "b.jpg", PHOTO),
            "all",
            r"b\.jpg: would have the same mask as b\.PNG; rename",
        ),
        (lambda root: (root / "val.txt").write_bytes(b"\xff\xfe"), "val", r"val\.txt: not a text in UTF-8"),
        (
            lambda root: (root / "classes.txt").write_text(""),
            "val",
            r"classes\.txt: 0 class names; there must be 1 to 254",
        ),
        (lambda root: (root / "classes.txt").write_text("a\n\nb"), "val", r"classes\.txt: line 2 is no class name"),
        (lambda root: (root / "classes.txt").write_text("a\nb\na"), "val", r"classes\.txt: line 3 repeats 'a'"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(own_folder, change, split, message):
    change(own_folder)
    with pytest.raises(DatasetError, match=message):
        open_dataset("folder", own_folder, split)


def test_a_value_beyond_the_classes_of_a_folder_is_named(own_folder):
    save(own_folder / "masks" / "b.png", np.full((4, 6), 2))
    with pytest.raises(DatasetError, match=r"b\.png: holds 2, which is no class id of folder val"):
        open_dataset("folder", own_folder, "val").sample(1)


def test_classes_are_mapped_by_name_and_the_rest_to_background(voc_2012):
    dataset = open_dataset("voc", voc_2012, "val").mapped_to(("boat", "background", "person"))
    assert dataset.classes == ("boat", "background", "person") and dataset.name == "voc val"
    np.testing.assert_array_equal(dataset.labels(0)[:2], [[1, 1, 1, 1, 0, 1], [IGNORE, 2, 1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("background", "zebra"), r"voc val lacks classes of the model \(zebra\); choose the data set that"),
        (CLASSES["voc"][1:], r"the model lacks classes of voc val \(background\); choose the data set that"),
        (CLASSES["camvid"], r"lacks classes of the model \(sky, building, pole, road and 6 more\); choose"),
    ],
)
def test_classes_that_do_not_match_are_refused(voc_2012, classes, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset("voc", voc_2012, "val").mapped_to(classes)


@pytest.mark.parametrize(
    ("kind", "split", "message"),
    [
        ("coco", "val", "unknown data set 'coco': choose one of camvid, cityscapes, folder, voc, voc7"),
        (
            "voc",
            "val",
            r"val\.txt: not found; give the folder that holds JPEGImages/, SegmentationClass/ and ImageSets/",
        ),
        ("voc7", "test", r"test\.txt: not found; give the folder that holds images/, masks/ and test\.txt"),
        ("cityscapes", "val", r"leftImg8bit/val: not found; give the folder that holds leftImg8bit/ and gtFine/"),
        ("camvid", "val", r"val: not found, or without masks; give the folder that holds val/images and val/masks"),
        ("folder", "val", r"classes\.txt: not found; write one class name a line into it, that of id 0 first"),
    ],
)
def test_what_is_no_data_set_is_refused(voc_folder, kind, split, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset(kind, voc_folder, split)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_does_not_exist_is_named(tmp_path, kind):
    with pytest.raises(DatasetError, match="nowhere: there is no such folder; check its name"):
        open_dataset(kind, tmp_path / "nowhere", "val")
    with pytest.raises(DatasetError, match="nowhere: there is no such folder; check its name"):
        read_class_names(tmp_path / "nowhere")


def test_the_current_folder_may_be_meant(voc_folder, monkeypatch):
    monkeypatch.chdir(voc_folder)
    assert open_dataset("voc7", "", "val").samples


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions mean nothing to root")
def test_a_folder_that_may_not_be_entered_is_not_said_to_be_missing(voc_folder):
    voc_folder.parent.chmod(0o600)
    try:
        with pytest.raises(DatasetError, match=r"cannot be read \(Permission denied\); check its permissions"):
            open_dataset("voc7", voc_folder, "val")
    finally:
        voc_folder.parent.chmod(0o700)


def test_an_empty_split_is_refused(voc_folder):
    (voc_folder / "val.txt").write_text("\n")
    with pytest.raises(DatasetError, match="the val split is empty"):
        open_dataset("voc7", voc_folder, "val")


def test_a_missing_file_is_named(voc_folder):
    (voc_folder / "masks" / "2007_000001.png").unlink()
    with pytest.raises(DatasetError, match=r"2007_000001\.png: belongs to the val split but is not there"):
        open_dataset("voc7", voc_folder, "val")


def test_a_mask_of_another_size_is_named(voc_folder):
    save(voc_folder / "masks" / "2007_000003.png", np.zeros((6, 4)))
    with pytest.raises(DatasetError, match=r"2007_000003\.png: 4x6 pixels, but .*2007_000003\.jpg has 6x4"):
        open_dataset("voc7", voc_folder, "val").sample(0)


def test_a_value_that_is_no_class_is_named(voc_folder):
    save(voc_folder / "masks" / "2007_000003.png", np.full((4, 6), 21))
    with pytest.raises(DatasetError, match=r"2007_000003\.png: holds 21, which is no class id of voc7 val"):
        open_dataset("voc7", voc_folder, "val").labels(0)


def test_a_coloured_mask_is_named(voc_folder):
    save(voc_folder / "masks" / "2007_000003.png", np.zeros((4, 6)), "RGB")
    with pytest.raises(DatasetError, match=r"2007_000003\.png: a picture of mode RGB; a mask has one 8-bit class id"):
        open_dataset("voc7", voc_folder, "val").labels(0)


def test_a_grey_mask_of_few_bits_is_named(voc_folder):
    # Pillow writes none, and reads its values times 17.
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, rows = struct.pack(">IIBBBBB", 6, 4, 4, 0, 0, 0, 0), zlib.compress(b"\0\x01\x23\x45" * 4)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (voc_folder / "masks" / "2007_000003.png").write_bytes(png)
    with pytest.raises(DatasetError, match=r"2007_000003\.png: a picture of mode L of fewer than 8 bits; a mask has"):
        open_dataset("voc7", voc_folder, "val").labels(0)


def test_a_mask_is_turned_as_its_photo_is(tmp_path):
    photo, mask = PHOTO, np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
    for name, picture in (("images/a.png", photo), ("masks/a.png", mask)):
        (tmp_path / name).parent.mkdir()
        exif = Image.Exif()
        exif[274] = 6  # a quarter turn
        Image.fromarray(picture).save(tmp_path / name, exif=exif)
    (tmp_path / "classes.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "val.txt").write_text("a\n")
    turned, labels = open_dataset("folder", tmp_path, "val").sample(0)
    assert np.array_equal(turned, np.rot90(photo, -1)) and np.array_equal(labels, np.rot90(mask, -1))


def test_a_list_that_is_no_file_is_named(voc_folder):
    (voc_folder / "val.txt").unlink()
    os.mkfifo(voc_folder / "val.txt")
    with pytest.raises(DatasetError, match=r"val\.txt: no file;"):
        open_dataset("voc7", voc_folder, "val")


def test_damaged_files_are_named(voc_folder):
    dataset = open_dataset("voc7", voc_folder, "val")
    dataset.samples[0][1].write_bytes(b"no PNG")
    with pytest.raises(DatasetError, match=r"2007_000003\.png: cannot be read"):
        dataset.sample(0)
    dataset.samples[1][0].write_bytes(b"no JPEG")
    with pytest.raises(ImageError, match=r"2007_000001\.jpg"):
        dataset.sample(1)


def test_the_real_data_set_is_read_whole(voc7):
    train, val = (open_dataset("voc7", voc7, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (3131, 240)
    photo, labels = val.sample(0)
    assert photo.shape[:2] == labels.shape
    assert set(np.unique(labels)) <= {*range(7), IGNORE}
