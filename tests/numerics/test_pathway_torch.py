"""A pathway under the rest of torch: checkpointing, autocast, compile, DDP, direct weight reads."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from m2pt.pathway.config import Coverage, Envelope, Pathway, Scale
from m2pt.pathway.reparam import attach_pathway, fuse_pathway, scales, set_progress
from m2pt.pathway.whole import gathered
from tests.numerics.pathway_setup import auxiliaries_for, images, randomise, tiny
from tests.numerics.two_workers import start

pytestmark = pytest.mark.slow

PATHWAYS = {
    "paper": Pathway(),
    "frozen, apart, annealed": Pathway(
        trainable=False, scale=Scale(split_qkv=True, envelope=Envelope("anneal"))
    ),
    "shared by all, ramped": Pathway(
        mapping="reversed", scale=Scale(granularity="global", envelope=Envelope("linear"))
    ),
}
each_pathway = pytest.mark.parametrize("pathway", PATHWAYS.values(), ids=PATHWAYS.keys())


def attached(pathway: Pathway, target: nn.Module | None = None) -> nn.Module:
    model = target or tiny(0)
    attach_pathway(model, auxiliaries_for(3, 2), pathway)
    randomise(scales(model))
    set_progress(model, 0.4)
    return model.train()


def gradients(model: nn.Module, run: Any = None) -> dict[str, Tensor]:
    """The gradients of `model`'s parameters, once `run` (or the model itself) has been run."""
    model.zero_grad()
    run = model if run is None else run
    torch.autograd.backward(run(images()).float().square().sum())
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], bound: float) -> None:
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert (found[name] - grad).norm() <= bound * grad.norm() + 1e-7, name


