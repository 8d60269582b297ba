"""Commands that use a trained model: predict, export."""

from typing import TYPE_CHECKING, Annotated

import typer

import bcl_ray
from bcl_ray.cli.exits import report_stop
from bcl_ray.cli.options import Last, Runs
from bcl_ray.display.terminal import console, print_line, quiet
from bcl_ray.use.formats import FORMATS, format_of

if TYPE_CHECKING:
    from bcl_ray.use.predict.outputs import Summary

app = typer.Typer()

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A run, a checkpoint's folder, or models:/NAME@ALIAS."),
]


@app.command()
def predict(
    model: Model,
    images: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="Folder or URI of images, in subfolders too, or of shards."
        ),
    ],
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder or URI for the resulting tables.")
    ],
    top: Annotated[int, typer.Option(help="Number of classes to name for each image.")] = 5,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Write the backbone's embeddings too (Parquet).")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write the tables as CSV too.")] = False,
    split: Annotated[
        str | None,
        typer.Option(help="Split of shards; by default the one that the run evaluates on."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per step of the network.")] = 128,
    part_size: Annotated[
        int, typer.Option(help="Images per file of the result, the most that a kill costs.")
    ] = 4096,
    gpus: Annotated[
        int | None,
        typer.Option(help="Most GPUs to use, 0 for CPUs; by default all that the cluster can get."),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(
            help="Most CPUs to use without a GPU; by default all that the cluster can get."
        ),
    ] = None,
    last: Last = None,
    runs: Runs = "runs",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue with what OUTPUT holds, if anything.")
    ] = False,
) -> None:
    """Label images with their most probable classes and calibrated probabilities."""
    with report_stop():
        summary = bcl_ray.predict(
            model,
            images,
            output,
            top=top,
            embeddings=embeddings,
            csv=as_csv,
            batch_size=batch_size,
            part_size=part_size,
            runs=runs,
            last=last,
            split=split,
            resume=resume,
            gpus=gpus,
            cpus=cpus,
        )
    from bcl_ray.display.tables import prediction_table

    screen = console()
    screen.print(prediction_table(summary))
    for line in _closing_lines(summary, output, as_csv):
        print_line(screen, line)


def _closing_lines(summary: "Summary", output: str, as_csv: bool) -> list[str]:
    """Where the tables are, and which images could not be read."""
    from bcl_ray.storage.files import join

    tables = join(output, "parquet") + (f" and {join(output, 'csv')}" if as_csv else "")
    lines = [f"{summary.images - summary.unreadable:,} of {summary.images:,} images in {tables}"]
    if summary.unreadable:
        lines.append(f"{summary.unreadable:,} could not be read, see {join(output, 'errors.csv')}:")
        lines += [f"  {name}: {reason}" for name, reason in summary.first]
        if summary.unreadable > len(summary.first):
            lines.append(f"  and {summary.unreadable - len(summary.first):,} more")
    return lines


@app.command()
def export(
    model: Model,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help=f"Path or URI. {FORMATS.described()}.")
    ],
    last: Last = None,
    runs: Runs = "runs",
) -> None:
    """Write a model as a file for other programs, and check that it computes the same."""
    quiet()
    from bcl_ray.storage.paths import for_display
    from bcl_ray.use.export import export as write
    from bcl_ray.use.models import open_model

    format_of(file)
    opened = open_model(model, runs, last=last)
    written = write(opened, file)
    typer.echo(
        f"{file}: {written.bytes / 2**20:.1f} MiB of {for_display(opened.uri)}\n"
        f"read back: logits of {written.images} images differ by at most "
        f"{written.difference:.1e}, and {written.allowed:.1e} is allowed"
    )
