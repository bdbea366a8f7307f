"""Tiny transformers, and hypothesis strategies over everything that a pathway can be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from m2pt.data.config import DataInfo, Modality
from m2pt.models.build import build_model
from m2pt.models.config import ModelConfig, Tokenizer
from m2pt.pathway.config import BANDS, Coverage, Envelope, Pathway, Scale
from m2pt.pathway.coverage import LINEAR_PATHS, layer_name, mapping, select
from m2pt.pathway.reparam import effective_scales

WIDTH, CLASSES = 12, 5


def tiny(seed: int, depth: int = 3, *, width: int = WIDTH, qkv_bias: bool = True) -> Any:
    """A ViT for images of 8 x 8, with weights large enough that every layer matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VisionTransformer(
            img_size=8,
            patch_size=4,
            in_chans=1,
            num_classes=CLASSES,
            embed_dim=width,
            depth=depth,
            num_heads=3,
            mlp_ratio=2.0,
            qkv_bias=qkv_bias,
        )
        for block in model.blocks:
            for path in LINEAR_PATHS.values():
                nn.init.normal_(block.get_submodule(path).weight, std=0.3)
    return model.eval()


def images(batch: int = 2) -> Tensor:
    """Random images (batch, 1, 8, 8), always the same."""
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def auxiliaries_for(depth: int, count: int, *, width: int = WIDTH) -> dict[str, Any]:
    """So many auxiliaries; the names hide nothing of nn.Module, though they would like to."""
    return {name: tiny(100 + i, depth, width=width) for i, name in enumerate(NAMES[:count])}


NAMES = ("audio", "type", "scale_audio")


def randomise(values: Mapping[tuple[str, str], nn.Parameter], seed: int = 7) -> None:
    """Give every λ value a number of its own around ±0.5."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in values.values():  # a shared one more than once, which does no harm
            drawn = torch.rand(value.shape, generator=generator) + 0.1
            value.copy_(torch.where(drawn > 0.6, 0.1 - drawn, drawn))


@dataclass(frozen=True)
class Case:
    """A target of `depth` blocks, auxiliaries of `theirs`, and how they are joined."""

    depth: int
    theirs: int
    count: int
    pathway: Pathway
    modality: Modality

    def target(self) -> Any:
        """The plain target."""
        return target_of(self.modality, self.depth)

    def auxiliaries(self) -> dict[str, Any]:
        """What it borrows from."""
        return auxiliaries_for(self.theirs, self.count)


def target_of(modality: Modality, depth: int, seed: int = 0) -> Any:
    """A target of a modality, with weights large enough that every layer matters."""
    info = DataInfo(modality, SHAPES[modality], CLASSES, tuple("abcde"), "")
    tokenizer = Tokenizer(patch=4, tubelet=2, groups=3, group_size=2)
    config = ModelConfig(WIDTH, depth, 3, mlp_ratio=2.0, tokenizer=tokenizer)
    model: Any = build_model(config, info, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in model.blocks:
            for path in LINEAR_PATHS.values():
                linear = block.get_submodule(path)
                linear.weight.copy_(0.3 * torch.randn(linear.weight.shape, generator=generator))
                linear.bias.copy_(0.1 * torch.randn(linear.bias.shape, generator=generator))
    return model.eval()


def samples_of(modality: Modality) -> Tensor:
    """Two random samples of a modality, always the same."""
    return torch.randn(2, *SHAPES[modality], generator=torch.Generator().manual_seed(0))


SHAPES: dict[Modality, tuple[int, ...]] = {
    "image": (1, 8, 8),
    "audio": (1, 12, 8),
    "video": (2, 4, 8, 8),
    "point": (9, 3),
}


def randomise_changes(model: nn.Module, seed: int = 9) -> None:
    """Give learned changes of low rank, which start at 0, something to say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".rows_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def expected_tensors(case: Case, model: Any) -> dict[str, Tensor]:
    """W + Σ λW' and b + Σ λb' in float64 by name, straight from the definition.

    λ and what was learned beside W' are read from `model`, which has the pathway.
    """
    plain, pathway = case.target(), case.pathway
    partners = mapping(pathway.mapping, case.depth, case.theirs)
    effective, parameters = effective_scales(model), dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    for block, linear in select(pathway.coverage, case.depth):
        layer = layer_name(block, linear)
        own = plain.get_submodule(layer)
        totals = {"weight": own.weight.detach().double(), "bias": own.bias.detach().double()}
        if pathway.bias == "ignored":
            del totals["bias"]
        for name, auxiliary in case.auxiliaries().items():
            other = auxiliary.get_submodule(layer_name(partners[block], linear))
            theirs = _prepared(pathway, own.weight.detach(), other)
            rows = f"{layer}.parametrizations.weight.0.rows_{name}"
            if rows in parameters:
                columns = parameters[rows.replace("rows_", "columns_")].detach().double()
                theirs["weight"] = theirs["weight"] + parameters[rows].detach().double() @ columns
            strength = _by_row(pathway, linear, effective[name, layer].detach().double(), own)
            totals = {
                kind: total + (strength[:, None] if total.ndim == 2 else strength) * theirs[kind]
                for kind, total in totals.items()
            }
        found |= {f"{layer}.{kind}": total for kind, total in totals.items()}
    return found


