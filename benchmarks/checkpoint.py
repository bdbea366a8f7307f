"""How fast a checkpoint goes up to an object store and comes back, against boto3 and Ray's way.

    python benchmarks/checkpoint.py [--rounds 5] [--mib 256] [--storage s3://bucket/prefix]

Without `--storage` a real S3 server (OpenStack Swift, one node) is started here, on loopback;
otherwise the AWS variables say where the bucket is. In each round all contestants move the same
new bytes, in an order that changes from round to round:

up      ours: a whole checkpoint of a trial: file and manifest, both verified
        boto3: `upload_fileobj` in parts of the same size, as many at a time
        ray: a folder through what Ray Train uploads with by default (pyarrow.fs.copy_files)
memory  ours: a checkpoint, verified; boto3: `download_fileobj`, as many requests at a time
file    ours: a blob into a machine's cache, verified; boto3: `download_fileobj`; ray: the folder

Shown are MiB/s, medians over rounds, and ours over the other's, from the lowest round to the
highest. The first round is not counted. Then follows what such an upload costs a training that
goes on meanwhile: a ViT-Ti/16 on 224 px images takes as many steps again and again, in turns
without a checkpoint, and with one that is taken before the first of them and goes up as trials'
do.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import cross_entropy

from m2pt.training.memory import keep_freed_memory
from m2pt.training.report import EpochReport
from m2pt.training.state import FORMAT, State
from m2pt.training.world import World
from orchestrator.ray_backend.reporting import GangSession
from orchestrator.ray_backend.worker import Gang
from orchestrator.storage import blobs, s3
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.s3_read import RANGE_BYTES, READERS
from orchestrator.storage.uri import Store

MIB = 1024 * 1024
NAME = "state.safetensors"
Step = Callable[[], object]
Seconds = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Transfer:
    """One way, and what all contestants made of it."""

    way: str
    mib_per_second: Mapping[str, float]
    """Medians by contestant."""
    ratios: Mapping[str, tuple[float, float, float]]
    """Ours over another's, round by round: lowest, median, highest."""


def transfers(uri: str, mib: int, rounds: int) -> list[Transfer]:
    """Up, into memory and into a file, by all contestants. Everything is deleted again."""
    found: list[Seconds] = []
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            found.append(_round(uri, os.urandom(mib * MIB), number, Path(folder)))
    ways = {way: None for way, _ in found[0]}  # in the order of their first time
    return [_transfer(way, mib, found[1:]) for way in ways]


def _transfer(way: str, mib: int, rounds: list[Seconds]) -> Transfer:
    names = sorted(name for known, name in rounds[0] if known == way)
    ratios = {
        name: sorted(seconds[way, name] / seconds[way, "ours"] for seconds in rounds)
        for name in names
        if name != "ours"
    }
    return Transfer(
        way=way,
        mib_per_second={n: mib / median(one[way, n] for one in rounds) for n in names},
        ratios={name: (all_[0], median(all_), all_[-1]) for name, all_ in ratios.items()},
    )


def _round(uri: str, content: bytes, number: int, folder: Path) -> Seconds:
    """The seconds of all contestants, way by way; nothing of it stays in the bucket."""
    store = Store.open(f"{uri}/{number}")
    assert isinstance(store, S3Store)
    try:
        sha256 = blobs.put(store, content)
        read: dict[str, bytes] = {}
        steps = _steps(store, content, sha256, (folder, read))
        seconds = {}
        for way in ("up", "memory", "file"):
            names = sorted(name for known, name in steps if known == way)
            for turn in range(len(names)):
                name = names[(turn + number) % len(names)]
                began = time.perf_counter()
                steps[way, name]()
                seconds[way, name] = time.perf_counter() - began
        _check(store, content, folder, read)
        return seconds
    finally:
        for entry in store.list():
            store.delete(entry.key)


