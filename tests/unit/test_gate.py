"""The promotion gate as a table of measured values, and the card that tells of them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import pytest

from orchestrator.errors import RequestError
from orchestrator.promotion.card import model_card
from orchestrator.promotion.gate import (
    Agreement,
    AtDtype,
    Figure,
    PromotionError,
    Proof,
    Weights,
    check,
    first_apart,
)
from orchestrator.tracking.registry import check_alias, check_name

NAN = float("nan")
SAME = Agreement(256, 2e-7, 0, 0, 0.9, 0.9)
GOOD = Proof(
    keys=31,
    keys_equal=True,
    parameters_trained=40_000,
    parameters_exported=26_000,
    parameters_plain=26_000,
    probe=SAME,
    test=SAME,
    weights=Weights("blocks.0.attn.qkv.weight", 9e-8, 5e-7),
    dtypes=(AtDtype("float64", 32, 2e-7, 1e-6), AtDtype("bfloat16", 32, 0.0, 2**-6)),
    figures=(Figure("val/accuracy", 0.9, 0.9, 0.88, 0.91),),
    plain_timm=True,
)
ABOUT: dict[str, Any] = {
    "study": "digits",
    "trial": "0123456789ab",
    "dtype": "float32",
    "timm": None,
    "data": {
        "modality": "point",
        "shape": [128, 3],
        "classes": 6,
        "task": "classes",
        "digest": "d" * 64,
    },
    "normalisation": {"mean": [0.0], "std": [1.0]},
    "source": {"source": "shapes"},
    "seed": 0,
    "epochs": 3,
    "auxiliaries": ["audio"],
    "scales": {"audio/blocks.0.attn.qkv": -0.25, "audio/blocks.0.mlp.fc1": 0.05},
    "proof": asdict(GOOD),
}


def test_what_holds_is_let_through() -> None:
    assert GOOD.failures() == []
    assert check("t", GOOD) is GOOD
    assert replace(GOOD, test=None, weights=None, figures=None, plain_timm=None).failures() == []
    ties = Agreement(256, 1e-5, 3, 3, 0.9, 0.89)
    assert replace(GOOD, probe=ties).failures() == []
    edge = Figure("val/loss", 0.5, 0.6, 0.5, 0.7)
    assert replace(GOOD, figures=(edge,)).failures() == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"keys_equal": False, "keys_apart": "number 3 is a instead of b"},
            "its keys are not those of the plain model, in the same order: number 3 is a",
        ),
        ({"parameters_exported": 26_003}, "it has 26,003 parameters where the plain model has 26,"),
        (
            {"weights": Weights("blocks.1.mlp.fc2.weight", 1e-3, 5e-7)},
            "blocks.1.mlp.fc2.weight differs from W + λW' by 1.00e-03 of its largest number "
            "(at most 5e-07)",
        ),
        ({"weights": Weights("head.weight", NAN, 5e-7)}, "head.weight differs from W + λW' by nan"),
        ({"changed_by_zero": ("a", "b")}, "with every λ at 0, fusing changed 2 of the target's"),
        ({"probe": replace(SAME, relative_difference=2e-5)}, "on probe samples its logits differ"),
        ({"probe": replace(SAME, relative_difference=NAN)}, "its logits differ by nan"),
        (
            {"test": replace(SAME, disagreements=2, ties=1)},
            "2 of 256 predictions differ, 1 of them",
        ),
        (
            {"dtypes": (AtDtype("bfloat16", 32, 0.02, 2**-6),)},
            "in bfloat16 its logits differ by 2.00e-02 (at most 2e-02) on 32 samples",
        ),
        ({"dtypes": (AtDtype("float64", 32, NAN, 1e-6),)}, "in float64 its logits differ by nan"),
        (
            {"figures": (Figure("val/accuracy", 0.95, 0.9, 0.88, 0.91),)},
            "val/accuracy is 0.9 on the fused model where the trial recorded 0.95, 0.05 apart; "
            "rounding explains 0.88 to 0.91",
        ),
        ({"figures": (Figure("val/loss", NAN, 0.9, 0.8, 1.0),)}, "the trial recorded nan"),
        ({"figures": ()}, "the trial recorded no figure on validation"),
        ({"plain_timm": False}, "timm's own VisionTransformer does not take its weights"),
    ],
)
def test_each_rule_says_what_is_wrong_and_by_how_much(
    changes: Mapping[str, Any], says: str
) -> None:
    (told,) = (broken := replace(GOOD, **changes)).failures()
    assert told.startswith(says) or says in told
    with pytest.raises(PromotionError, match=r"^trial t: the fused model .* Nothing was") as raised:
        check("t", broken)
    assert told in str(raised.value)
    assert raised.value.exit_code == 3


def test_every_broken_rule_is_told() -> None:
    broken = replace(GOOD, keys_equal=False, plain_timm=False, changed_by_zero=("a",))
    assert len(broken.failures()) == 3


def test_where_keys_first_differ() -> None:
    assert first_apart(["a", "b"], ["a", "b"]) == ""
    assert first_apart(["a", "c", "b"], ["a", "b", "c"]) == "number 1 is c instead of b"
    assert first_apart(["a"], ["a", "b"]) == "number 1 is missing instead of b"
    assert first_apart(["a", "b"], ["a"]) == "number 1 is b instead of nothing"


def parts(card: str) -> Iterator[tuple[str, str]]:
    """(heading, text) of each section."""
    for section in card.split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        yield heading, text


def test_the_card_of_a_model_without_evidence() -> None:
    card = dict(parts(model_card(ABOUT)))
    assert list(card) == [
        "Load", "Data", "Evidence", "λ at the end", "The merge", "Weights and licences"
    ]  # fmt: skip
    assert "load_model()" in card["Load"]
    assert "| audio/blocks.0.attn.qkv | -0.25000 |" in card["λ at the end"]
    assert "Mean |λ| 0.15, largest 0.25" in card["λ at the end"]
    assert "| logits in float64, 32 samples | 2.0e-07 | at most 1e-06 |" in card["The merge"]
    assert "licences not stated" in card["Weights and licences"]


def test_the_card_tells_evidence_and_licences() -> None:
    evidence = {
        "arm": "audio · all linears",
        "arms_tried": 7,
        "verdict": "Nothing is claimed.",
        "figures": [
            {"of": "test accuracy, %", "level": "92.5 (3)", "baseline": "", "difference": ""}
        ],
    }
    audio = {
        "name": "audio",
        "source": "study://ears/audio",
        "uri": "hf://someone/audiomae",
        "licence": "CC-BY-NC-4.0",
        "data": "AS-2M",
        "modality": "audio",
        "supervised": False,
        "warnings": ["its licence keeps it from commercial use"],
    }
    lineage = [audio]
    text = model_card(ABOUT | {"evidence": evidence, "lineage": lineage})
    front, card = text.split("---\n")[1], dict(parts(text))
    assert "license: cc-by-nc-4.0\n" in front
    assert "7 arms were tried" in card["Evidence"]
    assert "| test accuracy, % | 92.5 (3) | – | – |" in card["Evidence"]
    assert "Verdict: Nothing is claimed." in card["Evidence"]
    row = (
        "| audio | study://ears/audio (hf://someone/audiomae) | AS-2M, audio, without labels "
        "| CC-BY-NC-4.0 | not stated |"
    )
    assert row in card["Weights and licences"]
    assert "- audio: its licence keeps it from commercial use" in card["Weights and licences"]
    several = model_card(ABOUT | {"lineage": [*lineage, {"name": "b", "source": "b"}]})
    assert "license: other\nlicense_name: see-below\n" in several


def test_the_card_of_a_rival_claims_no_pathway() -> None:
    plain = ABOUT | {"auxiliaries": [], "scales": {}}
    lora = model_card(plain | {"rival": {"kind": "lora", "rank": 3}})
    assert "trained with LoRA of rank 3, which is merged" in lora
    assert "baseline, which" not in lora
    average = model_card(ABOUT | {"scales": {}, "rival": {"kind": "average", "share": 0.5}})
    assert "weighted mean of its own weights and those of `audio` (0.5 of the mean)" in average
    assert "(M2PT)" not in average
    assert "A plain vision transformer, which borrowed no weights" in model_card(plain)


def test_the_card_says_from_scratch_only_where_that_is_known() -> None:
    """A baseline may have started from public weights: what a study exports does not say."""
    plain = ABOUT | {"auxiliaries": [], "scales": {}}
    assert "lie in the report of the study" in model_card(plain)
    assert "from scratch" not in model_card(plain)
    assert "from scratch" in model_card(plain | {"lineage": []})


def test_a_licence_in_words_is_no_identifier() -> None:
    lineage = [{"name": "audio", "source": "a", "licence": "ours: ask first"}]
    assert "license: other\nlicense_name: see-below\n" in model_card(ABOUT | {"lineage": lineage})


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "it's", "x" * 257])
def test_names_that_no_registry_takes(name: str) -> None:
    with pytest.raises(RequestError, match="--name"):
        check_name(name)


@pytest.mark.parametrize("alias", ["", "latest", "Latest", "v3", "V12", "a b", "ä", "a/b"])
def test_aliases_that_mlflow_keeps(alias: str) -> None:
    with pytest.raises(RequestError, match="--alias"):
        check_alias(alias)


def test_names_and_aliases_that_are_taken() -> None:
    assert check_name("digits from elsewhere") == "digits from elsewhere"
    assert [check_alias(one) for one in ("champion", "v3x", "a-b_c1")] == [
        "champion",
        "v3x",
        "a-b_c1",
    ]
