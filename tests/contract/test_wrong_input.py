"""Wrong inputs that need no server: each is refused before anything starts, in one message."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from orchestrator import cli
from orchestrator.config.io import as_text, parse_experiment
from orchestrator.storage import layout
from orchestrator.storage.lease import Lease
from orchestrator.storage.uri import Store
from tests.contract.wrong_input import (
    BASE,
    CANARY,
    CLASSES,
    DECLARED,
    LENDING,
    TABLE,
    Columns,
    Desk,
    Trap,
    Wrong,
    blocks,
    cell,
    check_message,
    not_finite,
    saved,
    table,
    tree,
    written,
)
from tests.studies import environment

BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
WAVES = {"modality": "audio", "dtype": "int16", "shape": [32], "classes": ["a", "b"]}


def searched(text: str) -> str:
    """The file with this search space."""
    return f"{BASE}search:\n  space:\n    {text}\n"


PICTURES = {"modality": "image", "dtype": "uint8", "shape": [8, 8, 3], "encoding": "jpeg",
            "classes": CLASSES}  # fmt: skip


def pictures(rows: Columns) -> None:
    """JPEGs, of which row 6 is cut short."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    rows["data"] = [file.getvalue()] * 12
    rows["data"][6] = file.getvalue()[:200]


FILES = [
    Wrong("no file", r"gone\.yaml: no such file; beside it there is exp\.yaml",
          arguments=("search", "gone.yaml")),
    Wrong("no shipped file", "'quikstart' is shipped; did you mean 'quickstart'",
          arguments=("plan", "quikstart")),
    Wrong("a folder", "here: is a folder; name an experiment file", arguments=("plan", "here"),
          prepare=lambda folder: (folder / "here").mkdir()),
    Wrong("a device", "/dev/zero: is no ordinary file", arguments=("plan", "/dev/zero")),
    Wrong("empty", "exp.yaml: an experiment is a mapping .* this is empty", b""),
    Wrong("a list", r'exp.yaml: .* but this is \["a"\]', "- a\n"),
    Wrong("not UTF-8", "exp.yaml: not UTF-8 text: .* at byte 6", b"name: \xff\n"),
    Wrong("a checkpoint", r"exp.yaml: is larger than 1 MiB \(3.0 MiB\)", b"\0" * 3 * 2**20),
    Wrong("too many values", "exp.yaml:1:.*: more than 10000 values", "a: [" + "1," * 20_000),
    Wrong("syntax", "exp.yaml:2:6: not valid YAML: mapping values", "name: a\n data: x\n"),
    Wrong("open bracket", "exp.yaml:2:1: not valid YAML: .*missing", "name: [a\n"),
    Wrong("tab", "exp.yaml:1:7: not valid YAML", "name:\n\tx: 1".replace("\n", " ")),
    Wrong("tag", "exp.yaml:1:7: tag '.*os.system' is not allowed",
          f"name: !!python/object/apply:os.system [mkdir {CANARY}]\n"),
    Wrong("bomb", "exp.yaml:.*: more than 10000 values, aliases written out", BOMB),
    Wrong("alias within itself", "exp.yaml:1:7: an alias stands within", "data: &a [*a]\n"),
    Wrong("deep", "exp.yaml:1:.*: nested deeper than 40 levels", "a: " + "[" * 5000),
    Wrong("duplicate key", "exp.yaml:5:1: duplicate key 'name', first on line 1",
          BASE + "name: b\n"),
    Wrong("long number", "exp.yaml:5:7: a number of 5000 digits", BASE + f"seed: {'9' * 5000}"),
    Wrong("infinity", "exp.yaml:5:7: a number must be finite", BASE + "seed: .inf\n"),
    Wrong("key that is no text", "exp.yaml:5:1: a key must be text, is '1'", BASE + "1: a\n"),
]  # fmt: skip

