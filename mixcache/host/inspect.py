"""The blocks of a model nobody described, found by watching one call of it.

Every module in a list of modules is watched. A block runs once in a call; a stream is a tensor that a block returns and
that *is* an argument of the next block. Where that chain breaks, something enters from elsewhere, and no span of blocks
may reach over it. What a block returns and nobody takes up cannot be rebuilt, so such blocks stay outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from attrs import define, field, fields
from torch import Tensor

from mixcache.host.adapter import ModelAdapter
from mixcache.host.latents import arguments_of
from mixcache.host.rows import BlockList, Row, unwrapped

SMALL = 0.25
"""Lists with less than this share of the parameters of the largest that run before it, unconnected, are no blocks of
the main row: they refine the prompt."""


@define
class _Seen:
    """One run of one module in a list: where it stands, and the tensors that entered and left it, by name and place."""

    path: str
    module: Any
    entered: dict[str, Tensor]
    left: tuple[Any, ...] = ()
    streams: dict[str, int] = field(factory=dict)
    broken: bool = True


@contextmanager
def watched(model: Any, seen: list[_Seen]) -> Iterator[None]:
    """While this is open, every module in a list of `model` tells what enters and leaves it."""
    handles = []

    def before(path: str) -> Any:
        def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = arguments_of(module, args, kwargs)
            seen.append(_Seen(path, module, {n: v for n, v in named.items() if isinstance(v, Tensor)}))

        return note

    def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        one = next(one for one in reversed(seen) if one.module is module)
        one.left = tuple(result) if isinstance(result, (tuple, list)) else (result,)

    try:
        for path, modules in _lists(model):
            for module in modules:
                handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _lists(model: Any) -> Iterator[tuple[str, list[Any]]]:
    """The lists of modules of a model that are not inside of one another."""
    inside: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) and not any(path.startswith(p) for p in inside):
            inside.append(f"{path}.")
            yield path, list(map(unwrapped, module))


def find_row(model: Any, seen: Sequence[_Seen]) -> Row:
    """The blocks in what was seen of one call."""
    notes: list[str] = []
    runs = Counter(id(one.module) for one in seen)
    for path in dict.fromkeys(one.path for one in seen if runs[id(one.module)] > 1):
        notes.append(f"{path}: its modules run more than once in a call")
    once = [one for one in seen if runs[id(one.module)] == 1]
    once = _main(model, once)
    kinds = _connect(once, notes)
    kept: list[_Seen] = [one for one in once if kinds.get(id(one.module)) is not None]
    seams = {i for i, one in enumerate(kept) if i and (one.broken or once[once.index(one) - 1] is not kept[i - 1])}
    return Row(
        tuple(one.module for one in kept),
        tuple(kinds[id(one.module)] for one in kept),  # type: ignore[misc]
        frozenset(seams),
        tuple(notes),
    )


def _main(model: Any, once: Sequence[_Seen]) -> list[_Seen]:
    """Without what refines the prompt beforehand: small lists before the largest, unconnected with it."""
    sizes: Counter[str] = Counter()
    for one in once:
        sizes[one.path] += sum(p.numel() for p in one.module.parameters())
    if not sizes:
        return []
    largest = sizes.most_common(1)[0]
    begins = next(i for i, one in enumerate(once) if one.path == largest[0])
    paths = {one.path for one in once[begins:]}
    for i in range(begins - 1, -1, -1):
        connected = bool(_taken(once[i], once[i + 1])) and once[i + 1].path in paths
        if connected or sizes[once[i].path] >= SMALL * largest[1]:
            paths.add(once[i].path)
    return [one for one in once if one.path in paths]


def _taken(one: _Seen, following: _Seen) -> dict[str, int]:
    """Which results of a block are arguments of the one that follows: place by name."""
    return {
        name: place
        for name, tensor in following.entered.items()
        for place, left in enumerate(one.left)
        if left is tensor
    }


def _connect(once: Sequence[_Seen], notes: list[str]) -> dict[int, BlockList | None]:
    """What each block takes and returns as streams; `None` for one that cannot be skipped."""
    by_class: dict[type[Any], dict[str, int]] = {}
    for one, following in pairwise(once):
        taken = _taken(one, following)
        following.broken = not taken
        if not taken or type(following.module) is not type(one.module):
            continue
        known = by_class.setdefault(type(one.module), taken)
        if taken != known:
            following.broken = True  # a stream of it came from elsewhere
            by_class[type(one.module)] = max(known, taken, key=len)
    found: dict[int, BlockList | None] = {}
    for one in once:
        kind, why = _kind(one, by_class.get(type(one.module)))
        found[id(one.module)] = kind
        if why:
            notes.append(f"{one.path}: {why}")
    for one, following in pairwise(once):
        here, there = found[id(one.module)], found[id(following.module)]
        if here is not None and there is not None and type(one.module) is type(following.module):
            following.broken = following.broken or set(_taken(one, following)) != set(here.streams)
        elif here is not None and there is not None:  # from one list to the next
            following.broken = following.broken or here.streams != there.streams
    notes[:] = list(dict.fromkeys(notes))
    return found


def _kind(one: _Seen, places: dict[str, int] | None) -> tuple[BlockList | None, str]:
    """The record of a block whose class hands its results on like this, or why there is none."""
    if places is None:
        return None, "what a block returns is not what the next one takes"
    left = {place for place, value in enumerate(one.left) if value is not None}
    lost = left - set(places.values())
    if lost:
        return None, f"result {min(lost)} of {len(one.left)} goes nowhere"
    names = sorted(places, key=lambda name: list(one.entered).index(name) if name in one.entered else len(one.entered))
    if any(
        name in one.entered
        and place < len(one.left)
        and isinstance(one.left[place], Tensor)
        and one.left[place].shape != one.entered[name].shape
        for name, place in places.items()
    ):
        return None, "a block changes the shape of its stream"
    largest = sorted(names, key=lambda name: -one.entered[name].numel() if name in one.entered else 0)
    returns = tuple(sorted(places, key=lambda name: places[name]))
    return BlockList(path=one.path, streams=tuple(largest), returns=returns), ""


def described(model: Any, row: Row) -> tuple[BlockList, ...]:
    """The lists of a row, where a record can describe it; none where only watching can.

    A record says that whole lists run one after the other, each with the same streams in all of its blocks.
    """
    lists = tuple(dict.fromkeys(row.kinds))
    inner = {i for i in row.seams if row.kinds[i].path == row.kinds[i - 1].path}
    whole = Row.of(model, lists).modules
    same = len(whole) == len(row.modules) and all(a is b for a, b in zip(whole, row.modules))
    return lists if same and not inner else ()


def record_of(record: ModelAdapter) -> str:
    """A record as Python, to be pasted into a plugin; what holds by default is left out, but for streams."""
    lines = ["ModelAdapter("]
    for one in fields(ModelAdapter):
        value = getattr(record, one.name)
        if one.name == "blocks" and value:
            lines.append("    blocks=(")
            for kind in value:
                known = f"path={kind.path!r}, streams={kind.streams!r}, returns={kind.returns!r}"
                lines.append(f"        BlockList({known}),")
            lines.append("    ),")
        elif one.name in ("model", "latent_argument") or value != one.default:
            lines.append(f"    {one.name}={value!r},")
    return "\n".join([*lines, ")"]).replace("'", '"')
