"""The laws that every policy keeps, as one line of pytest. Needs `hypothesis`; no model, no accelerator.

    from mixcache.testing import check_policy

    def test_my_policy():
        check_policy(MyPolicy(threshold=0.1))

The policy is run by the real cache scheduler over random readings, NaN and infinities among them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixcache import plugins, trace
from mixcache.basis import Residual
from mixcache.errors import ConfigurationError, PluginError
from mixcache.forecast import Hold
from mixcache.plan import Plan
from mixcache.points import Granularity, NoiseLevel, Point, Reading, RunInfo, Vote
from mixcache.policy import Policy
from mixcache.scheduler import CacheScheduler, drive
from mixcache.signals import Signal, Tensors, resolve
from mixcache.trace import Record
from mixcache.voting import RULES, Rule, unanimous

_VALUES = st.none() | st.floats(0, 0.2) | st.floats(0, 10) | st.sampled_from([float("nan"), float("inf")])


@attrs.frozen(kw_only=True)
class _Wants(Policy):
    """A partner for trials in company: one bit a step, 1 computes."""

    mask: int = 0

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute("1") if self.mask >> point.step & 1 else Vote.reuse("0", error=0.01)


def simulate(
    policies: Sequence[Policy],
    readings: Sequence[Reading],
    *,
    branches: Sequence[str] = ("cond",),
    rule: Rule = unanimous,
    index: int = 0,
) -> list[Record]:
    """The records of one run in which the signals had these values: the real loop without a model.

    readings: one a visit, that is one for every branch of every step in turn; a signal left out, or `None`, has no
    value there. The run has `len(readings) / len(branches)` evaluations, which must be a whole number.
    """
    num_steps, rest = divmod(len(readings), len(branches))
    if rest or not num_steps:
        raise ConfigurationError(f"`readings` must hold {len(branches)} for every step, got {len(readings)} in all.")
    now: dict[str, float | None] = {}

    def signal(name: str) -> Signal:
        def measure(tensors: Tensors) -> Tensor | None:
            value = now.get(name)
            return None if value is None else torch.tensor([value], dtype=torch.float64)

        return Signal(name=name, measure=measure)

    plan = Plan(
        policies=tuple(policies),
        rule=rule,
        bases=dict.fromkeys(Granularity, Residual()),
        forecasters=dict.fromkeys(Granularity, Hold()),
        signals={name: signal(name) for policy in policies for name in policy.signals},
    )
    records: list[Record] = []
    scheduler = CacheScheduler(plan, RunInfo(index=index, num_steps=num_steps), records.append)
    zero = torch.zeros(1)
    for visit, reading in enumerate(readings):
        step, branch = divmod(visit, len(branches))
        now = dict(reading)
        point = Point(
            granularity=policies[0].at,
            step=step,
            num_steps=num_steps,
            branch=branches[branch],
            leads=branch == 0,
            level=NoiseLevel.flow(1.0 - step / num_steps),
        )
        drive(scheduler.visit(point, (zero,)), lambda: (zero,))
    scheduler.end()
    return records


def check_policy(policy: Any, *, num_steps: int | None = None, examples: int = 100) -> None:
    """Check that a policy keeps the laws; raises `AssertionError` with the law and the smallest example that breaks it.

    policy: an instance, a class that needs no arguments, or a spec such as "easycache:threshold=0.05".
    num_steps: for a policy that serves runs of one length alone. examples: random runs for each law.

    The laws: the configuration is frozen and its class documented; the signals it names exist, and it reads no others;
    `vote` is pure and returns a `Vote`; every run begins with fresh state; first steps, last steps, longest run and
    signals that are not finite are respected whatever is measured; branches follow their leader unless the policy is
    independent; other policies beside it, in any order, give the same verdicts; a recorded trace replays.
    """
    (tested,) = plugins.build_policies(policy)
    _check_class(tested)
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
    for name in plugins.parameters(kind):
        try:
            setattr(policy, name, getattr(policy, name))
        except attrs.exceptions.FrozenInstanceError:
            continue
        raise AssertionError(f"{kind.__name__} must be frozen: its {name!r} could be changed")
    assert (kind.__doc__ or "").strip(), f"{kind.__name__} needs a docstring: `mixcache plugins` shows its first line"
    resolve(policy.signals, plugins.all_signals())
    hash(policy)


def _runs(policy: Policy, num_steps: int | None) -> st.SearchStrategy[_Drawn]:
    """Runs that the policy accepts: readings a visit, and the names of the branches."""
    reading = st.fixed_dictionaries(dict.fromkeys(policy.signals, _VALUES))

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
    state, before = policy.State(), copy.deepcopy(policy)
    for record in _simulate([policy], readings, branches):
        if policy.guard(record.point, record.reading, 0) is not None or not record.reading.keys() >= {*policy.signals}:
            continue
        kept = copy.deepcopy(_plain(state))
        first, second = (policy.vote(record.point, dict(record.reading), state) for _ in range(2))
        assert isinstance(first, Vote), f"vote() must return a Vote, got {first!r}"
        assert first == second, f"vote() must be pure: it said {first}, then {second}, to the same point"
        assert _plain(state) == kept, "vote() must not change the state; do that in observe()"
        policy.observe(record.point, record.outcome, state)
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
    partner = _Wants(at=policy.at, mask=0)
    steps = len(readings) // len(branches)
    in_a_row: dict[str, int] = {}
    for record in _simulate([policy, partner], readings, branches, rule=rule):
        step, reused = record.point.step, record.outcome.reused
        in_a_row[record.point.branch] = in_a_row.get(record.point.branch, 0) + 1 if reused else 0
        assert not (reused and step < policy.first_steps), f"step {step} was reused, first_steps={policy.first_steps}"
        assert not (reused and step < policy.warm_up(steps)), f"step {step} was reused, warm_up={policy.warm_up(steps)}"
        assert not (reused and step >= steps - policy.last_steps), f"step {step} of {steps} was reused"
        if policy.longest_run is not None:
            assert in_a_row[record.point.branch] <= policy.longest_run, (
                f"more than {policy.longest_run} reuses in a row"
            )
        broken = [v for v in record.reading.values() if v is not None and not abs(v) < float("inf")]
        assert not (reused and broken), f"step {step} was reused although it measured {broken}"


def _branches(policy: Policy, readings: _Readings, branches: Sequence[str], data: st.DataObject) -> None:
    """All branches of a step are decided together, unless the policy is independent."""
    if policy.branches == "independent":
        return
    led: dict[int, bool] = {}
    for record in _simulate([policy], readings, branches):
        led.setdefault(record.point.step, record.outcome.reused)
        assert record.outcome.reused == led[record.point.step], f"branches of step {record.point.step} disagree"


def _any_order(policy: Policy, readings: _Readings, branches: Sequence[str], data: st.DataObject) -> None:
    """Beside other policies, their order makes no difference, and one that always computes prevents all reuse."""
    rule = RULES[data.draw(st.sampled_from(sorted(RULES)))]
    steps = len(readings) // len(branches)
    company = [policy, *(_Wants(at=policy.at, mask=m) for m in data.draw(st.lists(st.integers(0, 2**steps - 1))))]
    shuffled = data.draw(st.permutations(company))
    here, there = ([r.outcome.reused for r in _simulate(c, readings, branches, rule=rule)] for c in (company, shuffled))
    assert here == there, "the order of the policies changed a verdict"
    veto = _Wants(at=policy.at, first_steps=steps)
    assert not any(r.outcome.reused for r in _simulate([policy, veto], readings, branches, rule=rule))


def _replays(policy: Policy, readings: _Readings, branches: Sequence[str], data: st.DataObject) -> None:
    """The trace of a run, written and read again, gives the same verdicts."""
    records = _simulate([policy], readings, branches)
    again = [Record.from_json(record.to_json()) for record in records]
    assert list(trace.replay(again, [policy])) == [record.verdict for record in records], "the replay differs"