KEYS = [
    Wrong("unknown key", "exp.yaml:5:1: trainin: unknown key; did you mean 'training'",
          BASE + "trainin: {}\n"),
    Wrong("unknown key below", "exp.yaml:3:52: model.tokenizer.pach: .* did you mean 'patch'",
          BASE.replace("patch", "pach")),
    Wrong("misplaced key", "learning_rate: unknown key here; .*'training.learning_rate'",
          BASE + "learning_rate: 1e-3\n"),
    Wrong("missing key", "exp.yaml: data: is missing", "name: a\n"),
    Wrong("text for a number", 'learning_rate: must be a number, is "1e-3x"',
          sets=["training.learning_rate=1e-3x"]),
    Wrong("quoted number", 'epochs: must be a whole number, is "3"; take the quotes off',
          sets=['training.epochs="3"']),
    Wrong("number for text", "name: must be text, is 3; put it in quotes", sets=["name=3"]),
    Wrong("text for a section", 'exp.yaml:2:1: data: must be a mapping of keys, is "digits"',
          "name: a\ndata: digits\n"),
    Wrong("value out of bounds", "training.epochs: must be 1 or more, is 0",
          sets=["training.epochs=0"]),
    Wrong("heads", "model.heads: must divide width .16., but it is 3; try 2",
          sets=["model.heads=3"]),
    Wrong("several at once", "exp.yaml: 2 problems\nexp.yaml:5:1: x: unknown\nexp.yaml:6:1: y: unk",
          BASE + "x: 1\ny: 2\n"),
    Wrong("name with a path", 'name: must be 1 to 63 lower-case .*, is "../../x"',
          sets=["name=../../x"]),
    Wrong("long name", "name: must be 1 to 63 lower-case", sets=[f"name={'a' * 300}"]),
    Wrong("emoji", "name: must be 1 to 63 lower-case .* is \"\U0001f642\"",
          sets=["name=\U0001f642"]),
    Wrong("half a character", "exp.yaml:5:7: half a character", BASE + 'seed: "\\ud800"\n'),
    Wrong("override without value", "--set training.epochs: must be path=value",
          sets=["training.epochs"]),
    Wrong("override of no key", r"--set training.epoch=3: .* did you mean 'epochs'",
          sets=["training.epoch=3"]),
    Wrong("override through a value", "--set name.x=3: name is not a section",
          sets=["name.x=3"]),
    Wrong("unknown verb", "no such verb: 'serach'; did you mean 'search'", arguments=("serach",)),
    Wrong("unknown option", "unrecognized arguments: --fast", arguments=("plan", "f", "--fast")),
    Wrong("no file named", "required: FILE", arguments=("search",)),
    Wrong("unknown study", "no study 'gone' lies under", arguments=("status", "gone")),
    Wrong("study with a path", 'STUDY: .* not "../../x"', arguments=("resume", "../../x")),
]  # fmt: skip

SPACES = [
    Wrong("path that does not exist", "exp.yaml:7:5: search.space.training.epocs: no such key .*"
          "did you mean 'training.epochs'", searched("training.epocs: {choice: [1, 2]}")),
    Wrong("low above high", r"exp.yaml:7:30: .*uniform: must be \[low, high\] .* is \[0.1, 0.01\]",
          searched("training.learning_rate: {uniform: [0.1, 0.01]}")),
    Wrong("logarithm of zero", "loguniform: the lower bound must be above 0, is 0",
          searched("training.learning_rate: {loguniform: [0, 1]}")),
    Wrong("nothing to choose", "choice: must list at least one value",
          searched("training.epochs: {choice: []}")),
    Wrong("two kinds", "must have exactly one of choice, grid",
          searched("training.epochs: {choice: [1], grid: [1]}")),
    Wrong("listed twice", "every value must be listed once, but 1 is there twice",
          searched("training.epochs: {choice: [1, 1]}")),
    Wrong("value that a rule refuses", r"choice.1: value 3 cannot be set: .*heads: must divide",
          searched("model.heads: {choice: [2, 3]}")),
    Wrong("condition that never holds", "its condition can never hold: .* is never 3; it is one of",
          searched("training.epochs: {choice: [1, 2]}\n    training.mixup: "
                          "{uniform: [0, 1], when: {training.epochs: 3}}")),
    Wrong("condition on what is not searched", "when names 'training.epochs', which is not",
          searched("training.mixup: {uniform: [0, 1], when: {training.epochs: 3}}")),
    Wrong("placement", "resources.workers: cannot be searched: it is placement",
          searched("resources.workers: {choice: [1, 2]}")),
    Wrong("tokens that do not fit", r"search.space.model.tokenizer.patch: value 3 cannot be used: "
          "model.tokenizer.patch: must divide 8", sets=["model.tokenizer.patch=2"],
          text=searched("model.tokenizer.patch: {choice: [2, 3]}")),
    Wrong("metric of the test split", "search.metric: .* test figures take no part",
          sets=["search.metric=test/accuracy"]),
    Wrong("metric that nobody measures", "search.metric: .*did you mean 'val/accuracy'",
          sets=["search.metric=val/acuracy"]),
]  # fmt: skip

