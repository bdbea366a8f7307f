"""Reading data from a real S3 server: the same as from a folder, and its faults told."""

import threading
from pathlib import Path

import pytest
import torch

from m2pt.data import files
from m2pt.data.config import DataConfig
from m2pt.data.load import describe, load
from m2pt.data.schema import DataAway, DataError
from m2pt.training.batches import global_batches
from tests.swift import Swift
from tests.unit.test_data_stream import table_of

pytestmark = pytest.mark.slow


@pytest.fixture
def stored(swift: Swift, s3: str, tmp_path: Path) -> str:
    """A table of 24 row groups in the bucket; its address."""
    key = f"{s3.removeprefix('s3://').partition('/')[2]}/set/part-00000.parquet"
    body = Path(table_of("shapes", 16, tmp_path)).read_bytes()
    swift.client().put_object(Bucket=s3.split("/")[2], Key=key, Body=body)
    return f"{s3}/set/"


def test_an_object_reads_as_a_file_does(stored: str, tmp_path: Path) -> None:
    local = str(tmp_path / "shapes.parquet")
    for address in (stored, stored.rstrip("/"), f"{stored}part-00000.parquet"):
        assert describe(DataConfig(address)) == describe(DataConfig(local))
    for window in (None, 64):
        ours, theirs = (load(DataConfig(place, window=window)) for place in (stored, local))
        pieces = global_batches(theirs.train.order(1), 32)
        read = ours.train.stream(pieces, epoch=0, workers=2)
        for batch, wanted in zip(read, theirs.train.stream(pieces, epoch=0), strict=True):
            assert all(map(torch.equal, batch, wanted))


def test_faults_name_the_address_and_what_to_do(
    stored: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"/none/: does not exist; name a Parquet file"):
        describe(DataConfig(f"{s3}/none/"))
    with pytest.raises(DataError, match=r"no-such-bucket/x/: .*does not exist|no such bucket"):
        describe(DataConfig("s3://no-such-bucket/x/"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-wrong")
    files._bucket.cache_clear()
    with pytest.raises(DataError, match=r"access is denied; check AWS_ACCESS_KEY_ID") as raised:
        describe(DataConfig(stored))
    assert "canary" not in str(raised.value)
    files._bucket.cache_clear()


def test_a_server_that_is_away_comes_back(swift: Swift, stored: str) -> None:
    train = load(DataConfig(stored, window=64)).train
    pieces = global_batches(train.order(0), 32)
    read = train.stream(pieces, workers=1)
    seen = [len(next(read)[1])]
    swift.kill()
    with pytest.raises(DataAway, match=r"cannot be reached .* check AWS_ENDPOINT_URL"):
        describe(DataConfig(stored))
    back = threading.Thread(target=swift.start)
    back.start()
    seen += [len(labels) for _, labels in read]
    back.join()
    assert sum(seen) == len(train)
