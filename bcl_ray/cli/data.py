"""Commands on data: shard, shards show, shards hold-out, shards verify, uploads."""

from collections.abc import Collection
from typing import Annotated

import typer

import bcl_ray
from bcl_ray.cli.options import one_of
from bcl_ray.display.terminal import console, print_line, progress_bars
from bcl_ray.experiment.choices import SOURCES, OnBadImage, Orientation, Profile
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.versions import command

MIB = 2**20

app = typer.Typer()
shards_app = typer.Typer(help="Show and check a data set of shards.", no_args_is_help=True)
app.add_typer(shards_app, name="shards")

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
    target: Target,
    origin: Annotated[
        str | None,
        typer.Option("--from", help="Path or URI of the source; without it, CIFAR is downloaded."),
    ] = None,
    profile: Annotated[
        Profile | None,
        typer.Option(
            help="How class sizes of the training split fall; default: natural, and exponential "
            "with --imbalance-factor."
        ),
    ] = None,
    imbalance_factor: Annotated[
        float | None, typer.Option(help="Largest class / smallest class, at least 1.")
    ] = None,
    max_per_class: Annotated[
        int | None, typer.Option(help="Training images of the largest class.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice and the order of images.")] = 0,
    split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="A split's list, table, tar or folder of classes; a split may have several.",
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Text file of class names, one a line.")
    ] = None,
    image_column: Annotated[str, typer.Option(help="Table: column of images.")] = "image",
    label_column: Annotated[str, typer.Option(help="Table: column of labels.")] = "label",
    id_column: Annotated[str | None, typer.Option(help="Parquet: column of unique ids.")] = None,
    shard_mib: Annotated[int, typer.Option(min=1, help="Approximate size of a shard, MiB.")] = 256,
    on_bad_image: Annotated[
        OnBadImage,
        typer.Option(help="Stop at a bad image, or skip it and list it in a quarantine file."),
    ] = "stop",
    orientation: Annotated[
        Orientation, typer.Option(help="Turn images as their EXIF orientation says, or not.")
    ] = "ignore",
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Largest width x height of an image.")
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs to use at most; default: all, also of a cluster's nodes."),
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE", help="Module that adds a source; several may be given.", is_eager=True
        ),
    ] = None,
) -> None:
    """Turn a source of images into shards and their manifest; after a kill, go on.

    With RAY_ADDRESS or `submit`, all nodes of the cluster work.
    """
    manifest = bcl_ray.shard(
        source,
        target,
        path=origin,
        profile=profile,
        imbalance_factor=imbalance_factor,
        max_per_class=max_per_class,
        seed=seed,
        shard_bytes=shard_mib * MIB,
        on_bad_image=on_bad_image,
        orientation=orientation,
        max_pixels=max_pixels,
        plugins=plugin or [],
        cpus=cpus,
        splits=_parse_splits(split or []),
        classes=classes,
        image_column=image_column,
        label_column=label_column,
        id_column=id_column,
    )
    shards_show(target)
    _show_next(source, target, manifest.splits)


def _show_next(source: str, target: str, splits: Collection[str]) -> None:
    """Print the commands that may follow on a new data set."""
    import shlex

    from bcl_ray.experiment.recipes import RECIPES

    screen = console()
    eval_split = next((name for name in ("test", "val", "validation") if name in splits), None)
    if eval_split is None:
        print_line(screen, "next: shard again with images for evaluation: --split test=...")
        return
    recipe = f"{source}_lt" if f"{source}_lt" in RECIPES else "finetune"
    options = [f"data.path={target}"]
    if eval_split != "test":  # the default
        options.append(f"data.eval_split={eval_split}")
    chosen = " ".join(map(shlex.quote, (recipe, *options)))
    print_line(screen, f"next: bcl-ray plan {chosen}")
    print_line(screen, f"      {command()} train {chosen} tracking.run=first")


