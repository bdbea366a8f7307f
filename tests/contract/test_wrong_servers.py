"""Storage, MLflow and Ray that are not as an experiment says: refused before anything starts."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import TrackingError
from orchestrator.tracking.probe import check, probe
from tests.contract.mlflow_setup import Server, Target
from tests.contract.wrong_input import BASE, CANARY, Desk, Wrong, check_message, tree
from tests.ray.head import Head, running_head
from tests.swift import Swift

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
PATIENT_SECONDS = 60.0  # 10 are promised, on a machine that does nothing else
STORAGE, TRACKING, CLUSTER = 3, 4, 5


@pytest.fixture
def desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Desk:
    return Desk(tmp_path, monkeypatch, capsys)


# Storage: a real S3 server ----------------------------------------------------------------------


def listed(swift: Swift) -> dict[str, list[str]]:
    """Every key of every bucket."""
    client = swift.client()
    buckets = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
    return {
        bucket: [one["Key"] for one in client.list_objects_v2(Bucket=bucket).get("Contents", ())]
        for bucket in buckets
    }


S3 = [
    Wrong("wrong secret", "cannot .* s3://.*SignatureDoesNotMatch.*check AWS_SECRET_ACCESS_KEY",
          code=STORAGE, environment={"AWS_SECRET_ACCESS_KEY": CANARY}),
    Wrong("unknown key",  # servers differ in what they call it
          r"key lab:n\.\.\.: (InvalidAccessKeyId|SignatureDoesNotMatch).*; .* check AWS",
          code=STORAGE,
          environment={"AWS_ACCESS_KEY_ID": "lab:nobody", "AWS_SECRET_ACCESS_KEY": CANARY}),
    Wrong("nobody answers", "http://127.0.0.1:9.*is the server up, and AWS_ENDPOINT_URL right",
          code=STORAGE, environment={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}),
    Wrong("endpoint with a password", "AWS_ENDPOINT_URL must look like https://host:port",
          environment={"AWS_ENDPOINT_URL": f"http://me:{CANARY}@host:1"}),
]  # fmt: skip


@pytest.mark.parametrize("wrong", S3, ids=str)
def test_s3_that_does_not_let_us_in(desk: Desk, swift: Swift, wrong: Wrong) -> None:
    bucket = swift.bucket()
    refused_by_s3(desk, swift, wrong, bucket)


def test_s3_that_may_be_read_only(desk: Desk, swift: Swift) -> None:
    reader = Wrong("read only", "AccessDenied.*policy", code=STORAGE, environment={
        name: swift.reader_variables[name] for name in ("AWS_ACCESS_KEY_ID",
                                                        "AWS_SECRET_ACCESS_KEY")})  # fmt: skip
    refused_by_s3(desk, swift, reader, swift.bucket(readable=True))


def test_s3_without_the_bucket(desk: Desk, swift: Swift) -> None:
    gone = Wrong("no bucket", "s3://no-such-bucket-here.* no such bucket.*create it", code=STORAGE)
    refused_by_s3(desk, swift, gone, "no-such-bucket-here")


def test_https_where_the_server_speaks_http(desk: Desk, swift: Swift) -> None:
    endpoint = swift.endpoint.replace("http://", "https://")
    wrong = Wrong("https", f"speaks http, not https: export AWS_ENDPOINT_URL={swift.endpoint}",
                  code=STORAGE, environment={"AWS_ENDPOINT_URL": endpoint})  # fmt: skip
    refused_by_s3(desk, swift, wrong, swift.bucket())


def refused_by_s3(desk: Desk, swift: Swift, wrong: Wrong, bucket: str) -> None:
    before = listed(swift)
    for name, value in swift.variables.items():
        desk.monkeypatch.setenv(name, value)
    sets = (f"storage=s3://{bucket}/prefix", "tracking=sqlite:///mlflow.db")
    err = desk.refuses(replace(wrong, sets=sets, seconds=PATIENT_SECONDS))
    assert swift.secret not in err
    assert swift.reader_secret not in err
    assert listed(swift) == before


# MLflow: a real server --------------------------------------------------------------------------


@pytest.fixture
def mlflow(mlflow_server: Server) -> Iterator[Server]:
    """It holds afterwards what it held before."""
    before = names(mlflow_server)
    yield mlflow_server
    assert names(mlflow_server) == before


@pytest.fixture
def page() -> Iterator[str]:
    """The address of a web server that is no MLflow."""

    class Page(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            self.send_response(self.server.status)  # type: ignore[attr-defined]  # set below
            self.end_headers()
            self.wfile.write(self.server.text)  # type: ignore[attr-defined]  # set below

        def log_message(self, *words: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.status, server.text = 404, b"<html>not here</html>"  # type: ignore[attr-defined]  # of ours, on it
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def names(server: Server) -> list[str]:
    """All experiments that an MLflow holds, in its bin as well."""
    from mlflow.entities import ViewType

    found = Target(server.uri).client.search_experiments(view_type=ViewType.ALL)
    return [one.name for one in found]


def refused_by_mlflow(desk: Desk, uri: str, told: str) -> None:
    desk.refuses(
        Wrong(told, told, sets=[f"tracking={uri}"], code=TRACKING, seconds=PATIENT_SECONDS)
    )


def test_mlflow_that_can_be_written_is_left_as_it_was(mlflow: Server) -> None:
    check(mlflow.uri)
    assert [one.ok for one in probe(mlflow.uri)] == [True, True, True]


def test_mlflow_that_refuses_its_name(desk: Desk, mlflow: Server) -> None:
    """A name of its machine that nobody has told it of."""
    resolve = socket.getaddrinfo

    def known(host: Any, *words: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if host == "mlflow.example" else host, *words, **options)

    desk.monkeypatch.setattr(socket, "getaddrinfo", known)
    uri = mlflow.uri.replace("127.0.0.1", "mlflow.example")
    host = uri.removeprefix("http://")
    refused_by_mlflow(desk, uri, f"refuses its own name '{host}' .*--allowed-hosts {host}")
    (_, found) = probe(uri)
    assert not found.ok
    assert found.remedy.startswith("start it with --allowed-hosts")


def test_what_answers_is_no_mlflow(desk: Desk, page: str) -> None:
    refused_by_mlflow(desk, page, f"what answers at {page} is no MLflow server .*check host and")


def test_what_answers_is_no_ray(desk: Desk, page: str) -> None:
    address = page.removeprefix("http://")
    told = f"what answers at {address} is not Ray: give the port"
    arguments = ("search", "exp.yaml", "--address", address)
    desk.refuses(Wrong(told, told, arguments=arguments, code=CLUSTER, seconds=PATIENT_SECONDS))


def test_a_server_that_never_answers(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        refused_by_mlflow(desk, uri, f"{uri} does not answer within 6 s")


def test_https_to_an_mlflow_without_tls(desk: Desk, mlflow: Server) -> None:
    uri = mlflow.uri.replace("http", "https")
    refused_by_mlflow(desk, uri, f"no TLS connection with {uri}.*does the server speak http")


def test_an_mlflow_whose_database_cannot_be_written(mlflow: Server) -> None:
    """Locked for good by somebody else; the check gives up in time and says so."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(mlflow.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match=r"does not answer|cannot be written to"):
            check(mlflow.uri)
        other.execute("ROLLBACK")


