"""Where the blocks of a model are: one row of blocks, cut into the spans that policies decide about.

The side inputs and signals that need blocks ("prefix", "probe") are contributed here, through the same hooks as
everybody's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from attrs import field, frozen
from torch import Tensor

from mixcache.core.hooks import hookimpl
from mixcache.core.points import Address, Granularity, Point
from mixcache.core.signals import SideInput, Signal, relative_change
from mixcache.core.streams import NOTHING_BESIDE, Beside, Streams
from mixcache.errors import AttachError, PluginError, called
from mixcache.host.adapter import ModelAdapter
from mixcache.host.rows import BlockList, Row

Span = tuple[int, int]
Spans = tuple[Span, ...]
Asked = tuple[SideInput, ...]


@frozen(kw_only=True)
class Scene:
    """What is known where a span of blocks begins.

    model: the transformer. block, arguments: the first block of the model, and what it was called with, by name, in
    this call of the model. entered: the streams that entered the first block. streams: those that enter the span.
    span: its first block, and one past the last. adapter: the record of the model.
    """

    model: Any
    block: Any
    arguments: Mapping[str, Any]
    entered: Streams
    streams: Streams
    span: tuple[int, int]
    adapter: ModelAdapter


def _prefix(scene: Scene) -> Tensor | None:
    """What the blocks before the span have added to the first stream; `None` where there are none."""
    if scene.span[0] == 0 or scene.entered[0].shape != scene.streams[0].shape:
        return None
    return (scene.streams[0] - scene.entered[0]).detach()


def _probe(scene: Scene) -> Tensor | None:
    """The tensor that the model's adapter names, from the first block and its arguments."""
    probe = scene.adapter.blocks[0].probe if scene.adapter.blocks else None
    return None if probe is None else probe(scene.block, scene.arguments).detach()


SIDE_INPUTS = (
    SideInput(name="prefix", make=_prefix, summary="what the blocks before a span added to the hidden states"),
    SideInput(name="probe", make=_probe, once=True, summary="what the model's adapter names, such as TeaCache's probe"),
)

SIGNALS = (
    Signal(
        name="prefix_change",
        measure=lambda t: relative_change(t, t.now("prefix"), t.previous("prefix")),
        reads=frozenset({"previous:prefix"}),
        summary="relative L1 change of what the blocks before the span added, against the previous visit",
    ),
    Signal(
        name="prefix_change_since_compute",
        measure=lambda t: relative_change(t, t.now("prefix"), t.computed("prefix")),
        reads=frozenset({"computed:prefix"}),
        summary="the same against the last computed visit: First-Block-Cache's and DBCache's test",
    ),
    Signal(
        name="probe_change",
        measure=lambda t: relative_change(t, t.now("probe"), t.previous("probe")),
        reads=frozenset({"previous:probe"}),
        summary="relative L1 change of the model's probe tensor against the previous visit: TeaCache's signal",
    ),
)


@hookimpl
def mixcache_side_inputs() -> list[SideInput]:
    return list(SIDE_INPUTS)


@hookimpl
def mixcache_signals() -> list[Signal]:
    return list(SIGNALS)


