"""A machine asks its object store once for each blob, however many processes and trials it runs."""

import multiprocessing
import random
from collections import Counter
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from orchestrator.storage import blobs, layout
from orchestrator.storage.uri import Store
from tests.proxy import ProxiedS3

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
PROCESSES = 8
TRIALS = 50
WIDTH = 512
SIZES = (1000, 3 * MIB, 9 * MIB, 20 * MIB)


def _work(uri: str, wanted: list[str], cache: Path) -> None:
    """One worker: trial after trial, each with its auxiliary."""
    store = Store.open(uri)
    for sha256 in wanted:
        path = blobs.fetch(store, sha256, cache)
        assert blobs.file_sha256(path) == sha256


def test_fifty_trials_of_one_machine_fetch_each_auxiliary_once(
    proxied_s3: ProxiedS3, tmp_path: Path
) -> None:
    store, proxy, draw = Store.open(proxied_s3.uri), proxied_s3.proxy, random.Random(0)
    known = [blobs.put(store, draw.randbytes(size)) for size in SIZES]
    proxy.seen.clear()
    trials = [known[number % len(known)] for number in range(TRIALS)]
    spawn = multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(target=_work, args=(store.uri, trials[rank::PROCESSES], tmp_path / "cache"))
        for rank in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * PROCESSES

    gets = [seen for seen in proxy.seen if seen.method == "GET"]
    asked = Counter((seen.path, seen.headers["range"]) for seen in gets)
    assert set(asked.values()) == {1}
    for sha256, size in zip(known, SIZES, strict=True):
        key = layout.blob(sha256)
        spans = sorted(
            tuple(int(end) for end in span.removeprefix("bytes=").split("-"))
            for path, span in asked
            if path.endswith(key)
        )
        assert spans[0][0] == 0
        assert all(stop + 1 == start for (_, stop), (start, _) in pairwise(spans))
        assert spans[-1][1] + 1 >= size
    assert {seen.method for seen in proxy.seen} <= {"GET", "HEAD"}


def _own_mib() -> float:
    """What this process has in memory that no file stands behind."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line
    )
    return int(line.split()[1]) / 1024


def _load(path: Path, sent: Connection) -> None:
    from m2pt.weights.files import load_blocks

    before = _own_mib()
    blocks = load_blocks(path)
    total = sum(float(weight.sum()) for weight in blocks.values())  # every byte is looked at
    sent.send((total, sum(weight.nbytes for weight in blocks.values()) / MIB, _own_mib() - before))


def test_a_fetched_blob_is_mapped_and_not_copied(tmp_path: Path) -> None:
    import torch  # in here: the workers above have no use for it
    from safetensors.torch import save

    shapes = {
        "attn.qkv": (3 * WIDTH, WIDTH),
        "attn.proj": (WIDTH, WIDTH),
        "mlp.fc1": (4 * WIDTH, WIDTH),
        "mlp.fc2": (WIDTH, 4 * WIDTH),
    }
    weights = {
        f"blocks.{block}.{linear}.weight": torch.ones(shape)
        for block in range(12)
        for linear, shape in shapes.items()
    }
    store = Store.open(str(tmp_path / "store"))
    path = blobs.fetch(store, blobs.put(store, save(weights)), tmp_path / "cache")
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_load, args=(path, there))
    process.start()
    total, mib, grown = here.recv()
    process.join()
    assert total == 144 * WIDTH * WIDTH
    assert mib == total * 4 / MIB > 100
    assert grown < mib / 4, f"{grown:.0f} MiB of its own for weights of {mib:.0f} MiB"