# Ray: a real head with token authentication ------------------------------------------------------


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with running_head(tmp_path_factory.mktemp("head"), cpus=1) as running:
        (running.folder / "exp.yaml").write_text(BASE)
        yield running


@pytest.mark.parametrize(
    ("told", "override"),
    [
        (r"needs 64 CPUs \(64 x 1\), the cluster has 1 \(largest node 1\); 1 of its 64 workers",
         "resources.workers=64"),
        ("needs 1 GPUs .*the cluster has 0", "resources.gpus_per_worker=1"),
    ],
    ids=["CPUs", "GPUs"],
)  # fmt: skip
def test_a_cluster_that_has_too_little(desk: Desk, head: Head, told: str, override: str) -> None:
    words = ("search", "exp.yaml", "--address", head.address)
    few = Wrong(told, told, sets=[override], arguments=words, code=CLUSTER, seconds=PATIENT_SECONDS)
    assert head.variables["RAY_AUTH_TOKEN"] not in desk.refuses(few)


@pytest.mark.parametrize(
    ("told", "variables"),
    [
        ("refuses the token of RAY_AUTH_TOKEN.*Set RAY_AUTH_TOKEN to what `ray get-auth-token`",
         {"RAY_AUTH_TOKEN": f"{CANARY}-and-twenty-more"}),
        ("asks for a token. Set RAY_AUTH_TOKEN", {"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": ""}),
    ],
    ids=["wrong token", "no token"],
)  # fmt: skip
def test_a_cluster_that_cannot_be_used(head: Head, told: str, variables: dict[str, str]) -> None:
    """In processes of their own: Ray ends the process that it cannot serve."""
    before = tree(head.folder)
    began = time.monotonic()
    refused = head.orchestrator("search", "exp.yaml", "--address", head.address, **variables)
    out, err = refused.communicate(timeout=200)
    print(f"refused after {time.monotonic() - began:.1f} s")
    assert (refused.returncode, out) == (CLUSTER, ""), err
    check_message(err, Wrong(told, told))
    assert head.variables["RAY_AUTH_TOKEN"] not in err
    assert tree(head.folder) == before