def _steps(
    store: S3Store, content: bytes, sha256: str, to: tuple[Path, dict[str, bytes]]
) -> dict[tuple[str, str], Step]:
    """What each contestant does on each way; it leaves what it read where `to` says."""
    import boto3
    from boto3.s3.transfer import TransferConfig

    folder, read = to
    trial = TrialCheckpoints(store, "s", "t", Accepted(1))
    up = TransferConfig(multipart_chunksize=store.part_bytes, max_concurrency=s3.UPLOADS)
    down = TransferConfig(multipart_chunksize=RANGE_BYTES, max_concurrency=READERS)
    plain, bucket = boto3.client("s3"), store.bucket.name
    theirs, ray_at = f"{store.bucket.prefix}/boto3", f"{bucket}/{store.bucket.prefix}/ray"
    (folder / "made").mkdir()
    (folder / "made" / NAME).write_bytes(content)
    upload, download, files = _ray()

    def load() -> None:
        manifest = trial.latest()
        assert manifest is not None
        read["ours"] = trial.load(manifest)[NAME]

    def into_memory() -> None:
        target = io.BytesIO()
        plain.download_fileobj(bucket, theirs, target, Config=down)
        read["boto3"] = target.getvalue()

    def into_file() -> None:
        with (folder / "boto3").open("wb") as file:
            plain.download_fileobj(bucket, theirs, file, Config=down)

    return {
        ("up", "ours"): lambda: trial.save(1, {NAME: content}, {}),
        ("up", "boto3"): lambda: plain.upload_fileobj(
            io.BytesIO(content), bucket, theirs, Config=up
        ),
        ("up", "ray"): lambda: upload(str(folder / "made"), files, ray_at),
        ("memory", "ours"): load,
        ("memory", "boto3"): into_memory,
        ("file", "ours"): lambda: blobs.fetch(store, sha256, folder / "cache"),
        ("file", "boto3"): into_file,
        ("file", "ray"): lambda: download(files, ray_at, str(folder / "ray"), filelock=False),
    }


def _ray() -> tuple[Callable[..., None], Callable[..., None], Any]:
    """Ray Train's own upload and download, and the file system that it makes of an address."""
    from pyarrow import fs
    from ray.train.v2._internal.execution import storage

    endpoint, options = os.environ.get("AWS_ENDPOINT_URL"), ""
    if endpoint:
        parts = urlsplit(endpoint)
        options = f"?endpoint_override={parts.netloc}&scheme={parts.scheme}"
    files, _ = fs.FileSystem.from_uri(f"s3://any/{options}")
    return storage._upload_to_fs_path, storage._download_from_fs_path, files


def _check(store: S3Store, content: bytes, folder: Path, read: dict[str, bytes]) -> None:
    """All have moved what they were to move."""
    assert read["ours"] == read["boto3"] == content
    sizes = {entry.key: entry.size for entry in store.list()}
    assert sizes["boto3"] == sizes[f"ray/{NAME}"] == len(content)
    assert (folder / "boto3").read_bytes() == content
    assert (folder / "ray" / NAME).read_bytes() == content


@dataclass(frozen=True)
class Overlap:
    """Seconds of the same steps without and with an upload beside them."""

    mib: float
    """Of the checkpoint."""
    steps: int
    alone: float
    beside: float
    blocked: float
    """Seconds that the training stood still to copy its state."""
    lost: tuple[float, float, float]
    """Of the time without, round by round: lowest, median, highest."""


class _Unheard(GangSession):
    """A session of a trial that reports to nobody."""

    def _stop_asked(self) -> bool:
        return False

    def _node_is_leaving(self) -> bool:
        return False

    def _send(self, number: int, value: dict[str, object], *, wait: bool) -> bool:
        return False