WEIGHTS = [
    Wrong("unknown auxiliary", "pathway.auxiliary: 'otter' is not declared .*'other'", LENDING,
          sets=["pathway.auxiliary=otter"]),
    Wrong("missing", "auxiliaries.other.weights: other.pt: does not exist; name a", LENDING),
    Wrong("empty weights", r"other.pt: is empty \(0 bytes\)", LENDING, prepare=written(b"")),
    Wrong("web page", "other.pt: is a web page", LENDING,
          prepare=written(b"<!DOCTYPE html><title>404</title>")),
    Wrong("pointer", "other.pt: is a Git LFS pointer", LENDING,
          prepare=written(b"version https://git-lfs.github.com/spec/v1\n")),
    Wrong("truncated", "other.pt: damaged torch file .*; fetch it again", LENDING,
          prepare=saved(lambda folder: blocks(), cut=3000)),
    Wrong("code", "other.pt: holds objects that only code can rebuild.*mkdir", LENDING,
          prepare=saved(lambda folder: {"model": Trap(folder / "trace")})),
    Wrong("not finite", r"other.pt: blocks.0.attn.qkv.weight holds 768 of 768 values .*NaN",
          LENDING, prepare=saved(lambda folder: {k: w / 0 for k, w in blocks().items()})),
    Wrong("another width", "2 blocks of width 32 with 64 .* the model has 2 blocks of width 16",
          LENDING, prepare=saved(lambda folder: blocks(width=32))),
    Wrong("another depth", r"weights: mapping: .* 3 blocks and the target 2.*take stretched",
          LENDING, prepare=saved(lambda folder: blocks(depth=3))),
    Wrong("mapping for another depth", r"pathway.mapping: .* 2 blocks, and \[0, 1, 1\] has 3",
          LENDING, sets=["pathway.mapping=[0, 1, 1]"], prepare=saved(lambda folder: blocks())),
    Wrong("mapping beyond the auxiliary", r"mapping: \[0, 7\] must name .* blocks 0 to 1",
          LENDING, sets=["pathway.mapping=[0, 7]"], prepare=saved(lambda folder: blocks())),
    Wrong("searched mapping", "weights: mapping: .* 3 blocks and the target 2", LENDING,
          sets=["pathway.mapping=stretched",
                "search.space={pathway.mapping: {choice: [stretched, reversed]}}"],
          prepare=saved(lambda folder: blocks(depth=3))),
    Wrong("rank beyond the matrix", "pathway.trainable: rank 99 is more than the 16", LENDING,
          sets=["pathway.trainable='rank:99'"]),
    Wrong("trained in bf16", "pathway.keep: bf16 is for frozen weights", LENDING,
          sets=["pathway.keep=bf16"]),
    Wrong("q twice", "pathway.coverage.linears: .*qkv is q, k and v together", LENDING,
          sets=["pathway.coverage.linears=[qkv, q]"]),
    Wrong("merged and annealed", "merge_every: .*its envelope not anneal", LENDING,
          sets=["pathway.scale={merge_every: 2, envelope: {kind: anneal}}"]),
    Wrong("unknown layout", "other.pt: no block weights of a known layout .*begins with layer.0",
          LENDING, prepare=saved(lambda folder: {"layer.0": blocks()["blocks.0.attn.qkv.weight"]})),
    Wrong("another digest", "other.pt: its sha256 is .*, not 0{64}; fetch it again", LENDING,
          sets=[f"auxiliaries.other.sha256=\"{'0' * 64}\""],
          prepare=saved(lambda folder: blocks())),
    Wrong("target's weights", "target.weights: gone.pt: does not exist",
          sets=["target.weights=gone.pt"]),
]  # fmt: skip

