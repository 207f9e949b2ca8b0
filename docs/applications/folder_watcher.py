"""Write a mask, or another view, of each photo that appears in a folder.

    python folder_watcher.py INBOX OUTBOX --as overlay

Looks at the folder again and again, which works on network drives, too. A photo that has its result already is left
alone, so it may be stopped (Ctrl-C) and started at any time.
"""

import time
from contextlib import suppress
from pathlib import Path

import click

import bitseg

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def photos(folder):
    """Size and time of change of each photo in a folder, by path."""
    states = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS:
            with suppress(FileNotFoundError):  # moved away since it was listed
                status = path.stat()
                states[path] = status.st_size, status.st_mtime_ns
    return states


def watch(segmenter, inbox, outbox, kind, interval):
    """Segment whatever appears in `inbox`, until interrupted."""

    def target(photo):
        return outbox / f"{photo.name}.{kind}.png"

    def report(photo, error):
        unusable[photo] = now[photo]
        click.echo(f"Error: {error}", err=True)

    before, unusable = {}, {}
    while True:
        now = photos(inbox)
        # One that is still being copied differs from what it was at the last look.
        ready = [
            photo
            for photo, state in now.items()
            if before.get(photo) == state != unusable.get(photo) and not target(photo).exists()
        ]
        for segmentation in segmenter.predict_many(ready, on_error=report):
            segmentation.save(target(segmentation.path), kind)
            click.echo(f"{target(segmentation.path)}: {', '.join(found.name for found in segmentation.classes)}")
        before = now
        time.sleep(interval)


@click.command(context_settings={"show_default": True})
@click.argument("inbox", type=EXISTING_FOLDER)
@click.argument("outbox", type=EXISTING_FOLDER)
@click.option("--as", "kind", type=click.Choice(["mask", "color", "overlay", "cutout"]), default="mask")
@click.option("--model", default="voc7-w2a2", help="Name of an installed model, or path of an .h5 file.")
@click.option("--interval", default=1.0, help="Seconds between two looks.")
def main(inbox, outbox, kind, model, interval):
    """Write a view of each photo in INBOX to OUTBOX."""
    if not 0 <= interval <= 86400:
        raise click.UsageError("--interval must be a number from 0 to 86400")
    if inbox.samefile(outbox):
        raise click.UsageError("give two folders: results in INBOX would be taken for photos")
    try:
        watch(bitseg.load(model), inbox, outbox, kind, interval)
    except (bitseg.BitsegError, OSError) as error:  # OSError: INBOX is no longer there
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("stopped")


if __name__ == "__main__":
    main()
