"""What one call of a transformer visits: its STEP point, around its CFG point, around its spans of blocks.

Each level is a visit of the cache scheduler's one loop; this file only says what the anchor is and how to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from mixcache.adapter import BlockList, ModelAdapter, Probe
from mixcache.attach import Forward, arguments_of, unpack
from mixcache.basis import Streams
from mixcache.errors import AttachError, ConfigurationError
from mixcache.points import Granularity, Point
from mixcache.policy import Policy
from mixcache.scheduler import Around, CacheScheduler, Visit, drive, drive_end
from mixcache.signals import Memory
from mixcache.store import Deferred, form_of

Produce = Callable[[], Streams]


@define
class ModelCall:
    """One call of a transformer: its arguments by name, and its result once it was computed in full."""

    model: Any
    forward: Forward
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    adapter: ModelAdapter
    result: Any = None
    output: Tensor | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name."""
        return arguments_of(self.model, self.args, self.kwargs)

    def compute(self) -> Streams:
        """The whole forward, exactly as it was called."""
        self.result = self.forward(*self.args, **self.kwargs)
        self.output = unpack(self.result, self.model)
        return (self.output,)

    def truth(self, *, exact: bool) -> Tensor:
        """What the model gives without any reuse; `exact` says that `output`, if it is there, is that already."""
        if self.output is not None and exact:
            return self.output
        return ModelCall(self.model, self.forward, self.args, self.kwargs, self.adapter).compute()[0]

    def repeats(self, latent: Tensor) -> bool:
        """Whether the batch holds the same latents once for every branch. Reads the device."""
        count = len(self.adapter.doubled_order)
        parts = latent.chunk(count)
        return latent.shape[0] % count == 0 and all(torch.equal(part, parts[0]) for part in parts[1:])

    def compute_rows(self, rows: slice, batch: int) -> Streams:
        """The forward of some samples of a batch: every tensor with a row a sample is cut."""
        kept = self.adapter.unbatched

        def cut(name: str, value: Any) -> Any:
            batched = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch and name not in kept
            return value[rows] if batched else value

        result = self.forward(**{name: cut(name, value) for name, value in self.arguments.items()})
        return (unpack(result, self.model),)


def guided(
    scheduler: CacheScheduler, point: Point, leading: tuple[Tensor, bool] | None, first: bool, produce: Produce
) -> Produce:
    """A branch rebuilt from the leading branch's output of this step (`leading`: it, and whether it is exact)."""
    if leading is None:
        return produce
    output, exact = leading
    here = evolve(point, granularity=Granularity.CFG, leads=first)
    return lambda: drive(scheduler.visit(here, (output,), Around(exact=exact)), produce)


def guided_in_one_batch(
    scheduler: CacheScheduler, point: Point, call: ModelCall, latent: Tensor, produce: Produce
) -> Produce:
    """One call over all branches: on a reuse only the conditional part is computed, the caller sees the whole batch.

    Computing runs the whole batch in one call, so that it stays exact; the conditional part is known beforehand only
    if a signal asks for it (which then costs a computed step that part twice).
    """
    order = call.adapter.doubled_order
    rows = latent.shape[0] // len(order)
    part = {name: slice(i * rows, (i + 1) * rows) for i, name in enumerate(order)}

    def conditional() -> Streams:
        if call.output is not None:
            return (call.output[part["cond"]],)
        return call.compute_rows(part["cond"], latent.shape[0])

    def run() -> Streams:
        outputs: dict[str, Tensor] = {}
        reuses = scheduler.reuses
        anchor = Deferred(form_of((latent[part["cond"]],)), conditional)
        for i, name in enumerate(n for n in order if n != "cond"):
            here = evolve(point, granularity=Granularity.CFG, branch=name, leads=i == 0, share=1 / len(order))

            def compute(name: str = name) -> Streams:
                whole = (call.output,) if call.output is not None else produce()
                return (whole[0][part[name]],)

            (outputs[name],) = drive(scheduler.visit(here, anchor), compute)
        if call.output is not None and scheduler.reuses == reuses:
            return (call.output,)
        outputs["cond"] = anchor.get()[0]
        return (torch.cat([outputs[name] for name in order]),)

    return run


