"""What one run has shown of its models so far: where their latents are, and how their branches are combined.

The calls of a model's first evaluation are computed, and visited once the evaluation is over: only then is it known
where the latent stood among their arguments. Nothing can be reused there, so this changes no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import define, evolve, field, frozen
from torch import Tensor

from mixcache.core.streams import Streams
from mixcache.host.facts import Combined, Fit, combine, fit
from mixcache.host.guidance import ModelCall, equal_parts
from mixcache.host.latents import Part, Source, eps_of, find_source, rows_of
from mixcache.host.outputs import NotCacheable
from mixcache.host.protocol import Place
from mixcache.host.watch import Stepped

TRIES = 3
"""So many evaluations of a model are watched before it is given up."""

Pattern = tuple[tuple[str, int], ...]
"""The calls of one evaluation: component, and rows of its first output."""


@frozen(kw_only=True)
class Facts:
    """What is known of one model in one run. why: for what reason nothing of it can be cached, if so.

    sources, parts: for each output, where its latent is, and which part of it is the prediction. watched: whether that
    was seen, not only declared. moved: (P, Q) with the latent after the first evaluation = P * latent + Q * output,
    where it was made of nothing else; the latent as the model was given it. rough: the rounding in that.
    """

    sources: tuple[Source, ...] = ()
    parts: tuple[Part | None, ...] = ()
    watched: bool = False
    moved: tuple[float, float] | None = None
    rough: float = 0.0
    solver: Any = None
    why: str = ""


@frozen(kw_only=True)
class Branch:
    """The branch that guidance goes towards: in which call of the evaluation, and in which of its equal parts."""

    call: int
    part: int
    parts: int


@define(eq=False)
class Made:
    """One call of the present evaluation. outputs: none where they are no tensors."""

    component: str
    place: Place
    call: ModelCall
    outputs: Streams
    pending: bool


@frozen(kw_only=True)
class _Shown:
    """What one step of the solver showed."""

    sources: dict[str, Source]
    combined: Combined | None
    after: Fit | None
    rough: float
    solver: Any


@define
class Sight:
    """What one run has shown. facts: by component. weights: of the present evaluation's branches, once it is over.

    unexplained: whether an evaluation with several branches gave what is no combination of them that is known.
    """

    facts: dict[str, Facts] = field(factory=dict)
    made: list[Made] = field(factory=list)
    weights: tuple[float, ...] | None = None
    unexplained: bool = False
    _shown: list[_Shown] = field(factory=list)
    _patterns: dict[Pattern, Branch | None] = field(factory=dict)
    _tries: dict[str, int] = field(factory=dict)

    @property
    def pattern(self) -> Pattern:
        """The calls of the present evaluation."""
        return tuple((one.component, one.outputs[0].shape[0] if one.outputs else 0) for one in self.made)

    @property
    def pending(self) -> bool:
        """Whether a call of the present evaluation waits for it to be over."""
        return any(one.pending for one in self.made)

    def called(self, made: Made) -> None:
        """A model was called."""
        self.made.append(made)

    def begin(self) -> list[Made]:
        """A new evaluation begins: what was pending of the one before, if anything was."""
        pending = [one for one in self.made if one.pending]
        self.made, self.weights = [], None
        self._shown.clear()
        return pending

    def stepped(self, step: Stepped, *, always: bool) -> None:
        """The solver has taken a step from what the calls of this evaluation gave. always: look at every evaluation."""
        pattern = self.pattern
        if not self.made or not (always or self.pending or pattern not in self._patterns):
            return
        step = _once(step)
        sources: dict[str, Source] = {}
        for one in self.made:
            if one.component not in sources:
                source = find_source(one.call.arguments, step.sample)
                if source is not None:
                    sources[one.component] = source
        hint = next((source.part for source in sources.values() if source.part is not None), None)
        combined = combine(step.model_output, step.sample, [one.outputs for one in self.made], hint)
        if self.pending:
            after = fit(step.after, (step.sample, step.model_output)) if step.after.shape == step.sample.shape else None
            rough = eps_of(step.after, *[o for one in self.made for o in one.outputs if o.is_floating_point()])
            self._shown.append(
                _Shown(sources=sources, combined=combined, after=after, rough=rough, solver=step.noise_scheduler)
            )
        rows = max(step.sample.shape[0], 1)
        if combined is None and sum(count for _, count in pattern) > rows:
            self.unexplained = True
        if combined is not None:
            self._learn(pattern, combined, step.sample.shape[0])
            self.weights = combined.weights if combined.affine else None

    def _learn(self, pattern: Pattern, combined: Combined, rows: int) -> None:
        counts = [call_rows // rows for _, call_rows in pattern]
        found = None
        if combined.conditional is not None:
            at = combined.conditional
            for call, count in enumerate(counts):
                if at < count:
                    found = Branch(call=call, part=at, parts=count)
                    break
                at -= count
        if found is None and sum(counts) > 1:
            self.unexplained = True
        self._patterns[pattern] = found if sum(counts) > 1 else None

    def guided(self, place: int) -> tuple[bool, Branch | None]:
        """Whether it is known how the present evaluation is guided, and the branch that guidance goes towards.

        place: of the present call, the last of `made`.
        """
        now = self.pattern[: place + 1]
        found = {branch for pattern, branch in self._patterns.items() if pattern[: place + 1] == now}
        return len(found) == 1, next(iter(found)) if len(found) == 1 else None

    def settle(self, component: str, following: Mapping[str, Any] | None) -> Facts | None:
        """The facts of a component whose first evaluation is over; `None` if the next one should be watched as well.

        following: the arguments of its next call, if that is known: where no solver could be watched, what became of
        the latent tells as much.
        """
        tries = self._tries[component] = self._tries.get(component, 0) + 1
        found = self._settled(component, following, last=tries == TRIES)
        if found.why and tries < TRIES:
            return None
        self.facts[component] = found
        return found

    def _settled(self, component: str, following: Mapping[str, Any] | None, *, last: bool) -> Facts:
        """The facts that one evaluation shows. last: take what is declared, or alike, for what was never shown."""
        made = [one for one in self.made if one.component == component and one.pending and one.outputs]
        if not made:
            return Facts(why="what it returned is no tensor")
        shown = [one for one in self._shown if component in one.sources]
        if not self._shown and following is not None:
            shown = list(self._from_arguments(made, following))
        first, count = made[0], len(made[0].outputs)
        at = next(i for i, one in enumerate(self.made) if one is first)
        by_field = {s.combined.field: s for s in shown if s.combined is not None}
        if count == 1 and not by_field and shown:
            by_field = {0: shown[0]}
        if len(by_field) < count and count > 1 and not last:
            index = min(set(range(count)) - set(by_field))
            return Facts(why=f"it returned more than one tensor, and nothing showed what output {index} is")
        main = by_field.get(0)
        sources: list[Source] = []
        parts: list[Part | None] = []
        for index, output in enumerate(first.outputs):
            found = by_field.get(index)
            source = _declared(first.call, output) if found is None else found.sources[component]
            latent = None if source is None else source.of(first.call.arguments)
            if source is None or latent is None:
                return Facts(why=_unfound(count, index))
            combined = None if found is None else found.combined
            part = None if combined is None else combined.parts[at]
            prediction = output if part is None else part.of(output)
            if latent.shape != prediction.shape:
                return Facts(
                    why=f"its output of {tuple(output.shape)} has another shape than the latent of "
                    f"{tuple(latent.shape)}, and nothing showed which part of it is the prediction"
                )
            if any(source.argument == other.argument and source.part == other.part for other in sources):
                return Facts(why=f"it returned more than one tensor, and nothing showed what output {index} is")
            sources.append(source)
            parts.append(part)
        return Facts(
            sources=tuple(sources),
            parts=tuple(parts),
            watched=main is not None,
            moved=None if main is None else _moved(main, component),
            rough=0.0 if main is None else main.rough,
            solver=None if main is None else main.solver,
        )

    def _from_arguments(self, made: Sequence[Made], following: Mapping[str, Any]) -> Iterator[_Shown]:
        """The step that a loop of one's own took: which argument became what the outputs explain."""
        before = made[0].call.arguments
        first = made[0].call.adapter.latent_argument
        names = sorted((n for n in before if n in following), key=lambda name: name != first)
        outputs = [one.outputs for one in made]
        for name in names:
            old, new = rows_of(before[name]), rows_of(following[name])
            if old is None or new is None or old.shape != new.shape or not old.is_floating_point():
                continue
            if old.dim() == 0 or old.dtype != new.dtype or bool((old == new).all()):
                continue
            copies = min(equal_parts(old), equal_parts(new))
            for part in _latents(old, outputs):
                x, y = (t if part is None else part.of(t) for t in (old, new))
                x, y = x[: x.shape[0] // copies], y[: y.shape[0] // copies]
                combined = combine(y, x, outputs, part)
                if combined is None or not combined.unique:
                    continue
                listed = not isinstance(before[name], Tensor)
                source = Source(argument=name, part=part, copies=copies, listed=listed)
                self._learn(self.pattern, combined, x.shape[0])
                weights = combined.weights or ()
                known = bool(weights) and combined.unique
                after = Fit(values=(combined.sample, sum(weights)), misfit=0.0, explained=known, unique=known)
                yield _Shown(
                    sources={made[0].component: source},
                    combined=combined,
                    after=after,
                    rough=eps_of(y, *outputs[0]),
                    solver=None,
                )
                break


def _once(step: Stepped) -> Stepped:
    """A step without its repetitions: some pipelines keep the latents once for each guidance branch."""
    if step.sample.dim() == 0 or step.model_output.shape != step.sample.shape:
        return step
    copies = math.gcd(equal_parts(step.sample), equal_parts(step.model_output))
    rows = step.sample.shape[0] // max(copies, 1)
    after = step.after[:rows] if step.after.shape == step.sample.shape else step.after
    return evolve(step, sample=step.sample[:rows], model_output=step.model_output[:rows], after=after)


def _latents(old: Tensor, outputs: Sequence[Streams]) -> list[Part | None]:
    """The parts of an argument that may be the latent: all of it, or as much as an output is large."""
    found: list[Part | None] = [None]
    for output in outputs[0]:
        if output.dim() == old.dim():
            differing = [d for d in range(1, old.dim()) if old.shape[d] != output.shape[d]]
            if len(differing) == 1 and old.shape[differing[0]] > output.shape[differing[0]]:
                dim, size = differing[0], output.shape[differing[0]]
                found += [Part(dim=dim, start=start, size=size) for start in (0, old.shape[dim] - size)]
    return found


def _declared(call: ModelCall, output: Tensor) -> Source | None:
    """Where the record of the model says that the latent is; else the one argument that is like the output."""
    arguments = call.arguments
    told = rows_of(arguments.get(call.adapter.latent_argument))
    if told is not None and told.dim() == output.dim() and told.shape[0] == output.shape[0]:
        listed = not isinstance(arguments[call.adapter.latent_argument], Tensor)
        part = None
        if told.dim() == output.dim():
            larger = [d for d in range(told.dim()) if told.shape[d] > output.shape[d]]
            same = all(told.shape[d] == output.shape[d] for d in range(told.dim()) if d not in larger)
            if len(larger) == 1 and same:  # what is added to the latent stands behind it
                part = Part(dim=larger[0], start=0, size=output.shape[larger[0]])
        return Source(argument=call.adapter.latent_argument, part=part, listed=listed)
    like = []
    for name, value in arguments.items():
        tensor = rows_of(value)
        if tensor is not None and tensor.shape == output.shape and tensor.dtype == output.dtype:
            like.append(Source(argument=name, listed=not isinstance(value, Tensor)))
    return like[0] if len(like) == 1 else None


def _unfound(count: int, index: int) -> str:
    which = "its latent" if count == 1 else f"the latent of its output {index} of {count}"
    return f"{which} was not found among the arguments; pass adapter=ModelAdapter(model=..., latent_argument=...)"


def _moved(shown: _Shown, component: str) -> tuple[float, float] | None:
    """(P, Q) of a step that is explained by the latent and the model's output."""
    after, combined, source = shown.after, shown.combined, shown.sources[component]
    if after is None or combined is None or not after.explained:
        return None
    p, q = after.values
    if shown.solver is None:
        return p, q
    return (p + q * combined.sample) / source.scale, q * combined.total


def reusable(facts: Facts, call: ModelCall) -> None:
    """Let a call know the facts. Raises `NotCacheable` with the reason where there are none."""
    if facts.why:
        raise NotCacheable(f"{type(call.model).__name__}: {facts.why}", call.run())
    call.see(facts.sources, facts.parts)
