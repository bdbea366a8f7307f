"""`data import KIND SOURCE DESTINATION`, `data show URI`: folders of files into data sets."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from orchestrator.errors import Stopped

if TYPE_CHECKING:
    from orchestrator.importing.kinds import Kind
    from orchestrator.importing.plan import Request
    from orchestrator.importing.run import Outcome, Watch

_KINDS = {
    "images": "photos and drawings: JPEG, PNG, WebP, TIFF, BMP, GIF, PPM",
    "audio": "sounds: WAV, FLAC, Ogg, MP3",
    "videos": "clips: MP4, AVI, Matroska, WebM, MOV, MPEG",
    "points": "point clouds and meshes: NPY, NPZ, PLY, OFF",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`import` and `show`, each with arguments of its own."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    importing = actions.add_parser("import", help="turn a folder of files into a data set")
    kinds = importing.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, text in _KINDS.items():
        one = kinds.add_parser(kind, help=text, description=text.capitalize() + ".")
        _add_kind(one, kind)
        _add_import(one)
    show = actions.add_parser("show", help="what a data set holds")
    show.add_argument("uri", metavar="URI", help="folder of an import, or a Parquet file")
    show.add_argument("--verify", action="store_true", help="read all rows and check the digests")
    _add_output(show)


def run(parsed: argparse.Namespace) -> int:
    """Import or show."""
    return _show(parsed) if parsed.action == "show" else _import(parsed)


def _add_kind(parser: argparse.ArgumentParser, kind: str) -> None:
    if kind in ("images", "videos"):
        size = 224 if kind == "images" else 112
        parser.add_argument("--size", type=int, default=size, help=f"edge, in pixels [{size}]")
        parser.add_argument(
            "--fit", choices=("crop", "squash"), default="crop",
            help="bring the shorter side to the size and cut the middle out, or squash [crop]",
        )  # fmt: skip
    if kind == "images":
        parser.add_argument(
            "--encoding", choices=("raw", "jpeg", "png"), default="raw",
            help="how samples are stored; jpeg is small and loses a little [raw]",
        )  # fmt: skip
    if kind == "videos":
        parser.add_argument("--frames", type=int, default=16, help="evenly spaced frames [16]")
    if kind == "audio":
        parser.add_argument("--seconds", type=float, required=True, help="cut or filled to this")
        parser.add_argument("--sample-rate", type=int, default=16000, help="in hertz [16000]")
    if kind == "points":
        parser.add_argument("--points", type=int, default=1024, help="of each cloud [1024]")


def _add_import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder or s3:// prefix of class folders")
    add("destination", metavar="DESTINATION", help="folder, s3:// prefix, or a .parquet file")
    add("--test-fraction", type=float, help="of each class, where no folder says the split [0.2]")
    add("--group-by", metavar="REGEX", help="what it matches in a path is never split")
    add("--classes", metavar="FILE", help="class names in the order of their labels: text or JSON")
    add("--ignore", metavar="GLOB", action="append", default=[], help="leave these out (repeat)")
    add("--skip-broken", type=int, default=0, metavar="N", help="skip up to N broken files [0]")
    add("--seed", type=int, default=0, help="of the order of rows and of all draws [0]")
    add("--part-mib", type=int, default=64, help="about how large a part is in memory [64]")
    add("--workers", type=int, help="threads that read and decode [CPUs + 4]")
    add("--restart", action="store_true", help="remove an earlier import first")
    _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object on stdout"
    )
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def _import(parsed: argparse.Namespace) -> int:
    from orchestrator.importing.run import carry_out

    request = _request(parsed)
    try:
        with _watching() as watch:
            outcome = carry_out(request, watch)
    except KeyboardInterrupt:
        raise Stopped(
            f"{parsed.destination}: the import was interrupted; the same command goes on after the "
            "last complete part"
        ) from None
    about = _about(outcome.uri, outcome.dataset)
    if parsed.json:
        done = {
            "skipped": outcome.dataset["skipped"],
            "parts": len(outcome.dataset["parts"]),
            "parts_before": outcome.parts_before,
            "seconds": round(outcome.seconds, 2),
        }
        print(json.dumps(about | done))
    else:
        _print(about)
        _print_outcome(outcome)
    return 0


def _request(parsed: argparse.Namespace) -> "Request":
    from orchestrator.importing.classes import read_classes
    from orchestrator.importing.plan import Request

    return Request(
        kind=_kind(parsed),
        source=parsed.source,
        destination=parsed.destination,
        classes=read_classes(Path(parsed.classes)) if parsed.classes else None,
        test_fraction=parsed.test_fraction,
        group_by=parsed.group_by,
        ignore=tuple(parsed.ignore),
        seed=parsed.seed,
        part_bytes=parsed.part_mib * 2**20,
        skip_broken=parsed.skip_broken,
        workers=parsed.workers,
        restart=parsed.restart,
    )


def _kind(parsed: argparse.Namespace) -> "Kind":
    """The kind that is asked for; the libraries of the others are not imported."""
    if parsed.kind == "images":
        from orchestrator.importing.images import Images

        return Images(parsed.size, parsed.fit, parsed.encoding)
    if parsed.kind == "audio":
        from orchestrator.importing.audio import Audio

        return Audio(parsed.seconds, parsed.sample_rate)
    if parsed.kind == "videos":
        from orchestrator.importing.videos import Videos

        return Videos(parsed.frames, parsed.size, parsed.fit)
    from orchestrator.importing.points import PointClouds

    return PointClouds(parsed.points)


@contextmanager
def _watching() -> Iterator["Watch"]:
    """A bar on stderr, where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:  # fmt: skip
        bar = progress.add_task("files", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _about(uri: str, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """What `import` and `show` both tell, as plain values."""
    declared = dataset["dataset"]
    return {
        "uri": uri,
        "modality": declared["modality"],
        "dtype": declared["dtype"],
        "shape": declared["shape"],
        "encoding": declared.get("encoding", "raw"),
        "rows": dataset["rows"],
        "classes": {
            name: {split: dataset["counts"][split][label] for split in ("train", "test")}
            for label, name in enumerate(dataset["classes"])
        },
        "digest": dataset["digest"],
    }


def _show(parsed: argparse.Namespace) -> int:
    from orchestrator.importing.show import look

    seen = look(parsed.uri, verify=parsed.verify)
    about = _about(seen.uri, seen.dataset) | {"verified": seen.verified}
    if parsed.json:
        print(json.dumps(about))
        return 0
    _print(about)
    if seen.verified:
        print("every row was read, and is what the digest says")
    return 0


def _print(about: Mapping[str, Any]) -> None:
    out = Console(highlight=False)
    shape = " × ".join(str(size) for size in about["shape"])
    stored = "" if about["encoding"] == "raw" else f", stored as {about['encoding']}"
    rows = about["rows"]
    out.print(f"data set  [bold]{escape(about['uri'])}[/]", soft_wrap=True)
    out.print(f"samples   {about['modality']}, {shape} {about['dtype']}{stored}")
    out.print(f"rows      {rows['train']:,} train, {rows['test']:,} test")
    out.print(f"digest    {about['digest']}", soft_wrap=True)
    table = Table("label", "class", "train", "test", box=None)
    for label, (name, counts) in enumerate(about["classes"].items()):
        table.add_row(str(label), escape(name), f"{counts['train']:,}", f"{counts['test']:,}")
    out.print(table)


def _print_outcome(outcome: "Outcome") -> None:
    parts = len(outcome.dataset["parts"])
    if outcome.parts_before and outcome.parts_before >= parts:
        print("it was imported already: nothing was to do")
        return
    before = f", {outcome.parts_before} of them by an earlier run" if outcome.parts_before else ""
    print(f"imported in {outcome.seconds:.1f} s: {parts} parts{before}")
    if skipped := outcome.dataset["skipped"]:
        print(f"skipped {skipped} broken files: see skipped.json beside the parts")
