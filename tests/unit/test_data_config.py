"""Data and model configurations refuse what breaks a rule, and a plan can check shapes."""

import pytest
from pydantic import TypeAdapter, ValidationError

from m2pt.data.config import DataConfig, DataInfo, Modality
from m2pt.data.describe import describe
from m2pt.data.schema import DataError
from m2pt.models.config import ModelConfig, Tokenizer
from m2pt.models.tokens import token_count, token_grid
from m2pt.pretrain.config import PretrainConfig

STANDARD: dict[str, object] = {"source": "digits", "augment": "standard"}


def info(modality: Modality, *shape: int) -> DataInfo:
    return DataInfo(modality, shape, 2, ("a", "b"), "")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"source": "digit"}, "did you mean 'digits'"),
        ({"source": "here.csv"}, r"ends in \.parquet"),
        ({"source": "here"}, r"ends in \.parquet, or a folder, with a / in its path"),
        ({"source": "there/here.csv"}, r"ends in \.parquet"),
        ({"source": "http://host/a.parquet"}, r"s3:// or file://, but it is http://\.\.\."),
        ({"source": "s3:/bucket/a.parquet"}, "s3://bucket/folder/"),
        ({"source": "s3://bucket"}, "s3://bucket/folder/ or s3://bucket/file"),
        ({"source": "s3://key:secret@bucket/a.parquet"}, "carries no key, .* AWS_ACCESS_KEY_ID"),
        ({"source": "s3://bucket/a.parquet?region=x"}, "no options"),
        ({"source": "file:a.parquet"}, "file:///folder/"),
        ({"source": "file://host/a.parquet"}, "file:///absolute/path"),
        ({"source": "a.parquet", "window": 0}, "window: .* 0"),
        ({"source": "digits", "window": 64}, "window: .* null for embedded data, .* 64"),
        ({"source": "tones", "test_source": "t.parquet"}, "brings its own test split"),
        ({"source": "a.parquet", "test_source": "t.csv"}, "test_source: .*'t.csv'"),
        ({"source": "digits", "validation": 0.0}, "validation: .* 0.0"),
        ({"source": "digits", "validation": float("nan")}, "validation: .* nan"),
        ({"source": "digits", "validation_seed": -1}, "validation_seed: .* -1"),
        ({"source": "digits", "limit": 0}, "limit: .* 0"),
        ({"source": "digits", "augment": "strong"}, "augment: one of none, light, .*'strong'"),
        ({"source": "digits", "augment_strength": 0.0}, "augment_strength: .* 0.0"),
        ({"source": "digits", "augment": "light", "mirror": True}, "mirror: .* that is light"),
        ({"source": "shapes", "turn": True}, "turn: goes with augment: standard"),
        ({"source": "digits", "erase": 0.25}, "erase: goes with augment: standard, .* is none"),
        (STANDARD | {"erase": 1.5}, "erase: a probability from 0 to 1, but it is 1.5"),
        (STANDARD | {"crop": 0.0}, "crop: above 0 and at most 1, but it is 0.0"),
        (STANDARD | {"rand_augment": "9"}, "rand_augment: .* such as rand-m9.*, but it is '9'"),
        (STANDARD | {"mask_bands": -1}, "mask_bands: a whole number of 0 or more, .* -1"),
    ],
)
def test_data_rules(values: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told) as raised:
        DataConfig(**values)  # type: ignore[arg-type]  # a table of mixed values
    assert "secret@" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"source": "shapes", "erase": 0.1}, "erase: is for image and video data, not point"),
        ({"source": "digits", "mask_bands": 8}, "mask_bands: is for audio data, not image"),
        ({"source": "clips", "noise": False}, "noise: is for audio and point data, not video"),
    ],
)
def test_augmentations_of_another_modality(values: dict[str, object], told: str) -> None:
    with pytest.raises(DataError, match=told):
        describe(DataConfig(augment="standard", **values))  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize(
    "source",
    ["a.parquet", "./set", "data/set.v2/", "s3://bucket/set/", "s3://b/a.parquet", "file:///set"],
)
def test_addresses_of_tables(source: str) -> None:
    assert DataConfig(source, test_source=source, window=64).source == source


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"width": 0}, "width: .* 0"),
        ({"width": 64, "heads": 5}, r"heads: must divide width \(64\).* 5; try 4"),
        ({"mlp_ratio": 0.0}, "mlp_ratio: .* 0.0"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio"),
        ({"drop_path": 1.0}, "drop_path: .* 1.0"),
    ],
)
def test_model_rules(values: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ModelConfig(**values)  # type: ignore[arg-type]  # a table of mixed values


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"epochs": 0}, "epochs: .* 0"),
        ({"mask_ratio": 1.0}, "mask_ratio: .* 1.0"),
        ({"learning_rate": float("inf")}, "learning_rate: .* inf"),
        ({"seed": -1}, "seed: .* -1"),
    ],
)
def test_pretrain_rules(values: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PretrainConfig(DataConfig("digits"), **values)  # type: ignore[arg-type]  # mixed values


def test_tokenizer_rules() -> None:
    with pytest.raises(ValueError, match=r"group_size: .* 0"):
        Tokenizer(group_size=0)


def test_unknown_keys_are_refused_by_the_trunk() -> None:
    with pytest.raises(ValidationError, match=r"tokenizer\.pach"):
        TypeAdapter(ModelConfig).validate_python({"tokenizer": {"pach": 2}})


@pytest.mark.parametrize(
    ("data", "tokenizer", "grid"),
    [
        (info("image", 3, 64, 32), Tokenizer(patch=8), (8, 4)),
        (info("audio", 1, 320, 64), Tokenizer(patch=16), (20, 4)),
        (info("video", 3, 16, 64, 64), Tokenizer(patch=16, tubelet=4), (4, 4, 4)),
        (info("point", 128, 3), Tokenizer(groups=16), (16,)),
    ],
)
def test_token_grid(data: DataInfo, tokenizer: Tokenizer, grid: tuple[int, ...]) -> None:
    assert token_grid(tokenizer, data) == grid


@pytest.mark.parametrize(
    ("data", "tokenizer", "told"),
    [
        (info("image", 3, 64, 48), Tokenizer(patch=5), r"tokenizer\.patch: .*3 x 64 x 48.* try 4"),
        (info("video", 3, 16, 64, 64), Tokenizer(patch=16, tubelet=5), r"tubelet: .* 16 .* try 4"),
        (info("point", 16, 3), Tokenizer(groups=17), "groups: at most the 16 points.* 17"),
        (info("point", 16, 3), Tokenizer(groups=4, group_size=20), "group_size: at most the 16"),
    ],
)
def test_tokens_that_do_not_fit(data: DataInfo, tokenizer: Tokenizer, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        token_count(tokenizer, data)