DATA = [
    Wrong("no data file", "data: table.parquet: does not exist on this machine; name", TABLE),
    Wrong("not parquet", "table.parquet: not a readable Parquet file", TABLE,
          prepare=written(b"id,label\n1,2\n", "table.parquet")),
    Wrong("no rows", "table.parquet: has no rows; write it again", TABLE, prepare=table(count=0)),
    Wrong("no test rows", "table.parquet: no row has split 'test'", TABLE,
          prepare=table(split="train")),
    Wrong("ragged", r"table.parquet: column 'data', row 7 \(id 'row-7'\): 64 bytes .* is 5 bytes",
          TABLE, prepare=table(cell("data", 7, b"short"))),
    Wrong("label out of range", r"table.parquet: column 'label', row 5 .*0 to 1.* but it is 7",
          TABLE, prepare=table(cell("label", 5, 7))),
    Wrong("missing column", "table.parquet: no column 'label_name'; add it", TABLE,
          prepare=table(lambda rows: rows.pop("label_name"))),
    Wrong("wrong type", "column 'label' is string; write it as an integer", TABLE,
          prepare=table(lambda rows: rows.update(label=pa.array(["x"] * 12)))),
    Wrong("wrong dtype", "key 'dtype': one of uint8, .* but it is 'int64'", TABLE,
          prepare=table(declared={**DECLARED, "dtype": "int64"})),
    Wrong("NaN in a sample", r"column 'data', row 6 \(id 'row-6'\): holds NaN", TABLE,
          prepare=table(not_finite, declared={**DECLARED, "dtype": "float32", "shape": [4, 4]})),
    Wrong("corrupt picture", r"column 'data', row 6 \(id 'row-6'\): no sound JPEG .*drop the row",
          TABLE, prepare=table(pictures, declared=PICTURES)),
    Wrong("another test shape", "test.parquet: .*'shape': as in table.parquet", TABLE,
          sets=["data.test_source=test.parquet"],
          prepare=lambda folder: (
              table(split="train")(folder),
              table(split="test", name="test.parquet", declared={**DECLARED, "shape": [4, 16]})(
                  folder),
          )),
    Wrong("patch", "model.tokenizer.patch: must divide 8 .*but it is 3; try", TABLE,
          sets=["model.tokenizer.patch=3"], prepare=table()),
    Wrong("groups", "auxiliaries.other.pretrain.tokenizer.groups: at most the", BASE
          + "auxiliaries: {other: {pretrain: {data: {source: shapes}, "
          "tokenizer: {groups: 9999}}}}\npathway: {auxiliary: other}\n"),
    Wrong("auxiliary's data", "auxiliaries.other.pretrain.data: gone.parquet: does not exist", BASE
          + "auxiliaries: {other: {pretrain: {data: {source: gone.parquet}}}}\n"
          "pathway: {auxiliary: other}\n"),
    Wrong("no sample", "data.source: .* did you mean 'digits'", sets=["data.source=digit"]),
]  # fmt: skip

