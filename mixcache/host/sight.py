"""What one run has shown of its models so far: where their latents are, and how their branches are combined.

The calls of a model's first evaluation are computed, and visited once the evaluation is over: only then is it known
where the latent stood among their arguments. Nothing can be reused there, so this changes no verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import define, field, frozen
from torch import Tensor

from mixcache.core.streams import Streams, Value
from mixcache.host.facts import Combined, Fit, combine, fit
from mixcache.host.guidance import ModelCall
from mixcache.host.latents import Part, Source, eps_of, equal_parts, find_source, rows_of
from mixcache.host.protocol import Place
from mixcache.host.ranks import alike
from mixcache.host.shown import Facts, Shown, declared, moved, once, possible_latents, unfound
from mixcache.host.watch import Stepped

TRIES = 3
"""So many evaluations of a model are watched before it is given up."""

Pattern = tuple[tuple[str, int], ...]
"""The calls of one evaluation: component, and rows of its first output."""


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


@define
class Sight:
    """What one run has shown. facts: by component. weights: of the present evaluation's branches, once it is over.

    group: the ranks that share the models; what they see must be alike to be used. leading: the step and the value of
    the conditional branch, with which others are compared. parts: rows of a batch, and how many equal parts it has.
    proven, deep: whether its conditional samples may be computed alone, and how they are cut. how: by the calls of an
    evaluation, how their outputs entered the solver. unexplained: whether an evaluation with several branches gave what
    is no combination of them that is known. doubts: by component, why an evaluation told nothing.
    """

    group: Any = None
    facts: dict[str, Facts] = field(factory=dict)
    how: dict[Pattern, Combined] = field(factory=dict)
    made: list[Made] = field(factory=list)
    weights: tuple[float, ...] | None = None
    unexplained: bool = False
    doubts: dict[str, str] = field(factory=dict)
    leading: tuple[int, Value] | None = None
    parts: tuple[int, int] | None = None
    proven: bool | None = None
    deep: bool = False
    _shown: list[Shown] = field(factory=list)
    _patterns: dict[Pattern, Branch | None] = field(factory=dict)
    _tries: dict[str, int] = field(factory=dict)
    _looked: Counter[Pattern] = field(factory=Counter)

    @property
    def pattern(self) -> Pattern:
        """The calls of the present evaluation."""
        return tuple((one.component, one.outputs[0].shape[0] if one.outputs else 0) for one in self.made)

    @property
    def components(self) -> tuple[str, ...]:
        """The models that were called in an evaluation that is over."""
        return tuple(self._tries)

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
        open_still = pattern not in self._patterns and self._looked[pattern] < TRIES
        if not self.made or not (always or self.pending or open_still):
            return
        self._looked[pattern] += 1
        step = once(step)
        sources: dict[str, Source] = {}
        for one in self.made:
            if one.component not in sources:
                source = find_source(one.call.arguments, step.sample)
                if source is not None:
                    sources[one.component] = source
        hint = next((source.part for source in sources.values() if source.part is not None), None)
        combined = combine(step.model_output, step.sample, [one.outputs for one in self.made], hint)
        if self.pending:
            same = step.after.shape == step.sample.shape
            coarse = eps_of(step.after, step.model_output) > 1e-5  # a little noise could hide in its rounding
            after = fit(step.after, (step.sample, step.model_output), 1.5 if coarse else 4.0) if same else None
            rough = eps_of(step.after, *[o for one in self.made for o in one.outputs if o.is_floating_point()])
            self._shown.append(
                Shown(sources=sources, combined=combined, after=after, rough=rough, solver=step.noise_scheduler)
            )
        rows = max(step.sample.shape[0], 1)
        if combined is None and sum(count for _, count in pattern) > rows:
            self.unexplained = True
        towards = -2 if combined is None else -1 if combined.conditional is None else combined.conditional
        if not all(alike([towards], self.group, step.sample)):
            combined, self.unexplained = None, True
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
        self.how[pattern] = combined

    def guided(self, place: int) -> tuple[bool, Branch | None]:
        """Whether it is known how the present evaluation is guided, and the branch that guidance goes towards.

        place: of the present call, the last of `made`.
        """
        now = self.pattern[: place + 1]
        found = {branch for pattern, branch in self._patterns.items() if pattern[: place + 1] == now}
        return len(found) == 1, next(iter(found)) if len(found) == 1 else None

    def settle(self, component: str, following: Mapping[str, Any] | None, *, over: bool) -> Facts | None:
        """The facts of a component whose first evaluation is over; `None` if the next one should be watched as well.

        following: the arguments of its next call, if that is known: where no solver could be watched, what became of
        the latent tells as much. over: whether the run is over, so that nothing has to be alike on all ranks.
        """
        tries = self._tries[component] = self._tries.get(component, 0) + 1
        found = self._settled(component, following, last=tries == TRIES)
        if not over:
            found = self._agreed(found)
        if found.why and tries < TRIES:
            self.doubts[component] = found.why
            return None
        self.facts[component] = found
        return found

    def _agreed(self, found: Facts) -> Facts:
        """The facts, if those of the other ranks can be used just as well; the conditional branch must be the same."""
        like = next((one.outputs[0] for one in self.made if one.outputs), None)
        if like is None:
            return found
        branch = self._patterns.get(self.pattern)
        at = (-1, -1) if branch is None else (branch.call, branch.part)
        usable, *same = alike([not found.why, self.pattern in self._patterns, *at], self.group, like)
        if not all(same):
            self._patterns.pop(self.pattern, None)
            self.unexplained = True
        return found if usable else Facts(why=found.why or "another rank that shares it could not make out its latent")

    def doubt(self, component: str) -> None:
        """A call was not what the facts say: watch the next evaluation, unless that was tried often enough."""
        if self._tries.get(component, 0) < TRIES and not self.facts[component].why:
            del self.facts[component]

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
            source = (
                declared(first.call.arguments, first.call.adapter.stated, output)
                if found is None
                else found.sources[component]
            )
            latent = None if source is None else source.of(first.call.arguments)
            if source is None or latent is None:
                return Facts(why=unfound(count, index))
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
            moved=None if main is None else moved(main, component),
            sign=None if main is None or main.combined is None or main.combined.sample else main.combined.sign,
            rough=0.0 if main is None else main.rough,
            solver=None if main is None else main.solver,
        )

    def _from_arguments(self, made: Sequence[Made], following: Mapping[str, Any]) -> Iterator[Shown]:
        """The step that a loop of one's own took: which argument became what the outputs explain."""
        before = made[0].call.arguments
        first = made[0].call.adapter.stated
        names = sorted((n for n in before if n in following), key=lambda name: name != first)
        outputs = [one.outputs for one in made]
        for name in names:
            old, new = rows_of(before[name]), rows_of(following[name])
            if old is None or new is None or old.shape != new.shape or not old.is_floating_point():
                continue
            if old.dim() == 0 or old.dtype != new.dtype or bool((old == new).all()):
                continue
            copies = min(equal_parts(old), equal_parts(new))
            for part in possible_latents(old, outputs):
                x, y = (t if part is None else part.of(t) for t in (old, new))
                x, y = x[: x.shape[0] // copies], y[: y.shape[0] // copies]
                if bool((x == y).all()):
                    continue  # what stands still is a condition
                combined = combine(y, x, outputs, part)
                if combined is None or not combined.unique:
                    continue
                listed = not isinstance(before[name], Tensor)
                source = Source(argument=name, part=part, copies=copies, listed=listed)
                self._learn(self.pattern, combined, x.shape[0])
                weights = combined.weights or ()
                known = bool(weights) and combined.unique
                after = Fit(values=(combined.sample, sum(weights)), misfit=0.0, explained=known, unique=known)
                yield Shown(
                    sources={made[0].component: source},
                    combined=combined,
                    after=after,
                    rough=eps_of(y, *outputs[0]),
                    solver=None,
                )
                break