def _parse_splits(texts: list[str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not name or not file:
            raise UserError(f"--split '{text}' must be NAME=FILE, such as train=train.txt")
        splits.setdefault(name, []).append(file)
    return splits


@shards_app.command("show")
def shards_show(
    target: Target,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest itself.")] = False,
) -> None:
    """Describe a data set: its splits, class sizes and fingerprint."""
    from bcl_ray.data.longtail import shot_groups
    from bcl_ray.data.shards import read_manifest
    from bcl_ray.display.tables import build_table, draw_long_tail

    manifest = read_manifest(target)
    if as_json:
        typer.echo(manifest.model_dump_json(indent=1))
        return
    columns = ("split", "images", "classes", "largest", "smallest", "shards", "MiB", "quarantined")
    rows = []
    for name, split in manifest.splits.items():
        size = sum(info.bytes for info in split.shards) / MIB
        counts = split.class_counts
        numbers = (split.rows, len(counts), max(counts), min(counts), len(split.shards))
        cells = (f"{number:,}" for number in numbers)
        rows.append((name, *cells, f"{size:,.1f}", str(split.quarantined)))
    title = f"{target}  ({manifest.source})"
    screen = console()
    screen.print(build_table(columns, rows, text=("split",), title=title))
    groups = shot_groups(manifest.splits["train"].class_counts)
    sizes = ", ".join(f"{len(members)} {name}" for name, members in groups.items())
    for line in draw_long_tail(manifest.splits["train"].class_counts):
        print_line(screen, line)
    screen.print(f"classes by training images: {sizes}", highlight=False)
    screen.print(f"fingerprint: {manifest.fingerprint}", highlight=False)


@shards_app.command("hold-out")
def shards_hold_out(
    source: Annotated[str, typer.Argument(help="Folder or URI of shards, which stay as they are.")],
    target: Target,
    share: Annotated[float, typer.Option(help="Share of each class's training images.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the choice.")] = 0,
) -> None:
    """Cut a split `validation` from the training split, with the same class profile.

    The result is another data set, with the other splits. `data.validation_split=validation` then
    selects a run's best checkpoint on images that are neither trained on nor tested on.
    """
    from bcl_ray.data.shards.holdout import hold_out

    with progress_bars() as progress:
        hold_out(source, target, share, seed, keep_others=True, progress=progress)
    shards_show(target)


@shards_app.command("verify")
def shards_verify(target: Target) -> None:
    """Read all shards again, and compare them with the manifest's hashes and counts."""
    from bcl_ray.data.shards import read_manifest, verify_shards

    with progress_bars() as progress:
        differences = verify_shards(target, progress=progress)
    if differences:
        raise UserError(f"{target} does not match its manifest:\n  " + "\n  ".join(differences))
    shards = sum(len(split.shards) for split in read_manifest(target).splits.values())
    typer.echo(f"{target}: {shards} shards match the manifest")


@app.command()
def uploads(
    uri: Annotated[str, typer.Argument(help="s3:// URI of a bucket or folder.")],
    hours: Annotated[
        float,
        typer.Option("--older-than", min=0, help="Least age of an upload, in hours."),
    ] = 24.0,
    abort: Annotated[
        bool, typer.Option("--abort", help="Abort them, which frees their space.")
    ] = False,
) -> None:
    """List unfinished uploads of dead processes, or abort them."""
    from datetime import timedelta

    from bcl_ray.storage import s3

    if not s3.is_s3(uri):
        raise UserError(f"'{uri}' is not in S3, and only S3 has unfinished uploads")
    stale = s3.stale_uploads(uri, timedelta(hours=hours))
    for upload in stale:
        typer.echo(f"{upload.begun:%Y-%m-%d %H:%M}  {upload.uri}")
    if abort:
        s3.abort_uploads(uri, stale)
    state = "aborted" if abort else "unfinished, and cost space (--abort ends them)"
    typer.echo(f"{len(stale)} uploads {state}" if stale else "no upload is unfinished")