def overlap(uri: str, steps: int, rounds: int) -> Overlap:
    """Train with and without; everything that was stored is deleted again."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as a gang's workers do
    model = VisionTransformer(embed_dim=192, depth=12, num_heads=3)
    optimizer = torch.optim.AdamW(model.parameters())
    images, labels = torch.randn(8, 3, 224, 224), torch.arange(8)

    def train() -> None:
        for _ in range(steps):
            cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]  # torch
            optimizer.step()
            optimizer.zero_grad()

    def capture() -> State:
        tensors = {f"model.{name}": part.clone() for name, part in model.state_dict().items()}
        for number, state in enumerate(optimizer.state.values()):
            tensors |= {
                f"{part}.{number}": state[part].clone() for part in ("exp_avg", "exp_avg_sq")
            }
        return State(tensors, {"format": FORMAT})

    train()
    store = Store.open(f"{uri}/overlap")
    checkpoints = TrialCheckpoints(store, "s", "t", Accepted(1))
    gang = Gang(mailbox=None, number=0, world=World(), control=None)
    session = _Unheard(gang, {}, checkpoints, 0, frozenset(), 1, {})
    alone, beside, blocked = [], [], []
    try:
        for number in range(1, rounds + 1):
            began = time.perf_counter()
            train()
            alone.append(time.perf_counter() - began)
            began = time.perf_counter()
            session.report(EpochReport(number, rounds + 1, {}, {}, {}), capture)
            blocked.append(time.perf_counter() - began)
            train()
            beside.append(time.perf_counter() - began)
            with session:  # what is still on its way does not count, nor runs into the next round
                pass
        newest = checkpoints.latest()
        assert newest is not None
        size = sum(file.size for file in newest.files.values())
    finally:
        for entry in store.list():
            store.delete(entry.key)
    lost = sorted(two / one - 1 for one, two in zip(alone, beside, strict=True))
    return Overlap(
        mib=size / MIB,
        steps=steps,
        alone=median(alone),
        beside=median(beside),
        blocked=median(blocked),
        lost=(lost[0], median(lost), lost[-1]),
    )


@contextmanager
def local_server() -> Iterator[str]:
    """A Swift of our own, to which this process's AWS variables lead; a prefix in its bucket."""
    sys.path.insert(0, str(Path(__file__).parent.parent))  # a script sees its own folder alone
    from tests.swift import running

    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as swift:
        os.environ.update(swift.variables)
        yield f"s3://{swift.bucket()}/benchmark"


def show(found: list[Transfer]) -> None:
    """A line for each way and contestant."""
    print(f"{'way':<8}{'by':<8}{'MiB/s':>7}  ours over it (lowest to highest)")
    for transfer in found:
        for name, rate in transfer.mib_per_second.items():
            low, middle, high = transfer.ratios.get(name, (1.0, 1.0, 1.0))
            told = "" if name == "ours" else f"{middle:5.2f} ({low:.2f} to {high:.2f})"
            print(f"{transfer.way:<8}{name:<8}{rate:>7.0f}  {told}")


def show_overlap(found: Overlap) -> None:
    """Two lines."""
    low, middle, high = found.lost
    print(f"{found.steps} steps: {found.alone:.2f} s alone, {found.beside:.2f} s beside the upload")
    print(
        f"of a checkpoint of {found.mib:.0f} MiB: {middle:+.1%} ({low:+.1%} to {high:+.1%});"
        f" {found.blocked:.3f} s of it to copy the state"
    )


def main() -> None:
    """Measure, and print rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=256, help="size of a checkpoint")
    parser.add_argument("--steps", type=int, default=40, help="of training beside one upload")
    parser.add_argument("--storage", help="a prefix in a bucket of your own")
    parser.add_argument("--json", action="store_true", help="one object per line")
    parsed = parser.parse_args()
    with nullcontext(parsed.storage) if parsed.storage else local_server() as uri:
        found = transfers(uri, parsed.mib, parsed.rounds)
        beside = overlap(uri, parsed.steps, parsed.rounds)
    if parsed.json:
        everything: list[Transfer | Overlap] = [*found, beside]
        for one in everything:
            print(json.dumps(asdict(one)))
    else:
        show(found)
        show_overlap(beside)


if __name__ == "__main__":
    main()
