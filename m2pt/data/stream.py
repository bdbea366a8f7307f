"""Samples of a table that is larger than memory: read by row group, ahead of those who use them.

Threads, not processes: a trial starts in a tenth of a second, and what costs time here (Parquet,
pictures, Fourier transforms) leaves the interpreter's lock alone (docs/decisions/0005-reading.md).
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2pt.data.augment import Augmentation
from m2pt.data.config import DataInfo
from m2pt.data.decode import Fetched, collect, fetch
from m2pt.data.order import windowed
from m2pt.data.parquet import Rows, Table
from m2pt.data.prepare import Normalisation, Scaling, prepare
from m2pt.data.samples import Batch, seen_as, told_again, view_draws

_READERS = 2  # threads that fetch row groups, beside those that decode
_WINDOWS_HELD = 2  # the one in use, and the next one while that is used up


class StreamedSamples:
    """Rows of a table as samples, of which a bounded number is in memory at a time.

    Held are the stored bytes of two windows, or of the row groups that the next few batches need
    where those are more; and the prepared samples of two batches for each worker, and one more.
    """

    def __init__(
        self,
        table: Table,
        rows: Rows,
        *,
        info: DataInfo,
        window: int,
        normalisation: Normalisation,
        augmentation: Augmentation | None = None,
    ) -> None:
        """`rows` (N,), ascending, are this split; at least `window` samples are mixed at a time."""
        self.info = info
        self._labels = table.labels.chosen(rows)
        self._table, self._rows, self._window = table, rows, window
        self._counts = np.diff(np.searchsorted(rows, table.starts))
        self._normalisation, self._augmentation = normalisation, augmentation

    @property
    def labels(self) -> Tensor:
        """See `Readable.labels`."""
        return torch.from_numpy(self._labels.at(np.arange(len(self))))

    def __len__(self) -> int:
        return len(self._rows)

    def order(self, seed: int) -> Tensor:
        """Row groups shuffled, windows of several of them mixed: see `order.windowed`."""
        return windowed(self._counts, self._window, seed)

    def batch(
        self, indices: Sequence[int] | Tensor, *, epoch: int | None = None, seed: int = 0
    ) -> Batch:
        """See `Samples.batch`; it reads every row group that the indices touch."""
        piece = torch.as_tensor(indices, dtype=torch.int64)
        return next(self.stream([piece], epoch=epoch, seed=seed))

    def stream(
        self,
        pieces: Sequence[Tensor],
        *,
        epoch: int | None = None,
        seed: int = 0,
        views: int = 1,
        workers: int = 0,
    ) -> Generator[Batch, None, None]:
        """See `Readable.stream`.

        Raises:
            DataError: a sample cannot be used; names file, row and id.
            DataAway: the server that has the table cannot be reached.
        """
        change = self._change(epoch, seed, views)
        in_workers = change if self._changes_in_threads() else None
        rows = [self._rows[piece.numpy()] for piece in pieces]
        with ExitStack() as stack:
            decoders = _pool(stack, workers)
            reader = _Reader(
                self._table,
                rows,
                ahead=self._ahead(rows) if workers else 0,
                pool=_pool(stack, min(workers, _READERS)),
            )
            waiting: deque[Future[Tensor]] = deque()
            for number, piece in enumerate(pieces):
                for later in range(number + len(waiting), min(number + 1 + 2 * workers, len(rows))):
                    sources = reader.sources(later)
                    waiting.append(
                        decoders.submit(self._make, rows[later], pieces[later], sources, in_workers)
                    )
                batch = waiting.popleft().result()
                reader.release(number)
                if change is not None and in_workers is None:
                    batch = change(batch, piece)
                labels = torch.from_numpy(self._labels.at(piece.numpy()))
                yield batch, told_again(labels, len(batch))

    def _ahead(self, pieces: Sequence[Rows]) -> int:
        """How many of this worker's samples the windows hold that are kept in memory."""
        share = sum(len(piece) for piece in pieces) / max(1, len(self))
        return int(_WINDOWS_HELD * self._window * share)

    def _make(
        self,
        rows: Rows,
        piece: Tensor,
        sources: dict[int, Future[Fetched]],
        change: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> Tensor:
        fetched = {group: source.result() for group, source in sources.items()}
        prepared = prepare(collect(self._table, fetched, rows), self._table.schema)
        scaling = Scaling(self._normalisation, prepared.full_scale, prepared.data.ndim)
        batch = scaling(prepared.data)
        return batch if change is None else change(batch, piece)

    def _change(
        self, epoch: int | None, seed: int, views: int
    ) -> Callable[[Tensor, Tensor], Tensor] | None:
        augmentation = self._augmentation
        if epoch is None or augmentation is None:
            return None
        return lambda batch, piece: seen_as(
            batch, augmentation, view_draws(seed, epoch, piece, views)
        )

    def _changes_in_threads(self) -> bool:
        """timm's transforms draw from the generators of the process, so they stay in one thread."""
        kind = self._augmentation
        if kind is None or kind.config.augment != "standard":
            return True
        return kind.modality not in ("image", "video")


class _Reader:
    """The row groups that pieces need, fetched in the order of their first use.

    Row groups of later pieces are fetched as well, while all that are held have fewer than `ahead`
    samples of the split together.
    """

    def __init__(self, table: Table, pieces: Sequence[Rows], *, ahead: int, pool: Executor) -> None:
        self._table, self._ahead, self._pool = table, ahead, pool
        sizes = [len(piece) for piece in pieces]
        rows = np.concatenate([*pieces, np.empty(0, dtype=np.int64)])
        groups = table.group_of(rows)
        self._groups = np.split(groups, np.cumsum(sizes[:-1]))
        by_group = np.argsort(groups, kind="stable")
        names, starts = np.unique(groups[by_group], return_index=True)
        numbers = np.repeat(np.arange(len(pieces)), sizes)[by_group]
        self._rows = dict(zip(names.tolist(), np.split(rows[by_group], starts[1:]), strict=False))
        self._first: dict[int, int] = {}
        self._last: dict[int, list[int]] = {}
        for name, uses in zip(names.tolist(), np.split(numbers, starts[1:]), strict=False):
            self._first[name] = int(uses[0])
            self._last.setdefault(int(uses[-1]), []).append(name)
        self._queue = deque(sorted(self._first, key=lambda name: self._first[name]))
        self._held: dict[int, Future[Fetched]] = {}
        self._samples = 0

    def sources(self, piece: int) -> dict[int, Future[Fetched]]:
        """The row groups of a piece; pieces are asked for in turn."""
        while self._queue and (self._first[self._queue[0]] <= piece or self._samples < self._ahead):
            group = self._queue.popleft()
            wanted = np.unique(self._rows[group])
            self._samples += len(wanted)
            self._held[group] = self._pool.submit(fetch, self._table, group, wanted)
        return {group: self._held[group] for group in np.unique(self._groups[piece]).tolist()}

    def release(self, piece: int) -> None:
        """Let go of what no later piece needs."""
        for group in self._last.pop(piece, ()):
            del self._held[group]
            self._samples -= len(np.unique(self._rows.pop(group)))


class _Inline(Executor):
    """Does what it is given at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def _pool(stack: ExitStack, workers: int) -> Executor:
    if not workers:
        return _Inline()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="m2pt-data")
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    return pool
