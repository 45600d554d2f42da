"""The laws that every policy keeps, as one line of pytest. Needs `hypothesis`; no model, no accelerator.

    from mixcache.testing import check_policy

    def test_my_policy():
        check_policy(MyPolicy(threshold=0.1))

The policy is run by the real loop over random readings, NaN and infinities among them, at every granularity and in
every span of blocks where it decides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from attrs import field
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from mixcache.core import catalogue
from mixcache.core.panel import Panel
from mixcache.core.plan import Plan
from mixcache.core.points import Address, Granularity, Point, Reading, RunInfo, Vote
from mixcache.core.policy import Policy
from mixcache.core.rules import RULES, decide, unanimous
from mixcache.core.signals import resolve
from mixcache.core.simulate import BLOCKS, asked, simulate
from mixcache.core.trace import Record
from mixcache.errors import ConfigurationError, PluginError

_VALUES = st.none() | st.floats(0, 0.2) | st.floats(0, 10) | st.sampled_from([float("nan"), float("inf")])


@attrs.frozen(kw_only=True)
class _Wants(Policy):
    """A partner for trials in company, wherever `beside` decides: one bit per step, 1 computes."""

    beside: Policy = field(factory=Policy)
    mask: int = 0

    @property
    def granularities(self) -> frozenset[Granularity]:
        return self.beside.granularities

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        return self.beside.spans(blocks)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute("1") if self.mask >> point.step & 1 else Vote.reuse("0", error=0.01)


def check_policy(policy: Any, *, num_steps: int | None = None, examples: int = 100) -> None:
    """Check that a policy keeps the laws; raises `AssertionError` with the law and the smallest example that breaks it.

    policy: an instance, a class that needs no arguments, or a spec such as "easycache:threshold=0.05".
    num_steps: for a policy that serves runs of one length alone. examples: random runs for each law.

    The laws: the configuration is frozen and its class documented; the signals, bases, forecasters and anchors that it
    names exist, and it reads no other signals; `vote` is pure and returns a `Vote`; every run begins with fresh state;
    first steps, last steps, longest run and signals that are not finite are respected whatever is measured; branches
    follow their leader unless the policy is independent; other policies beside it, in any order, give the same
    verdicts; a recorded trace replays. They are tried at every granularity where it decides, in every span of blocks.
    """
    tested: Policy = catalogue.build("policy", policy)
    _check_class(tested)
    _check_places(tested)
    runs = _runs(tested, num_steps)
    for law in (_pure, _fresh, _guarded, _branches, _any_order, _replays):
        _try(law, tested, runs, examples)


_Readings = Sequence[Mapping[str, "float | None"]]
_Drawn = tuple[list[dict[str, "float | None"]], list[str]]
_Law = Callable[[Policy, _Readings, Sequence[str], st.DataObject], None]


def _try(law: _Law, policy: Policy, runs: st.SearchStrategy[_Drawn], examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(st.data())
    def trial(data: st.DataObject) -> None:
        readings, branches = data.draw(runs)
        law(policy, readings, branches, data)

    trial()


def _check_class(policy: Policy) -> None:
    kind = type(policy)
    assert "__attrs_attrs__" in vars(kind), f"{kind.__name__} must be decorated with @attrs.frozen"
    for name in catalogue.parameters(kind):
        try:
            setattr(policy, name, getattr(policy, name))
        except attrs.exceptions.FrozenInstanceError:
            continue
        raise AssertionError(f"{kind.__name__} must be frozen: its {name!r} could be changed")
    assert (kind.__doc__ or "").strip(), f"{kind.__name__} needs a docstring: `mixcache plugins` shows its first line"
    resolve(policy.signals, catalogue.signals())
    hash(policy)


def _check_places(policy: Policy) -> None:
    """Wherever it decides, what it measures and how it is rebuilt (`rebuilt`, `forecasts`, `anchors`) can be had."""
    plan = Plan(
        policies=(policy,),
        rule=unanimous,
        build=catalogue.build,
        signals=catalogue.signals(),
        side_inputs=catalogue.side_inputs(),
    )
    for granularity in policy.granularities:
        for span in policy.spans(BLOCKS) if granularity is Granularity.BLOCK else (None,):
            plan.site(granularity, span, BLOCKS if span else 0)


def _runs(policy: Policy, num_steps: int | None) -> st.SearchStrategy[_Drawn]:
    """Runs that the policy accepts: readings a visit, and the names of the branches."""
    reading = st.fixed_dictionaries(dict.fromkeys(asked(policy), _VALUES))

    @st.composite
    def draw_run(draw: st.DrawFn) -> _Drawn:
        steps = num_steps if num_steps is not None else draw(st.integers(1, 14))
        branches = ["cond", "uncond", "skip"][: draw(st.integers(1, 3))]
        try:
            policy.started(RunInfo(index=0, num_steps=steps))
        except ConfigurationError:
            assume(False)
        count = steps * len(branches)
        return draw(st.lists(reading, min_size=count, max_size=count)), branches

    return draw_run()


def _simulate(policies: Sequence[Policy], readings: _Readings, branches: Sequence[str], **more: Any) -> list[Record]:
    try:
        return simulate(policies, readings, branches=branches, **more)
    except PluginError as error:
        if isinstance(error.__cause__, KeyError):
            raise AssertionError(f"a policy reads a signal that it does not name in `signals`: {error}") from error
        raise


def _verdicts(records: Sequence[Record]) -> list[tuple[bool, str]]:
    return [(record.verdict.reuse, record.verdict.reason) for record in records]


def _pure(policy: Policy, readings: _Readings, branches: Sequence[str], data: st.DataObject) -> None:
    """`vote` changes nothing and says the same twice; it sees only the signals that it names."""
    before, records = copy.deepcopy(policy), _simulate([policy], readings, branches)
    panel = Panel([policy], records[0].run_info)
    for record in records:
        for late in record.learned:
            panel.learn(late.point, late.reading)
        for seat in panel.seats(record.point):
            if policy.guard_vote(record.point, record.reading) is not None:
                continue
            if not record.reading.keys() >= {*policy.signal_names}:  # a branch that follows
                continue
            kept = copy.deepcopy(_plain(seat.state))
            first, second = (policy.vote(record.point, dict(record.reading), seat.state) for _ in range(2))
            assert isinstance(first, Vote), f"vote() must return a Vote, got {first!r}"
            assert repr(first) == repr(second), (
                f"vote() must be pure: it said {first}, then {second}, to the same point"
            )
            assert _plain(seat.state) == kept, "vote() must not change the state; do that in observe()"
        panel.observe(record.point, record.outcome)
    assert policy == before, "a policy must not change itself; keep what it remembers in State"


def _plain(state: Any) -> Any:
    return {key: repr(value) for key, value in _fields(state)}


def _fields(state: Any) -> Iterator[tuple[str, Any]]:
    if attrs.has(type(state)):
        yield from ((a.name, getattr(state, a.name)) for a in attrs.fields(type(state)))
    yield from getattr(state, "__dict__", {}).items()


def _fresh(policy: Policy, readings: _Readings, branches: Sequence[str], data: st.DataObject) -> None:
    """A second run is like a first, also after one that was broken off."""
    first = _verdicts(_simulate([policy], readings, branches))
    second = _verdicts(_simulate([policy], readings, branches, index=1))
    assert first == second, "a second run over the same readings decided otherwise: something outlived the first"


def _guarded(policy: Policy, readings: _Readings, branches: Sequence[str], data: st.DataObject) -> None:
    """First steps, last steps and longest run hold, and what is not finite computes, whatever the rule."""
    rule = RULES[data.draw(st.sampled_from(sorted(RULES)))]
    partner = _Wants(beside=policy, mask=0)
    steps = len(readings) // len(branches)
    in_a_row: dict[Address, int] = {}
    for record in _simulate([policy, partner], readings, branches, rule=rule):
        step, reused = record.point.step, record.outcome.reused
        place = record.point.address
        in_a_row[place] = in_a_row.get(place, 0) + 1 if reused else 0
        assert not (reused and step < policy.first_steps), f"step {step} was reused, first_steps={policy.first_steps}"
        assert not (reused and step < policy.warm_up(steps)), f"step {step} was reused, warm_up={policy.warm_up(steps)}"
        assert not (reused and step >= steps - policy.last_steps), f"step {step} of {steps} was reused"
        if policy.longest_run is not None:
            assert in_a_row[place] <= policy.longest_run, f"more than {policy.longest_run} reuses in a row"
        broken = [v for v in record.reading.values() if v is not None and not abs(v) < float("inf")]
        assert not (reused and broken), f"step {step} was reused although it measured {broken}"


def _branches(policy: Policy, readings: _Readings, branches: Sequence[str], data: st.DataObject) -> None:
    """All branches of a step are decided together, unless the policy is independent."""
    if policy.branches == "independent":
        return
    led: dict[tuple[int, str], bool] = {}
    for record in _simulate([policy], readings, branches):
        place = record.point.step, record.point.path
        led.setdefault(place, record.outcome.reused)
        assert record.outcome.reused == led[place], f"branches of step {record.point.step} disagree"


def _any_order(policy: Policy, readings: _Readings, branches: Sequence[str], data: st.DataObject) -> None:
    """Beside other policies, their order makes no difference, and one that always computes prevents all reuse."""
    rule = RULES[data.draw(st.sampled_from(sorted(RULES)))]
    steps = len(readings) // len(branches)
    company = [policy, *(_Wants(beside=policy, mask=m) for m in data.draw(st.lists(st.integers(0, 2**steps - 1))))]
    shuffled = data.draw(st.permutations(company))
    here, there = ([r.outcome.reused for r in _simulate(c, readings, branches, rule=rule)] for c in (company, shuffled))
    assert here == there, "the order of the policies changed a verdict"
    veto = _Wants(beside=policy, first_steps=steps)
    assert not any(r.outcome.reused for r in _simulate([policy, veto], readings, branches, rule=rule))


def _replays(policy: Policy, readings: _Readings, branches: Sequence[str], data: st.DataObject) -> None:
    """The trace of a run, written and read again, gives the same verdicts."""
    records = [Record.from_json(r.to_json()) for r in _simulate([policy], readings, branches)]
    panel = Panel([policy], records[0].run_info)
    for record in records:
        for late in record.learned:
            panel.learn(late.point, late.reading)
        verdict = decide(panel.vote(record.point, record.reading), unanimous)
        assert verdict == record.verdict, "the replay differs"
        panel.observe(record.point, record.outcome, (verdict.forecast, verdict.anchor))
