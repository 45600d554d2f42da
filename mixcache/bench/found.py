"""What watching a model has shown, as a record to be pasted and as text: what was found, what was not and why."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from attrs import field, frozen

from mixcache.core.points import NoiseLevel
from mixcache.host.adapter import ModelAdapter
from mixcache.host.facts import Combined
from mixcache.host.inspect import described, record_of
from mixcache.host.latents import Part, Source
from mixcache.host.rows import Row
from mixcache.host.shown import Facts
from mixcache.host.sight import TRIES, Pattern


@frozen
class Evaluation:
    """One kind of evaluation that was seen: its calls with their rows, and how their outputs were combined."""

    pattern: Pattern
    combined: Combined

    @property
    def counts(self) -> list[int]:
        """How many branches each call holds."""
        rows = [count for _, count in self.pattern]
        weights, calls = self.combined.weights, len(self.pattern)
        branches = len(weights) if weights is not None else max(calls, 2)  # of one call that is rescaled: two
        return [max(count * branches // max(sum(rows), 1), 1) for count in rows]

    @property
    def names(self) -> list[str]:
        """A name for every branch."""
        return [
            f"call {call}" if count == 1 else f"call {call}[{part}]"
            for call, count in enumerate(self.counts)
            for part in range(count)
        ]

    @property
    def conditional(self) -> tuple[int, int] | None:
        """The call that holds the conditional branch, and its place in there; `None` if there is none."""
        at = self.combined.conditional
        for call, count in enumerate(self.counts if at is not None else ()):
            assert at is not None
            if at < count:
                return call, at
            at -= count
        return None

    @property
    def formula(self) -> str:
        """What the outputs became; empty where every sample, token or channel has weights of its own."""
        terms = [(weight, name) for weight, name in zip(self.combined.weights or (), self.names)]
        if self.combined.sample:
            terms.insert(0, (self.combined.sample, "latent"))
        text = " ".join(f"{_signed(weight)} * {name}" for weight, name in terms)
        return text.removeprefix("+ ") if text.startswith("+") else text.replace("- ", "-", 1)


@frozen(kw_only=True)
class Found:
    """What one run has shown of one model.

    component: its name in the pipeline. model: the module. called: whether a call of it was part of a run. facts: where
    its latents are; `None` if the run was over before that was known. how: every kind of evaluation that it had part
    in. proven: whether the conditional samples of a batch give the same alone, `None` if that was not tried. level: the
    first noise level; its sign is `None` where nothing says what the output means. solver: the class of the noise
    scheduler that stepped with what it gave. watched: whether a pipeline made the run, not a loop of one's own. row:
    its blocks. notes: what the session says of the run.
    """

    component: str
    model: Any = field(repr=False)
    called: bool = False
    facts: Facts | None = None
    how: tuple[Evaluation, ...] = ()
    proven: bool | None = None
    level: NoiseLevel | None = None
    solver: str | None = None
    watched: bool = False
    row: Row | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def record(self) -> ModelAdapter:
        """What was found as a record: the blocks only where a record can describe them."""
        told: dict[str, Any] = {}
        if self.facts is not None and self.facts.sources:
            told["latent_argument"] = self.facts.sources[0].argument
        for one in self.how:
            call, place = one.conditional or (0, 0)
            count = one.counts[call]
            if one.conditional is not None and count > 1:
                others = ["uncond"] if count == 2 else [f"branch{i}" for i in range(count) if i != place]
                told |= {"branches": "doubled", "doubled_order": (*others[:place], "cond", *others[place:])}
        if self.verified and self.level is not None and self.level.prediction == "flow":
            told["prediction"] = "flow"  # others are the noise scheduler's to choose
        blocks = () if self.row is None else described(self.model, self.row)
        return ModelAdapter(model=type(self.model).__name__, blocks=blocks, **told)

    @property
    def verified(self) -> bool:
        """Whether the first step that was taken is the one that the noise level implies."""
        moved = None if self.facts is None else self.facts.moved
        return moved is not None and self.level is not None and self.level.sign is not None

    @property
    def missing(self) -> tuple[str, ...]:
        """What could not be found, and why."""
        return tuple(dict.fromkeys([*self._missing(), *self.notes]))

    def _missing(self) -> Iterator[str]:
        facts, row = self.facts, self.row
        if facts is None and not self.called:
            yield "latent and prediction: no call of it could be followed; is it called in the denoising loop?"
        elif facts is None:
            yield f"latent and prediction: {TRIES} evaluations did not show them, or fewer were made; take more steps"
        elif facts.why:
            yield f"latent and prediction: {facts.why}"
        elif not facts.watched:
            yield "latent: nothing shows that it is stepped from; it is the argument that its name or shape tells"
        if not self.how:
            yield "branches: nothing that was stepped with is a combination of its outputs that is known"
        if facts is not None and not facts.why:
            yield from self._unleveled(facts)
        if row is None or not row.kinds:
            seen = "nothing ran in a list of blocks" if row is None else "no list of blocks could be used"
            yield f"blocks: {seen}; policies work at 'step' and 'cfg'"
        yield from () if row is None else row.notes
        if row is not None and row.kinds and not self.record.blocks:
            yield "blocks in the record: a record cannot say how these run, so it leaves them to watching"

    def _unleveled(self, facts: Facts) -> Iterator[str]:
        if self.level is None:
            yield "noise level: nothing tells it, so the bases `noise` and `clean` cannot be used"
        elif facts.moved is None:
            yield (
                "noise level: not verified, as the first step is not made of the latent and the output alone (fresh "
                "noise, clipping, or a combination that is not known)"
            )
        elif self.level.sign is None:
            p, q = facts.moved
            yield f"noise level: the first step is {p:.4g} * latent {_signed(q)} * output, which no noise level implies"

    def __str__(self) -> str:
        at = f", stepped by {self.solver}" if self.solver else ""
        lines = [f"{self.component}: {type(self.model).__name__}{at}"]
        for name, found in (
            ("latent", self._latents()),
            ("prediction", self._predictions()),
            ("branches", self._branches()),
            ("noise level", self._levels()),
            ("blocks", () if self.row is None else _blocks(self.model, self.row)),
            ("not found", self.missing),
        ):
            told = list(found) or (["nothing is missing"] if name == "not found" else ["not known"])
            lines += [f"  {label:<12}{line}" for label, line in zip([name, *[""] * len(told)], told)]
        return "\n".join([*lines, "", record_of(self.record)])

    def _latents(self) -> Iterator[str]:
        for source in () if self.facts is None else self.facts.sources:
            yield _source(source)

    def _predictions(self) -> Iterator[str]:
        parts = () if self.facts is None else self.facts.parts
        for index, part in enumerate(parts):
            yield f"output {index} of {len(parts)}: {_part(part)}"

    def _branches(self) -> Iterator[str]:
        for one in self.how:
            calls = f"{len(one.pattern)} call{'s' * (len(one.pattern) > 1)} in an evaluation"
            goes_on = "the noise scheduler is given" if self.watched else "the next latent is"
            yield f"{calls}: {goes_on} {one.formula or 'a sum with other weights for every sample or token'}"
            if one.conditional is not None:
                call, place = one.conditional
                count = one.counts[call]
                yield f"the conditional branch is call {call}{f', part {place} of {count}' if count > 1 else ''}"
            elif len(one.names) > 1:
                yield "none of them is the conditional one: no branch weighs more than all together"
        if self.proven is not None:
            yield f"its samples computed alone give {'the same' if self.proven else 'something else'}"

    def _levels(self) -> Iterator[str]:
        level = self.level
        if level is not None and level.sign is not None:
            sign = "with the other sign" if level.sign < 0 else "with the usual sign"
            sure = "the first step agrees" if self.verified else "told, not verified"
            yield f"{level.prediction}, {sign}, from sigma = {level.sigma:.4g}; {sure}"


def _signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'} {abs(value):.4g}"


def _source(source: Source) -> str:
    held = [_part(source.part)]
    if source.listed:
        held.append("a list, one tensor per sample")
    if source.copies > 1:
        held.append(f"{source.copies} copies along the batch")
    if source.scale != 1.0:
        held.append(f"multiplied by {source.scale:.4g}")
    return f"`{source.argument}`: {', '.join(held)}"


def _part(part: Part | None) -> str:
    if part is None:
        return "all of it"
    return f"{part.start} to {part.start + part.size - 1} of dimension {part.dim}"


def _blocks(model: Any, row: Row) -> Iterator[str]:
    """The blocks in the order in which they run, list by list, and where something enters between them."""
    places = [_place(model, module, kind.path) for module, kind in zip(row.modules, row.kinds)]
    for kind, group in groupby(zip(row.kinds, places), key=lambda pair: pair[0]):
        ran = [place for _, place in group]
        span = f"{ran[0]}" if len(ran) == 1 else f"{ran[0]} to {ran[-1]}"
        yield f"`{kind.path}` {span}: streams {', '.join(kind.streams)}; returns {', '.join(kind.returns)}"
    for seam in sorted(row.seams):
        yield f"something enters before `{row.kinds[seam].path}` {places[seam]}; spans end there"


def _place(model: Any, module: Any, path: str) -> int:
    """Where a module stands in its list."""
    return next(i for i, one in enumerate(model.get_submodule(path)) if one is module)
