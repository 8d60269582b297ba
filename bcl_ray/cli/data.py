"""Commands on data: shard, and what looks into shards."""

from enum import StrEnum
from typing import Annotated

import typer

import bcl_ray
from bcl_ray.cli.chosen import one_of
from bcl_ray.display.terminal import console, progress_bars
from bcl_ray.experiment.choices import SOURCES
from bcl_ray.machine.errors import UserError

app = typer.Typer()
shards_app = typer.Typer(help="Look into a data set of shards.", no_args_is_help=True)
app.add_typer(shards_app, name="shards")


class ProfileName(StrEnum):
    """How class sizes fall from head to tail."""

    exponential = "exponential"
    step = "step"
    natural = "natural"


class OnBadImage(StrEnum):
    """What to do with a row that is no image."""

    stop = "stop"
    skip = "skip"


Target = Annotated[str, typer.Argument(help="Folder or URI of the shards.")]


@app.command()
def shard(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help=f"Kind of source. {SOURCES.described()}.",
            callback=one_of(SOURCES),
        ),
    ],
    target: Annotated[str, typer.Argument(help="Folder or URI for the shards.")],
    origin: Annotated[
        str | None,
        typer.Option("--from", help="Where the source lies; cifar without it is downloaded."),
    ] = None,
    profile: Annotated[
        ProfileName, typer.Option(help="Class sizes of the training split.")
    ] = ProfileName.natural,
    imbalance_factor: Annotated[
        float | None, typer.Option(help="Largest class / smallest class, at least 1.")
    ] = None,
    max_per_class: Annotated[
        int | None, typer.Option(help="Training images of the largest class.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice and of the order.")] = 0,
    split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="A split's list file or Parquet file; several may be given."
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Text file of class names, one a line.")
    ] = None,
    image_column: Annotated[str, typer.Option(help="Parquet: column of images.")] = "image",
    label_column: Annotated[str, typer.Option(help="Parquet: column of labels.")] = "label",
    id_column: Annotated[str | None, typer.Option(help="Parquet: column of unique ids.")] = None,
    shard_mib: Annotated[int, typer.Option(min=1, help="Size of a shard in MiB, about.")] = 256,
    on_bad_image: Annotated[
        OnBadImage, typer.Option(help="skip: list bad rows in a quarantine file.")
    ] = OnBadImage.stop,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Largest width x height of an image.")
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE", help="Module that adds a source; several may be given.", is_eager=True
        ),
    ] = None,
) -> None:
    """Turn a source of images into shards and their manifest."""
    bcl_ray.shard(
        source,
        target,
        path=origin,
        profile=profile.value,
        imbalance_factor=imbalance_factor,
        max_per_class=max_per_class,
        seed=seed,
        shard_bytes=shard_mib * 2**20,
        on_bad_image=on_bad_image.value,
        max_pixels=max_pixels,
        plugins=plugin or [],
        splits=_pairs(split or []) or None,
        classes=classes,
        image_column=image_column,
        label_column=label_column,
        id_column=id_column,
    )
    shards_show(target)


@shards_app.command("show")
def shards_show(
    target: Target,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest itself.")] = False,
) -> None:
    """Describe a data set: its splits, class sizes and fingerprint."""
    from rich.markup import escape
    from rich.table import Table

    from bcl_ray.data.longtail import shot_groups
    from bcl_ray.data.shards import read_manifest

    manifest = read_manifest(target)
    if as_json:
        typer.echo(manifest.model_dump_json(indent=1))
        return
    table = Table(title=escape(f"{target}  ({manifest.source})"), title_justify="left")
    columns = ("split", "images", "classes", "largest", "smallest", "shards", "MiB", "quarantined")
    for column in columns:
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in manifest.splits.items():
        size = sum(info.bytes for info in split.shards) / 2**20
        counts = split.class_counts
        numbers = (split.rows, len(counts), max(counts), min(counts), len(split.shards))
        cells = [f"{number:,}" for number in numbers]
        table.add_row(name, *cells, f"{size:,.1f}", str(split.quarantined))
    screen = console()
    screen.print(table)
    groups = shot_groups(manifest.splits["train"].class_counts)
    shown = ", ".join(f"{len(members)} {name}" for name, members in groups.items())
    screen.print(f"classes by training images: {shown}", highlight=False)
    screen.print(f"fingerprint: {manifest.fingerprint}", highlight=False)


@shards_app.command("verify")
def shards_verify(target: Target) -> None:
    """Read everything again and compare it with the manifest's hashes and counts."""
    from bcl_ray.data.shards import read_manifest, verify_shards

    with progress_bars() as progress:
        differences = verify_shards(target, progress=progress)
    if differences:
        raise UserError(f"{target} is not what its manifest says:\n  " + "\n  ".join(differences))
    shards = sum(len(split.shards) for split in read_manifest(target).splits.values())
    typer.echo(f"{target}: {shards} shards are what the manifest says")


@app.command()
def uploads(
    uri: Annotated[str, typer.Argument(help="s3:// URI of a bucket or folder.")],
    hours: Annotated[
        float, typer.Option("--older-than", min=0, help="Hours ago that they were begun, at least.")
    ] = 24.0,
    abort: Annotated[
        bool, typer.Option("--abort", help="End them, which gives back their space.")
    ] = False,
) -> None:
    """List uploads that dead processes have left unfinished, or abort them."""
    from datetime import timedelta

    from bcl_ray.storage import s3

    if not s3.is_s3(uri):
        raise UserError(f"'{uri}' is not in S3, and only S3 has unfinished uploads")
    found = s3.stale_uploads(uri, timedelta(hours=hours))
    for upload in found:
        typer.echo(f"{upload.begun:%Y-%m-%d %H:%M}  {upload.uri}")
    if abort:
        s3.abort_uploads(uri, found)
    what = "aborted" if abort else "unfinished, and cost space (--abort ends them)"
    typer.echo(f"{len(found)} uploads {what}" if found else "no upload is unfinished")


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or name in pairs:
            raise UserError(f"--split '{text}' must be NAME=FILE, each name once")
        pairs[name] = file
    return pairs
