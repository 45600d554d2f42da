"""What plugins give is checked where it enters: the error names the plugin, and with on_error="compute" it computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from attrs import define, field, frozen
from torch import Tensor

import mixcache
from mixcache import (
    Anchor,
    Basis,
    Beside,
    Entry,
    Forecaster,
    Granularity,
    Outcome,
    PluginError,
    Point,
    Policy,
    Reading,
    RunInfo,
    Scene,
    SideInput,
    Signal,
    Streams,
    Tensors,
    Vote,
    catalogue,
    parse_granularity,
)
from tests.zoo import toy

MASK = "11000"


@frozen(kw_only=True)
class Good(Policy):
    """Computes twice, then reuses the middle blocks."""

    at: Granularity = field(default=Granularity.BLOCK, converter=parse_granularity)

    def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
        return ((1, 3),)

    def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
        return Vote.compute() if MASK[point.step] == "1" else Vote.reuse()


def policy(**methods: Any) -> Policy:
    """A policy called "odd" with these methods or attributes."""
    return frozen(type("Odd", (Good,), {"__doc__": "Odd.", "name": "odd", **methods}))()


def gives(value: Any) -> Callable[..., Any]:
    """A method that returns this, whatever it is given."""
    return lambda *args, **named: value


def fails(*args: Any, **named: Any) -> Any:
    """A method that fails."""
    raise ZeroDivisionError("by plan")


def latents(steps: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return list(torch.randn(steps, 2, 3, generator=generator, dtype=torch.float64))


def run(policies: Any, **how: Any) -> tuple[mixcache.Session, list[Tensor]]:
    model = toy.Toy()
    with mixcache.enable(model, policies, adapter=toy.ADAPTER, **how) as session:
        return session, [outputs[0] for outputs in toy.walk(session, model, latents())]


def test_the_good_one_reuses() -> None:
    session, _ = run(Good())
    assert [r.outcome.reused for r in session.records] == [False, False, True, True, True]


def check(said: str, policies: Any, **how: Any) -> None:
    """The run fails with an error that says so; with on_error="compute" it is as without mixcache, and says why."""
    with pytest.raises(PluginError, match=said):
        run(policies, **how)
    session, outputs = run(policies, on_error="compute", **how)
    for output, x in zip(outputs, latents()):
        assert torch.equal(output, toy.through(x))
    assert not any(r.outcome.reused for r in session.records)
    assert any(r.outcome.reason.startswith("failed: ") for r in session.records)
    with pytest.raises(PluginError, match=said):
        raise PluginError("; ".join(session.report().visits["block"].reasons))


# forecasters


def weighs(weights: Any) -> Forecaster:
    """A forecaster called "odd" with these weights."""

    @frozen
    class Odd(Forecaster):
        """Odd."""

        name = "odd"
        depth = 2

        def weights(self, nodes: Sequence[float], target: float) -> Any:
            return weights

    return Odd()


@pytest.mark.parametrize(
    "weights",
    [[1.0], [], [0.5, 0.25, 0.25], [math.nan, 1.0], [math.inf, -math.inf], 3, None, "ab", ["a", "b"], [1j, 0]],
)
def test_weights_are_one_finite_number_for_each_node(weights: Any) -> None:
    check(r"forecaster 'odd' must return 2 finite weights, one per node; it returned", Good(), forecast=weighs(weights))


def forecasts(made: Any) -> Forecaster:
    """A forecaster called "odd" that gives what `made` makes of the last z."""

    @frozen
    class Odd(Forecaster):
        """Odd."""

        name = "odd"

        def forecast(self, history: Sequence[Entry], point: Point, beside: Beside) -> Any:
            return made(history[-1].z)

    return Odd()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda z: list(z), r"returned \["),
        (lambda z: z[0], r"returned tensor"),
        (lambda z: None, "returned None"),
        (lambda z: (), "returned"),
        (lambda z: (*z, *z), r"returned \(2, 3\) .*, \(2, 3\)"),
        (lambda z: (z[0][:1],), r"returned \(1, 3\)"),
        (lambda z: (z[0].float(),), r"returned \(2, 3\) torch.float32"),
        (lambda z: (3.0,), "returned"),
    ],
)
def test_a_forecast_has_the_form_of_what_was_stored(made: Any, said: str) -> None:
    wanted = r"forecaster Odd\(.*\) must return a tuple of tensors of \(2, 3\) torch.float64 on cpu; it "
    check(wanted + said, Good(), forecast=forecasts(made))


def test_a_forecaster_that_fails_is_named() -> None:
    check(r"forecaster Odd\(.*\) raised ZeroDivisionError: by plan", Good(), forecast=forecasts(fails))


# rules


@pytest.mark.parametrize("answer", ["no", None, 0, 1, torch.tensor(True)])
def test_a_rule_says_yes_or_no(answer: Any) -> None:
    def odd(votes: Any) -> Any:
        return answer

    check("rule 'odd' must return True or False, it returned", Good(), rule=odd)


def test_a_rule_that_fails_is_named() -> None:
    check("rule .*fails.* raised ZeroDivisionError: by plan", Good(), rule=fails)


# signals


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(3), r"\(3,\)"),
        (torch.zeros(2, 4), r"\(2, 4\)"),
        (torch.zeros(2, 1), r"\(2, 1\)"),
        (torch.zeros(0), r"\(0,\)"),
        (0.5, "0.5"),
        ([0.5, 0.5], r"\[0.5, 0.5\]"),
        ("much", "'much'"),
    ],
)
def test_a_signal_is_one_number_per_sample(when: Any, value: Any, said: str) -> None:
    signal = Signal(name="odd", measure=gives(value), when=when)
    wanted = rf"signal 'odd' must return one number per sample, of shape \(2,\) or \(1,\), or None; it returned {said}"
    if when == "before":
        check(wanted, policy(signals=(signal,)))
        return
    with pytest.raises(PluginError, match=wanted):
        run(policy(signals=(signal,)))
    _, outputs = run(policy(signals=(signal,)), on_error="compute")
    assert all(torch.equal(output, toy.through(x)) for output, x in zip(outputs, latents()))


@pytest.mark.parametrize("value", [torch.zeros(2), torch.zeros(1), torch.tensor(0.0), None])
def test_what_a_signal_may_give(value: Any) -> None:
    session, _ = run(policy(signals=(Signal(name="fine", measure=gives(value)),)))
    assert session.records[1].reading == {"fine": None if value is None else 0.0}


@pytest.mark.parametrize("how", [{"measure": fails}, {"derive": fails, "requires": ("anchor_norm",)}])
def test_a_signal_that_fails_is_named(how: dict[str, Any]) -> None:
    norm = Signal(name="anchor_norm", measure=lambda t: t.norm(t.anchor))
    check("signal 'odd' raised ZeroDivisionError: by plan", policy(signals=(norm, Signal(name="odd", **how))))


def test_a_derived_signal_that_is_no_number_is_named() -> None:
    norm = Signal(name="anchor_norm", measure=lambda t: t.norm(t.anchor))
    odd = Signal(name="odd", derive=gives("much"), requires=("anchor_norm",))
    check("signal 'odd' must derive a number or None, it returned 'much'", policy(signals=(norm, odd)))


# policies


@pytest.mark.parametrize("answer", [None, True, "reuse", Vote])
def test_a_policy_votes(answer: Any) -> None:
    check(r"policy 'odd' must return a Vote from vote\(\), got", policy(vote=gives(answer)))


@pytest.mark.parametrize("answer", [False, "veto", 3])
def test_a_guard_votes_or_says_nothing(answer: Any) -> None:
    check(r"policy 'odd' must return a Vote", policy(guard_vote=gives(answer)))


@pytest.mark.parametrize("method", ["vote", "guard_vote", "warm_up"])
def test_a_policy_that_fails_is_named(method: str) -> None:
    check("policy 'odd' raised ZeroDivisionError: by plan", policy(**{method: fails}))


def test_a_state_that_fails_is_named() -> None:
    @define
    class State:
        """Cannot be made."""

        def __attrs_post_init__(self) -> None:
            fails()

    check("policy 'odd' raised ZeroDivisionError: by plan", policy(State=State))


@pytest.mark.parametrize("answer", [1, 0, None, "yes", torch.tensor(True)])
def test_a_policy_covers_a_place_or_does_not(answer: Any) -> None:
    check(r"policy 'odd' must return True or False from covers\(\), got", [policy(covers=gives(answer)), Good()])


def test_a_policy_that_fails_to_observe_is_named_and_what_was_reused_stays() -> None:
    """The verdict was carried out when it is told."""
    with pytest.raises(PluginError, match="policy 'odd' raised ZeroDivisionError: by plan"):
        run(policy(observe=fails))
    session, _ = run(policy(observe=fails), on_error="compute")
    assert [r.outcome.reused for r in session.records] == [False, False, True, True, True]
    assert all("failed: policy 'odd' raised" in r.outcome.reason for r in session.records)


# bases


def basis(coefficients: Callable[..., Any]) -> Basis:
    """A basis called "odd" with these coefficients."""
    return frozen(type("Odd", (Basis,), {"__doc__": "Odd.", "name": "odd", "coefficients": coefficients}))()


@pytest.mark.parametrize(
    "pair", [(math.nan, 1.0), (0.0, math.inf), (1.0,), (1.0, 1.0, 1.0), [0.0, 1.0], "ab", 1.0, ("a", "b"), (None, 1.0)]
)
def test_coefficients_are_two_finite_numbers(pair: Any) -> None:
    said = (
        r"basis 'odd' must return two finite numbers from coefficients\(\), or None where it is singular; it returned"
    )
    check(said, Good(), basis=basis(gives(pair)))


def test_a_basis_that_fails_is_named() -> None:
    check(r"basis Odd\(\) raised ZeroDivisionError: by plan", Good(), basis=basis(fails))


# anchors


def anchor(made: Any) -> Anchor:
    """An anchor called "odd" that is what `made` makes of what enters."""

    @frozen
    class Odd(Anchor):
        """Odd."""

        name = "odd"

        def make(self, entering: Streams, point: Point, state: Any, beside: Beside) -> Any:
            return made(entering)

    return Odd()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda x: list(x), r"returned \["),
        (lambda x: x[0], "returned tensor"),
        (lambda x: None, "returned None"),
        (lambda x: (), "returned"),
        (lambda x: (x[0][:1],), r"returned \(1, 3\)"),
        (lambda x: (x[0].float(),), r"returned \(2, 3\) torch.float32"),
    ],
)
@pytest.mark.parametrize("forecast", ["hold", "none"])
def test_an_anchor_has_the_form_of_the_output(made: Any, said: str, forecast: str) -> None:
    check(
        rf"anchor Odd\(\) must return a tuple of tensors.*; it {said}", Good(), anchor=anchor(made), forecast=forecast
    )


def test_an_anchor_that_fails_is_named() -> None:
    check(r"anchor Odd\(\) raised ZeroDivisionError: by plan", Good(), anchor=anchor(fails))


def test_an_anchor_whose_state_cannot_be_made_is_named() -> None:
    odd = frozen(type("Odd", (type(anchor(tuple)),), {"__doc__": "Odd.", "stateful": True, "State": fails}))()
    check(r"anchor Odd\(\) raised ZeroDivisionError: by plan", Good(), anchor=odd, forecast="none")


@pytest.mark.parametrize("cost", [-0.1, 1.1, math.nan, math.inf, "dear", None])
def test_the_cost_of_an_anchor_is_a_share_and_checked_when_it_is_enabled(cost: Any) -> None:
    odd = frozen(type("Odd", (type(anchor(lambda x: x)),), {"__doc__": "Odd.", "cost": cost}))()
    with pytest.raises(PluginError, match=r"anchor Odd\(\) must have a cost from 0 to 1, .* got"):
        mixcache.enable(toy.Toy(), Good(), adapter=toy.ADAPTER, anchor=odd)


# side inputs


@pytest.fixture
def shadow() -> Iterator[Callable[[Any], Policy]]:
    """Registers the side input "odd", and gives a policy that reads it."""

    def register(make: Callable[[Scene], Any]) -> Policy:
        mixcache.register(SideInput(name="odd", make=make))

        def size(t: Tensors) -> Tensor:
            found = t.now("odd")
            return t.norm(t.anchor if found is None else found)

        return policy(signals=(Signal(name="size", measure=size, reads=frozenset({"odd"})),))

    yield register
    mixcache.unregister("side input", "odd")


def test_a_side_input_that_fails_is_named(shadow: Any) -> None:
    check("side input 'odd' raised ZeroDivisionError: by plan", shadow(fails))


@pytest.mark.parametrize("value", [3.0, "much", (torch.zeros(2),)])
def test_a_side_input_is_a_tensor(shadow: Any, value: Any) -> None:
    check("side input 'odd' must return a tensor or None, it returned", shadow(gives(value)))


# run-time hooks


@pytest.fixture
def hooked() -> Iterator[Callable[..., None]]:
    """Registers a plugin called "odd" with these run-time hooks."""
    plugins: list[Any] = []

    def register(**hooks: Any) -> None:
        methods = {name: mixcache.hookimpl(hook) for name, hook in hooks.items()}
        plugins.append(mixcache.register(type("Plugin", (), methods)(), name="odd"))

    yield register
    for plugin in plugins:
        catalogue.manager().unregister(plugin)


@pytest.mark.parametrize("answer", [True, "reuse", Vote, [Vote.reuse()]])
def test_a_hook_votes_or_says_nothing(hooked: Any, answer: Any) -> None:
    def mixcache_vote(self: Any, point: Point, reading: Reading) -> Any:
        return answer

    hooked(mixcache_vote=mixcache_vote)
    check("plugin 'odd' must return a Vote or None from mixcache_vote, got", Good())


def test_a_hook_that_fails_to_vote_is_named(hooked: Any) -> None:
    def mixcache_vote(self: Any, point: Point) -> Any:
        fails()

    hooked(mixcache_vote=mixcache_vote)
    check("plugin 'odd' raised ZeroDivisionError: by plan", Good())


@pytest.mark.parametrize("what", ["forecast", "anchor"])
def test_a_hook_names_only_what_a_policy_lists(hooked: Any, what: str) -> None:
    def mixcache_vote(self: Any, point: Point) -> Any:
        return Vote.reuse(error=0.0, **{what: "zero"})

    hooked(mixcache_vote=mixcache_vote)
    check(rf"a vote names {what}='zero', which no policy here lists in `{what}s`", Good())


def test_a_hook_that_fails_to_observe_is_named(hooked: Any) -> None:
    def mixcache_observe(self: Any, point: Point, outcome: Outcome) -> None:
        fails()

    hooked(mixcache_observe=mixcache_observe)
    with pytest.raises(PluginError, match="plugin 'odd' raised ZeroDivisionError: by plan"):
        run(Good())
    session, _ = run(Good(), on_error="compute")
    assert [r.outcome.reused for r in session.records] == [False, False, True, True, True]
    assert all("failed: plugin 'odd' raised" in r.outcome.reason for r in session.records)


def test_a_hook_that_fails_when_the_run_ends_is_named_and_the_cache_is_gone(hooked: Any) -> None:
    def mixcache_run_ended(self: Any, run: RunInfo) -> None:
        fails()

    hooked(mixcache_run_ended=mixcache_run_ended)
    model, (x, *_) = toy.Toy(), latents()
    ends = pytest.raises(PluginError, match="plugin 'odd' raised ZeroDivisionError: by plan")
    with mixcache.enable(model, Good(), adapter=toy.ADAPTER) as session:
        with ends, session.run(2) as opened, torch.no_grad(), opened.step(0), opened.branch("cond"):
            model(x)
            assert opened.memory.store.held_bytes == x.nbytes
        assert opened.memory.store.held_bytes == 0


@pytest.mark.parametrize("how", ["hook", "policy"])
def test_what_fails_when_a_run_begins_is_named(hooked: Any, how: str) -> None:
    """A policy refuses a run by a `ConfigurationError`, which says so itself."""

    def mixcache_run_started(self: Any, run: RunInfo) -> None:
        fails()

    if how == "hook":
        hooked(mixcache_run_started=mixcache_run_started)
    with pytest.raises(PluginError, match="'odd' raised ZeroDivisionError: by plan"):
        run(Good() if how == "hook" else policy(started=fails))


# what is not a plugin's


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_a_lack_of_memory_is_not_a_plugins_fault(error: type[Exception]) -> None:
    def full(*args: Any) -> Any:
        raise error("full")

    with pytest.raises(error, match="full"):
        run(policy(vote=full), on_error="compute")


def test_an_error_of_the_model_passes_as_it_is() -> None:
    model = toy.Toy()
    model.blocks[2].forward = fails
    with (
        mixcache.enable(model, Good(), adapter=toy.ADAPTER, on_error="compute") as session,
        pytest.raises(ZeroDivisionError, match="by plan"),
    ):
        toy.walk(session, model, latents())