PLACES = [
    Wrong("s3 with one slash", "exp.yaml: storage 's3:/b': write s3://bucket/prefix",
          sets=["storage=s3:/b"]),
    Wrong("s3 without bucket", "storage 's3://': write s3://bucket", sets=["storage=s3://"]),
    Wrong("secret in storage", "exp.yaml: storage: .*AWS_SECRET_ACCESS_KEY",
          sets=[f"storage=s3://key:{CANARY}@bucket/x"]),
    Wrong("secret in an option", "storage: .*AWS_SECRET_ACCESS_KEY",
          arguments=("search", "exp.yaml", "--storage", f"s3://key:{CANARY}@bucket/x")),
    Wrong("other scheme", "storage ftp://h/x: the scheme must be s3:// or file://",
          sets=["storage=ftp://h/x"]),
    Wrong("relative file", "storage 'file:x': write file:///absolute", sets=["storage=file:x"]),
    Wrong("a file in the way", "/exp.yaml.*a file and a folder", code=3, sets=["storage=exp.yaml"]),
    Wrong("no right to write", "cannot write /sys/m2pt.*Operation not permitted", code=3,
          sets=["storage=/sys/m2pt", "tracking=sqlite:///mlflow.db"]),
    Wrong("s3 without tracking", "tracking: must be given where storage is a bucket",
          sets=["storage=s3://bucket"]),
    Wrong("folder of runs", "exp.yaml:5:1: tracking: .*folders no more.*sqlite:///mlflow.db",
          BASE + "tracking: ./mlruns\n"),
    Wrong("secret in tracking", "tracking: .* no user and no password: set MLFLOW_TRACKING_USER",
          sets=[f"tracking=http://me:{CANARY}@host:5000"]),
    Wrong("tracking that is no address", "tracking: is no address; write http", BASE
          + "tracking: 'http://[::1'\n"),
    Wrong("database of another kind", "tracking: an address carries no user",
          sets=[f"tracking=postgresql://{CANARY}@host/runs"]),
    Wrong("no database", "mlflow.db: file is not a database; MLflow did not write", code=4,
          sets=["tracking=sqlite:///mlflow.db"], prepare=written(b"words " * 99, "mlflow.db")),
    Wrong("a folder for a database", "runs is no file", code=4,
          sets=["tracking=sqlite:///runs"], prepare=lambda folder: (folder / "runs").mkdir()),
    Wrong("unwritable tracking", "tracking: /sys cannot be written to", code=4,
          sets=["tracking=sqlite:////sys/m2pt/mlflow.db"]),
    Wrong("nobody listens", "no MLflow at http://127.0.0.1:9: Connection refused; start it", code=4,
          sets=["tracking=http://127.0.0.1:9"]),
    Wrong("unknown host", "'nowhere.invalid' is not known", code=4, seconds=10,
          sets=["tracking=http://nowhere.invalid"]),
]  # fmt: skip

CLUSTER = [
    Wrong("too many workers", r"needs 4096 CPUs \(4096 x 1\), this machine has .*largest node",
          code=5, sets=["resources.workers=4096"]),
    Wrong("too many CPUs", "needs 4096 CPUs .*Lower resources.workers, cpus_per_worker", code=5,
          sets=["resources.cpus_per_worker=4096"]),
    Wrong("half GPUs", "resources.gpus_per_worker: above 1 it must be a whole number",
          sets=["resources.gpus_per_worker=1.5"]),
    Wrong("no cluster there", "no Ray cluster answers at 127.0.0.1:9", code=5,
          arguments=("search", "exp.yaml", "--address", "127.0.0.1:9")),
    Wrong("no address of a cluster", "--address 'head': write HOST:PORT", code=5,
          arguments=("search", "exp.yaml", "--address", "head")),
]  # fmt: skip

TABLE_OF_ALL = [*FILES, *KEYS, *SPACES, *WEIGHTS, *DATA, *PLACES, *CLUSTER]


