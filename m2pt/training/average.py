"""The exponential moving average, by timm, of what training changes, and of nothing else."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn


class Average:
    """The average of a model's `learned` tensors; what is not among them, it never holds.

    It starts at the weights as they are. λ is averaged as the weights are, and so are running
    statistics; whole numbers are copied.
    """

    def __init__(self, learned: Mapping[str, Tensor], decay: float) -> None:
        """`learned`: names and tensors of a model's state dict, which stay the model's own."""
        # λ values that linears share are there once for each of them
        self._names = list({id(tensor): name for name, tensor in learned.items()}.values())
        self._own = nn.Module()
        for number, name in enumerate(self._names):
            tensor = learned[name].detach()
            if isinstance(learned[name], nn.Parameter):
                self._own.register_parameter(str(number), nn.Parameter(tensor, requires_grad=False))
            else:
                self._own.register_buffer(str(number), tensor)
        self._ema = ModelEmaV3(self._own, decay=decay)

    def update(self) -> None:
        """Take the step that the weights just took into the average."""
        self._ema.update(self._own)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by name, for reading and for loading a state into."""
        kept = self._ema.module.state_dict()
        return {name: kept[str(number)] for number, name in enumerate(self._names)}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Meanwhile the model has the averages, and these have the model's weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the model's weights, bit for bit, one tensor at a time."""
        theirs = self._ema.module.state_dict()
        for name, own in self._own.state_dict().items():
            kept = own.clone()
            own.copy_(theirs[name])
            theirs[name].copy_(kept)
