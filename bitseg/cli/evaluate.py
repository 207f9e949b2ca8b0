"""``bitseg eval``."""

import sys

import click

from .common import (
    FileName,
    Name,
    json_option,
    kernel_option,
    load_segmenter,
    model_option,
    print_table,
    threads_option,
    working_size_option,
)


@click.command("eval")
@model_option
@click.option(
    "--dataset",
    type=click.Choice(["camvid", "cityscapes", "folder", "voc", "voc7"]),
    required=True,
    help="Kind of data set, which says where photos and masks lie.",
)
@click.option("--root", type=FileName(), required=True, help="Folder of the data set.")
@click.option("--split", type=Name(), default="val", help="Part of it to measure on.")
@working_size_option("--size", "Long side at which a larger photo is segmented. It is scored at its own size.")
@threads_option
@kernel_option
@click.option("--report", type=click.Path(), help="Write an .html page with a confusion matrix, best and worst photos.")
@json_option
def evaluate(model, dataset, root, split, size, threads, kernel, report, as_json):
    """Score a model on labelled photos: IoU of every class, mIoU, pixel accuracy.

    \b
    voc         JPEGImages/, SegmentationClass/, ImageSets/Segmentation/SPLIT.txt of PASCAL VOC 2012,
                SegmentationClassAug/ for splits such as train_aug
    voc7        images/, masks/ with VOC's ids, SPLIT.txt; six classes and background
    cityscapes  leftImg8bit/SPLIT/CITY/, gtFine/SPLIT/CITY/
    camvid      SPLIT/images and SPLIT/masks, SegNet's SPLIT and SPLITannot, or the
                original 701_StillsRaw_full and LabeledApproved_full
    folder      images/, masks/ (8-bit PNG of class ids, 255 is ignored), classes.txt with a
                name a line; SPLIT.txt of photo names, or SPLIT/images and SPLIT/masks, or
                --split all

    Classes are matched by name. What a model with a background does not know counts as background.
    """
    from ..datasets import open_dataset
    from ..evaluation import evaluate as count_pixels
    from ..report import Gallery, check_report

    if report is not None:
        check_report(report)
    data = open_dataset(dataset, root, split)
    segmenter, _ = load_segmenter(model, threads, 1, kernel)
    classes = segmenter.model.architecture.classes
    unknown = [name for name in data.classes if name not in classes]
    data = data.mapped_to(classes)
    if unknown:
        click.echo(f"counted as background, since the model does not know it: {', '.join(unknown)}", err=True)

    gallery = Gallery(classes)
    with click.progressbar(length=len(data), label=f"{model} on {data.name}", show_pos=True, file=sys.stderr) as bar:

        def on_photo(evaluated):
            if report is not None:
                gallery.add(evaluated)
            bar.update(1)

        confusion = count_pixels(lambda photo: segmenter.label_map(photo, size), data, on_photo)
    if report is not None:
        _write_report(report, segmenter.model, data, root, unknown, confusion, gallery)
    if as_json:
        _print_json(segmenter.model, data, unknown, confusion)
    else:
        _print_tables(data, confusion)


def _write_report(path, model, data, root, unknown, confusion, gallery):
    import shlex
    from datetime import datetime

    from .. import __version__
    from ..report import write_report

    bits = f"{model.architecture.weight_bits}-bit weights, {model.architecture.activation_bits}-bit activations"
    facts = {
        "model": f"{model.name}: {bits}, {model.file_size / 1e6:.1f} MB",
        "data": f"{data.name}: {len(data)} photos at their own size, from {root}",
        "background": f"includes what the model does not know: {', '.join(unknown)}" if unknown else "",
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "command": f"bitseg {shlex.join(sys.argv[1:])}",
        "bitseg": __version__,
    }
    facts = {name: value for name, value in facts.items() if value}
    write_report(path, f"{model.name} on {data.name}", facts, data.classes, confusion, gallery)


def _print_json(model, data, unknown, confusion):
    import json

    from ..evaluation import scores

    figures = {
        "model": model.name,
        **scores(confusion, data),
        "counted_as_background": unknown,
        "confusion": confusion.tolist(),
    }
    click.echo(json.dumps(figures, indent=2))


def _print_tables(data, confusion):
    from ..evaluation import class_scores
    from ..metrics import mean_iou, pixel_accuracy
    from ..report import percent

    rows = [("CLASS", "IoU", "PRECISION", "RECALL", "SHARE")]
    rows += [(row.name, *map(percent, row[1:])) for row in class_scores(confusion, data.classes)]
    print_table(rows)
    click.echo()
    print_table(
        [
            ("mIoU", percent(mean_iou(confusion))),
            ("pixel accuracy", percent(pixel_accuracy(confusion))),
            ("photos", str(len(data))),
        ]
    )
