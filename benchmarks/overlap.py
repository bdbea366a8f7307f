"""What a checkpoint that is uploaded while training goes on costs the training. See checkpoint.py.

A ViT-Ti/16 trains on 224 px images; as many steps again and again, in turns without a checkpoint
and with one that is taken before the first of them and goes up meanwhile, as trials do it.
"""

import time
from dataclasses import dataclass
from statistics import median

import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import cross_entropy

from m2pt.training.report import EpochReport
from m2pt.training.state import FORMAT, State
from m2pt.training.world import World
from orchestrator.ray_backend.reporting import GangSession
from orchestrator.ray_backend.worker import Gang
from orchestrator.storage.checkpoints import Accepted, TrialCheckpoints
from orchestrator.storage.uri import Store

MIB = 1024 * 1024


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


def show(found: Overlap) -> None:
    """Two lines."""
    low, middle, high = found.lost
    print(f"{found.steps} steps: {found.alone:.2f} s alone, {found.beside:.2f} s beside the upload")
    print(
        f"of a checkpoint of {found.mib:.0f} MiB: {middle:+.1%} ({low:+.1%} to {high:+.1%});"
        f" {found.blocked:.3f} s of it to copy the state"
    )