@pytest.fixture
def desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Desk:
    return Desk(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("wrong", TABLE_OF_ALL, ids=str)
def test_wrong_input_is_refused(desk: Desk, wrong: Wrong) -> None:
    desk.refuses(wrong)


@pytest.mark.parametrize("verb", ["train", "search"])
def test_every_verb_looks_at_data_and_weights_first(desk: Desk, verb: str) -> None:
    gone = Wrong(verb, "target.weights: gone.pt: does not exist", sets=["target.weights=gone.pt"])
    desk.refuses(replace(gone, arguments=(verb, "exp.yaml")))


def test_all_that_is_absent_is_said_at_once_and_planned_around(desk: Desk) -> None:
    sets = ["target.weights=gone.pt", "data.source=sets/gone/"]
    told = """mine: 2 problems
              data.source: sets/gone/: does not exist
              target.weights: gone.pt: does not exist"""
    desk.refuses(Wrong("all", told, sets=sets))
    words = [word for one in sets for word in ("--set", one)]
    assert cli.main(["plan", "exp.yaml", *words]) == 0
    shown = desk.capsys.readouterr().out
    assert "absent  2 files or folders" in shown
    assert "data.source: sets/gone/\n" in shown
    assert "target.weights: gone.pt\n" in shown
    assert cli.main(["plan", "exp.yaml", "--json", *words]) == 0
    planned = json.loads(desk.capsys.readouterr().out)
    assert planned["absent"] == ["data.source: sets/gone/", "target.weights: gone.pt"]
    assert planned["cost"] is None


def test_a_study_of_another_experiment_keeps_its_name(desk: Desk) -> None:
    def prepare(folder: Path) -> None:
        store = Store.open(str(folder / "m2pt-studies"))
        other = parse_experiment(BASE, "other", ["training.epochs=9", "seed=3"])
        store.put(layout.experiment("mine"), as_text(other).encode())

    told = """name: the study 'mine' under .* belongs to another experiment
              seed: 3 there, 0 here; training.epochs: 9 there, 2 here
              choose another name"""
    desk.refuses(Wrong("name of another", told, prepare=prepare))


@pytest.mark.slow
def test_a_study_that_runs_elsewhere_is_left_alone(desk: Desk) -> None:
    with Lease.acquire(
        Store.open(str(desk.folder / "m2pt-studies")), "mine", heartbeat_seconds=1.0
    ):
        told = r"study 'mine' is already running: process \d+ on .*, since .*stop it first"
        desk.refuses(Wrong("running", told))


@pytest.mark.slow  # two interpreters that import everything
@pytest.mark.parametrize(
    "wrong",
    [
        Wrong("a table", "data: table.parquet: not a readable Parquet file", TABLE,
              prepare=written(b"id\n1\n", "table.parquet")),
        Wrong("a secret", "storage: .*AWS_SECRET_ACCESS_KEY",
              arguments=("search", "exp.yaml", f"--storage=s3://k:{CANARY}@b")),
    ],
    ids=str,
)  # fmt: skip
def test_a_process_of_its_own_refuses_alike(tmp_path: Path, wrong: Wrong) -> None:
    """What a person sees, and a script that asked for JSON."""
    folder = tmp_path / "desk"
    folder.mkdir()
    (folder / "exp.yaml").write_bytes(str(wrong.text).encode())
    if wrong.prepare is not None:
        wrong.prepare(folder)
    before = tree(folder)
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *wrong.arguments, "--json"],
        cwd=folder,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == wrong.code
    check_message(done.stderr, wrong)
    told = json.loads(done.stdout)
    assert told == {"error": done.stderr.removeprefix("orchestrator: ").strip(), "exit_code": 2}
    assert tree(folder) == before


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_of_ours_is_one_line_and_its_traceback_is_kept(desk: Desk, debug: bool) -> None:
    def broken(path: object, overrides: object) -> None:
        raise KeyError(CANARY)

    desk.monkeypatch.setattr("orchestrator.commands.options.load_experiment", broken)
    desk.monkeypatch.setenv("XDG_STATE_HOME", str(desk.folder))
    desk.monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    assert cli.main(["search", "exp.yaml", *["--debug"] * debug]) == 1
    err = desk.capsys.readouterr().err
    kept = list(desk.folder.glob("m2pt/bugs/*.txt"))
    assert "unexpected error, this is a bug of the orchestrator: KeyError: '***'; please" in err
    assert CANARY not in err
    if debug:
        assert "Traceback (most recent call last)" in err
        assert not kept
    else:
        assert len(err.splitlines()) == 1
        (file,) = kept
        assert str(file) in err
        assert "in broken" in file.read_text()
        assert CANARY not in file.read_text()