class DirectAttention(nn.Module):
    """Reads `qkv.weight` itself, as video backbones do to give q and v biases but not k."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.qkv = nn.Linear(attention.qkv.in_features, attention.qkv.out_features, bias=False)
        self.qkv.weight = attention.qkv.weight
        self.proj = attention.proj

    def forward(self, tokens_BLD: Tensor, **_: object) -> Tensor:
        batch, length, width = tokens_BLD.shape
        joined = functional.linear(tokens_BLD, self.qkv.weight)
        q, k, v = joined.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        projected: Tensor = self.proj(mixed.reshape(batch, length, width))
        return projected


def reading_directly(seed: int) -> Any:
    model = tiny(seed, qkv_bias=False)
    for block in model.blocks:
        block.attn = DirectAttention(block.attn)
    return model


@each_pathway
def test_models_that_read_the_weight_themselves_see_the_pathway(pathway: Pathway) -> None:
    through_modules = attached(pathway, tiny(0, qkv_bias=False))
    directly = attached(pathway, reading_directly(0))
    wanted, found = through_modules(images()), directly(images())
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, reading_directly(0)(images()), rtol=1e-2)
    assert_close(gradients(directly), gradients(through_modules), 1e-4)
    keys = list(reading_directly(0).state_dict())
    assert list(fuse_pathway(directly).state_dict()) == keys
    assert torch.allclose(directly(images()), wanted, rtol=1e-4, atol=1e-5)


@each_pathway
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(pathway: Pathway, reentrant: bool) -> None:
    model = attached(pathway)
    wanted = gradients(model)
    blocks = cast(nn.Sequential, model.blocks)
    for block in blocks:
        block.forward = checkpointed(block.forward, reentrant)
    assert_close(gradients(model), wanted, 0.0)


def checkpointed(forward: Any, reentrant: bool) -> Any:
    return lambda *inputs: torch.utils.checkpoint.checkpoint(
        forward, *inputs, use_reentrant=reentrant
    )


@each_pathway
def test_autocast_leaves_weights_and_gradients_in_float32(pathway: Pathway) -> None:
    model = attached(pathway)
    wanted = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert cast(Any, model).blocks[0].mlp.fc1.weight.dtype == torch.float32
        found = gradients(model)
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    scale_grads = {n for n in wanted if "scale_" in n}
    assert scale_grads
    for name in wanted.keys() - scale_grads:  # λ's sums cancel, and so lose more than the others
        assert (found[name] - wanted[name]).norm() <= 0.2 * wanted[name].norm() + 1e-3, name


def test_it_compiles_whole_and_progress_needs_no_second_graph() -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    pathway = PATHWAYS["shared by all, ramped"]
    model = attached(pathway)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    try:
        for t in (0.0, 0.3, 1.0):
            set_progress(model, t)
            assert_close(gradients(model, compiled), gradients(model), 1e-5)
        assert counters["stats"]["unique_graphs"] == 1
        before = compiled(images())
        twin = copy.deepcopy(model)
        assert torch.allclose(before, fuse_pathway(twin)(images()), rtol=1e-4, atol=1e-5)
        assert torch.equal(compiled(images()), before)
    finally:
        torch.compiler.reset()
        counters.clear()


@each_pathway
def test_deepcopies_are_equal_and_independent(pathway: Pathway) -> None:
    model = attached(pathway)
    twin = copy.deepcopy(model)
    before = model(images())
    assert torch.equal(twin(images()), before)
    assert_close(gradients(twin), gradients(model), 0.0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    set_progress(twin, 0.9)
    assert torch.equal(model(images()), before)


def test_averaged_copies_work() -> None:
    model = attached(PATHWAYS["paper"])
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert torch.allclose(average(images()), model(images()))


def test_functional_call_swaps_a_shared_scale_everywhere() -> None:
    model = attached(Pathway(scale=Scale(granularity="global")))
    (name,) = [n for n, _ in model.named_parameters() if n.endswith("scale_audio.value")]
    found = torch.func.functional_call(model, {name: torch.tensor([0.7])}, (images(),))
    with torch.no_grad():
        scales(model)["audio", "blocks.0.mlp.fc1"].fill_(0.7)
    assert torch.equal(found, model(images()))


@contextmanager
def one_process_group(folder: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@each_pathway
def test_ddp_gives_the_same_gradients(pathway: Pathway, tmp_path: Path) -> None:
    model = attached(pathway)
    wanted = gradients(model)
    with one_process_group(tmp_path):
        assert_close(gradients(model, DistributedDataParallel(model)), wanted, 1e-6)


def test_fsdp2_gives_the_same_gradients_and_fuses_what_was_gathered(tmp_path: Path) -> None:
    model = attached(PATHWAYS["frozen, apart, annealed"])
    wanted, before = gradients(model), model(images())
    with one_process_group(tmp_path):
        mesh = init_device_mesh("cpu", (1,))
        for block in cast(Any, model).blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        sharded = cast(dict[str, Any], gradients(model))
        assert_close({name: grad.full_tensor() for name, grad in sharded.items()}, wanted, 1e-6)
        with pytest.raises(ValueError, match=r"blocks.0.attn.qkv is sharded.*gather first"):
            fuse_pathway(model)
        fused = fuse_pathway(gathered(model))
        assert {type(tensor) for tensor in fused.state_dict().values()} == {Tensor}
    tiny(1).load_state_dict(fused.state_dict(), strict=True)
    assert list(fused.state_dict()) == list(tiny(1).state_dict())
    assert torch.allclose(fused(images()), before, rtol=1e-4, atol=1e-5)


def _rank(rank: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = attached(PATHWAYS["shared by all, ramped"])
    wrapped = DistributedDataParallel(model)
    torch.autograd.backward(wrapped(images()[rank : rank + 1]).square().sum())
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    torch.save(found, f"{results}.{rank}")
    dist.destroy_process_group()


def test_two_processes_get_the_mean_of_their_gradients(tmp_path: Path) -> None:
    store, results = str(tmp_path / "store"), str(tmp_path / "gradients")
    start(_rank, store, results)
    wanted = gradients(attached(PATHWAYS["shared by all, ramped"]))
    for rank in range(2):
        found = torch.load(f"{results}.{rank}", weights_only=True)
        assert_close({name: 2 * grad for name, grad in found.items()}, wanted, 1e-5)


def test_covering_part_of_a_model_leaves_the_rest_of_it_unparametrized() -> None:
    model = attached(Pathway(Coverage("last:1", ("fc2",))))
    changed = [
        name for name, m in model.named_modules() if type(m).__name__ == "ParametrizedLinear"
    ]
    assert changed == ["blocks.2.mlp.fc2"]