@frozen
class Layout:
    """The blocks of a model as one row, and the spans of it that policies decide about."""

    kinds: tuple[BlockList, ...]
    spans: tuple[tuple[int, int], ...]
    prefix: bool = False
    probe: Probe | None = None
    begins: Mapping[int, tuple[int, int]] = field(init=False)
    ends: frozenset[int] = field(init=False)
    inside: frozenset[int] = field(init=False)

    @begins.default
    def _begins(self) -> Mapping[int, tuple[int, int]]:
        return {first: (first, last) for first, last in self.spans}

    @ends.default
    def _ends(self) -> frozenset[int]:
        return frozenset(last - 1 for _, last in self.spans)

    @inside.default
    def _inside(self) -> frozenset[int]:
        return frozenset(i for first, last in self.spans for i in range(first, last))

    @classmethod
    def of(cls, model: Any, adapter: ModelAdapter, policies: Sequence[Policy], reads: frozenset[Memory]) -> Layout:
        """Cut the blocks wherever a policy asks for it, and where the streams change.

        Raises `AttachError` for a model whose blocks nobody described, `ConfigurationError` for a span outside them.
        """
        if not adapter.blocks:
            raise AttachError(
                f"{type(model).__name__} has no spans of blocks to skip: no adapter lists its blocks, or what it adds "
                "between them forbids it. Use policies at 'step' or 'cfg'."
            )
        kinds = tuple(kind for kind in adapter.blocks for _ in getattr(model, kind.path))
        asked: list[tuple[int, int]] = []
        for policy in policies:
            for first, last in policy.spans(len(kinds)):
                if not 0 <= first < last <= len(kinds):
                    raise ConfigurationError(
                        f"policy {policy.policy_name()!r} asks for blocks {first} to {last}, but "
                        f"{type(model).__name__} has {len(kinds)}."
                    )
                asked.append((first, last))
        seams = {i for i in range(1, len(kinds)) if kinds[i].streams != kinds[i - 1].streams}
        cuts = sorted({cut for span in asked for cut in span} | seams)
        pieces = [(a, b) for a, b in pairwise(cuts) if any(x <= a and b <= y for x, y in asked)]
        prefix = bool(reads & {"previous_prefix", "computed_prefix"}) and any(a > 0 for a, _ in pieces)
        probe = kinds[0].probe if "previous_probe" in reads else None
        if "previous_probe" in reads and probe is None:
            raise AttachError(
                f"no adapter says what to probe on {type(model).__name__}, so 'probe_change' cannot be measured; give "
                "its first BlockList a `probe`, or use a policy that reads another signal."
            )
        return cls(kinds, tuple(pieces), prefix, probe)

    def modules(self, model: Any) -> list[tuple[int, Any]]:
        """The blocks that need a hook, by index; the first one too where a signal reads what precedes a span."""
        row = [block for path in dict.fromkeys(kind.path for kind in self.kinds) for block in getattr(model, path)]
        wanted = self.inside | ({0} if self.prefix or self.probe else set())
        return [(i, block) for i, block in enumerate(row) if i in wanted]


class Walk:
    """The blocks of one call in progress: opens a visit where a span begins, closes it where the span ends."""

    def __init__(self, scheduler: CacheScheduler, point: Point, layout: Layout) -> None:
        self._scheduler = scheduler
        self._point = point
        self._layout = layout
        self._reuses = scheduler.reuses
        self._entered: Tensor | None = None
        self._prefix: Tensor | None = None
        self._probe: Tensor | None = None
        self._visit: Visit | None = None

    def block(self, module: Any, forward: Forward, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One block: run, or passed over because its span was rebuilt at the span's first block."""
        kind, span = self._layout.kinds[index], self._layout.begins.get(index)
        skipped = span is None and self._visit is None and index in self._layout.inside
        if span is not None or skipped or index == 0:
            arguments = arguments_of(module, args, kwargs)
            streams = _read(kind, arguments)
            if index == 0:
                self._enter(module, arguments, streams)
            if skipped:
                return _pack(kind, streams)
            reused = None if span is None else self._begin(span, streams)
            if reused is not None:
                return _pack(kind, reused)
        result = forward(*args, **kwargs)
        if self._visit is not None and index in self._layout.ends:
            visit, self._visit = self._visit, None
            computed = _read_result(kind, result)
            output = drive_end(visit, computed)
            return result if output is computed else _pack(kind, output)
        return result

    def _enter(self, module: Any, arguments: Mapping[str, Any], streams: Streams) -> None:
        """The first block is reached: note what later spans are compared with."""
        self._entered = streams[0]
        if self._layout.probe is not None:
            self._probe = self._layout.probe(module, arguments).detach()

    def _begin(self, span: tuple[int, int], streams: Streams) -> Streams | None:
        entered = self._entered if self._layout.prefix and span[0] > 0 else None
        if entered is not None and entered.shape == streams[0].shape:
            self._prefix = (streams[0] - entered).detach()
        around = Around(prefix=self._prefix, probe=self._probe, exact=self._scheduler.reuses == self._reuses)
        visit = self._scheduler.visit(self._point.spanning(span, len(self._layout.kinds)), streams, around)
        try:
            next(visit)
        except StopIteration as done:
            self._visit = None
            return done.value  # type: ignore[no-any-return]
        self._visit = visit
        return None


def _read(kind: BlockList, arguments: Mapping[str, Any]) -> Streams:
    return tuple([arguments[name] for name in kind.streams if isinstance(arguments.get(name), Tensor)])


def _read_result(kind: BlockList, result: Any) -> Streams:
    values = dict(zip(kind.returns, result if isinstance(result, tuple) else (result,)))
    return tuple([values[name] for name in kind.streams if isinstance(values.get(name), Tensor)])


def _pack(kind: BlockList, streams: Streams) -> Any:
    values = dict(zip(kind.streams, streams))
    packed = tuple(values.get(name) for name in kind.returns)
    return packed if len(packed) > 1 else packed[0]