@frozen
class Layout:
    """The blocks of a model as one row, and the spans of it that policies decide about."""

    model: Any
    adapter: ModelAdapter
    row: Row
    spans: Spans
    side_inputs: Mapping[tuple[int, int], tuple[SideInput, ...]]
    begins: Mapping[int, tuple[int, int]] = field(init=False)
    ends: frozenset[int] = field(init=False)
    inside: Mapping[int, tuple[int, int]] = field(init=False)
    paths: Mapping[tuple[int, int], str] = field(init=False)

    @begins.default
    def _begins(self) -> Mapping[int, tuple[int, int]]:
        return {first: (first, last) for first, last in self.spans}

    @ends.default
    def _ends(self) -> frozenset[int]:
        return frozenset(last - 1 for _, last in self.spans)

    @paths.default
    def _paths(self) -> Mapping[tuple[int, int], str]:
        return {(first, last): f"blocks[{first}:{last}]" for first, last in self.spans}

    @inside.default
    def _inside(self) -> Mapping[int, tuple[int, int]]:
        return {i: (first, last) for first, last in self.spans for i in range(first, last)}

    @classmethod
    def of(
        cls, model: Any, adapter: ModelAdapter, row: Row, wanted: Spans, beside: Callable[[Span, int], Asked]
    ) -> Layout:
        """Cut the blocks wherever `wanted` says, where the streams change, and where something else enters.

        beside: the side inputs that a span of so many blocks asks for.
        Raises `AttachError` if there are no blocks, or the adapter names no probe where one is asked for.
        """
        kinds = row.kinds
        if not kinds:
            seen = "; ".join(row.notes) or "it has no list of blocks"
            raise AttachError(
                f"{type(model).__name__} has no spans of blocks to skip ({seen}). Use policies at 'step' or 'cfg'."
            )
        changes = {i for i in range(1, len(kinds)) if kinds[i].streams != kinds[i - 1].streams}
        cuts = sorted({cut for span in wanted for cut in span} | changes | row.seams)
        pieces = tuple((a, b) for a, b in pairwise(cuts) if any(x <= a and b <= y for x, y in wanted))
        asked = {piece: beside(piece, len(kinds)) for piece in pieces}
        probe = adapter.blocks[0].probe if adapter.blocks else None
        if probe is None and any(one.name == "probe" for ones in asked.values() for one in ones):
            raise AttachError(
                f"no adapter says what to probe on {type(model).__name__}, so 'probe_change' cannot be measured; give "
                "its first BlockList a `probe`, or use a policy that reads another signal."
            )
        return cls(model, adapter, row, pieces, asked)

    @property
    def kinds(self) -> tuple[BlockList, ...]:
        """What every block takes and returns."""
        return self.row.kinds

    def modules(self) -> list[tuple[int, Any]]:
        """The blocks that need a hook, by index; the first one too where something is compared with what enters it."""
        wanted = set(self.inside) | ({0} if any(self.side_inputs.values()) else set())
        return [(i, block) for i, block in enumerate(self.row.modules) if i in wanted]

    def point(self, step: Point, span: Span, address: Address, counts: tuple[int | None, int | None, int]) -> Point:
        """The BLOCK point of a span, within the call that the STEP point stands for. counts: age, gap, run_length."""
        first, last = span
        blocks = len(self.kinds)
        age, gap, run_length = counts
        return Point(
            granularity=Granularity.BLOCK,
            step=step.step,
            num_steps=step.num_steps,
            address=address,
            leads=step.leads,
            span=span,
            blocks=blocks,
            share=(last - first) / blocks,
            level=step.level,
            age=age,
            gap=gap,
            run_length=run_length,
        )


class SideInputs:
    """The side inputs of one call of a model, made where a span asks for them."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._first: tuple[Any, Mapping[str, Any], Streams] | None = None
        self._known: dict[str, Streams] = {}
        self._failed: dict[str, PluginError] = {}

    def begin(self, block: Any, arguments: Mapping[str, Any], entered: Streams) -> None:
        """The first block is reached: what it is, what it was called with, and the streams that enter it."""
        self._first = block, arguments, entered

    def at(self, span: tuple[int, int], streams: Streams) -> Beside:
        """What the span's site asks for; where something cannot be made here, what was known of it before."""
        wanted = self._layout.side_inputs[span]
        if not wanted or self._first is None:
            return NOTHING_BESIDE
        block, arguments, entered = self._first
        scene = Scene(
            model=self._layout.model,
            block=block,
            arguments=arguments,
            entered=entered,
            streams=streams,
            span=span,
            adapter=self._layout.adapter,
        )
        for one in wanted:
            if not (one.once and one.name in self._known):
                self._make(one, scene)
        return _Failed(self._known, self._failed) if self._failed else dict(self._known)

    def _make(self, one: SideInput, scene: Scene) -> None:
        self._failed.pop(one.name, None)
        try:
            tensor = called(("side input", one.name), one.make, scene)
            if tensor is not None and not isinstance(tensor, Tensor):
                raise PluginError(f"side input {one.name!r} must return a tensor or None, it returned {tensor!r}.")
        except PluginError as error:
            self._failed[one.name] = error
        else:
            if tensor is not None:
                self._known[one.name] = (tensor,)


class _Failed(Mapping[str, Streams]):
    """Side inputs of which some could not be made: whoever reads one of these gets the error, inside of the loop."""

    def __init__(self, known: Mapping[str, Streams], failed: Mapping[str, PluginError]) -> None:
        self._known = {**known, **dict.fromkeys(failed, ())}
        self._errors = dict(failed)

    def __getitem__(self, name: str) -> Streams:
        if name in self._errors:
            raise self._errors[name]
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def read_streams(kind: BlockList, arguments: Mapping[str, Any]) -> Streams:
    """The streams among the arguments of a block, by name."""
    return tuple([arguments[name] for name in kind.streams if isinstance(arguments.get(name), Tensor)])


def read_result(kind: BlockList, result: Any) -> Streams:
    """The streams in what a block returned."""
    values = dict(zip(kind.returns, result if isinstance(result, tuple) else (result,)))
    return tuple([values[name] for name in kind.streams if isinstance(values.get(name), Tensor)])


def pack(kind: BlockList, streams: Streams) -> Any:
    """Streams in the form in which a block returns them."""
    values = dict(zip(kind.streams, streams))
    packed = tuple(values.get(name) for name in kind.returns)
    return packed if len(packed) > 1 else packed[0]