def _prepared(pathway: Pathway, own: Tensor, other: Any) -> dict[str, Tensor]:
    theirs = {"weight": other.weight.detach().double(), "bias": other.bias.detach().double()}
    if pathway.prepare == "frobenius":
        factor = own.double().norm() / theirs["weight"].norm()
        theirs = {kind: tensor * factor for kind, tensor in theirs.items()}
    if pathway.prepared_rank is not None:
        rows, values, columns = torch.linalg.svd(theirs["weight"], full_matrices=False)
        values[pathway.prepared_rank :] = 0
        theirs["weight"] = rows @ torch.diag(values) @ columns
    if pathway.keep == "bf16":
        return {kind: tensor.float().bfloat16().double() for kind, tensor in theirs.items()}
    return theirs


def _by_row(pathway: Pathway, linear: str, scale: Tensor, own: Any) -> Tensor:
    covered = [name in pathway.coverage.linears for name in ("q", "k", "v")]
    if linear != "qkv" or not any(covered):
        return scale.repeat_interleave(len(own.weight) // len(scale))
    numbers = iter(scale if pathway.scale.split_qkv else scale.expand(3))
    by_third = torch.stack([next(numbers) if on else torch.zeros(()) for on in covered])
    return by_third.double().repeat_interleave(len(own.weight) // 3)


def coverages(depth: int) -> st.SearchStrategy[Coverage]:
    """Every form of coverage that a transformer of this depth allows."""
    counts = st.integers(1, depth)
    some_blocks = st.sets(st.integers(0, depth - 1), min_size=1).map(tuple)
    blocks = st.one_of(
        st.just("all"),
        st.builds("{}:{}".format, st.sampled_from(["first", "last", "every"]), counts),
        some_blocks,
    )
    bands = st.one_of(st.just({"qkv"}), st.sets(st.sampled_from(BANDS)))
    others = st.sets(st.sampled_from(("proj", "fc1", "fc2")))
    linears = st.builds(set.union, bands, others).filter(bool).map(tuple)
    return st.builds(Coverage, blocks, linears)


def scale_configs(init: st.SearchStrategy[float], depth: int) -> st.SearchStrategy[Scale]:
    """Every kind of λ."""
    envelopes = st.builds(
        Envelope,
        st.sampled_from(["constant", "linear", "cosine", "anneal", "hold"]),
        st.floats(0.1, 1.0),
    )
    several = st.lists(init, min_size=2, max_size=depth + 1).map(tuple)
    common = (st.booleans(), st.booleans(), envelopes, st.booleans())
    return st.one_of(
        st.builds(_scale, init, st.sampled_from(["linear", "block", "global"]), *common),
        st.builds(_scale, several, st.sampled_from(["linear", "block"]), *common),
    )


def _scale(init: Any, granularity: Any, learned: bool, split: bool, *more: Any) -> Scale:
    return Scale(init, learned, granularity, split, *more)


@st.composite
def cases(draw: st.DrawFn, init: st.SearchStrategy[float]) -> Case:
    """Anything that a pathway can be, in any modality."""
    depth = draw(st.integers(1, 3))
    theirs = draw(st.integers(1, 4))
    rules: st.SearchStrategy[Any] = st.one_of(
        st.just("stretched"),
        st.lists(st.integers(0, theirs - 1), min_size=depth, max_size=depth).map(tuple),
    )
    if draw(st.booleans()):
        theirs = depth
        rules = st.one_of(st.sampled_from(["identity", "reversed"]), st.integers(-4, 4))
    trainable: Any = draw(st.sampled_from([True, False, "from:0.5", "rank:2"]))
    trained = trainable in (True, "from:0.5")
    pathway = Pathway(
        draw(coverages(depth)),
        draw(rules),
        draw(scale_configs(init, depth)),
        trainable,
        keep="same" if trained else draw(st.sampled_from(["same", "bf16"])),
        prepare=draw(st.sampled_from(["none", "frobenius", "rank:3"])),
        bias=draw(st.sampled_from(["ignored", "added"])),
    )
    count = draw(st.integers(1, len(NAMES)))
    return Case(depth, theirs, count, pathway, draw(st.sampled_from(get_args(Modality))))
