"""Side inputs: tensors by name beside what enters a place, for signals and forecasters; the anchor of every entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from attrs import frozen
from torch import Tensor

import mixcache
from mixcache import (
    Beside,
    ConfigurationError,
    Entry,
    Forecaster,
    Point,
    Policy,
    Reading,
    Scene,
    SideInput,
    Signal,
    Streams,
    Tensors,
    Vote,
    relative_change,
)
from tests.helpers import Scripted, follow
from tests.zoo import toy

Make = Callable[[Scene], Any]


@pytest.fixture
def scenes() -> list[Scene]:
    """What the side input of a test has been asked with."""
    return []


@pytest.fixture
def offer(scenes: list[Scene]) -> Iterator[Callable[..., None]]:
    """Registers the side input "shadow" for one test."""

    def register(make: Make, **more: Any) -> None:
        def noted(scene: Scene) -> Any:
            scenes.append(scene)
            return make(scene)

        mixcache.register(SideInput(name="shadow", make=noted, **more))

    yield register
    mixcache.unregister("side input", "shadow")


def size(scene: Scene) -> Tensor:
    """How large the hidden states that enter the span are, per sample: [S, 1]."""
    return scene.streams[0].abs().flatten(1).mean(1, keepdim=True)


def reads(*signals: Any, mask: str = "1", spans: Sequence[tuple[int, int]] = ((1, 3),), **more: Any) -> Policy:
    """A policy at BLOCK that reads these and computes by a mask."""

    @frozen(kw_only=True)
    class Reads(Policy):
        """Reads."""

        def spans(self, blocks: int) -> tuple[tuple[int, int], ...]:
            return tuple(spans)

        def vote(self, point: Point, reading: Reading, state: Any) -> Vote:
            return Vote.compute() if mask[point.step % len(mask)] == "1" else Vote.reuse()

    Reads.signals = signals
    return Reads(at=more.pop("at", "block"), **more)


def latents(steps: int = 6, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(steps)
    return list(torch.randn(steps, batch, 3, generator=generator, dtype=torch.float64).cumsum(0))


def run(policy: Policy, xs: list[Tensor], **how: Any) -> tuple[mixcache.Session, list[Tensor]]:
    model = toy.Toy()
    with mixcache.enable(model, policy, adapter=toy.ADAPTER, **how) as session:
        return session, [outputs[0] for outputs in toy.walk(session, model, xs)]


# read by signals


def test_a_signal_reads_it_now_and_as_it_was(offer: Any) -> None:
    """Now, at the previous visit, and at the last computed one."""
    offer(size)
    mask, xs = "110100", latents()

    def against(which: str) -> Callable[[Tensors], Tensor | None]:
        return lambda t: relative_change(t, t.now("shadow"), getattr(t, which)("shadow"))

    now = Signal(name="now", measure=lambda t: t.norm(t.now("shadow")), reads=frozenset({"shadow"}))
    before = Signal(name="before", measure=against("previous"), reads=frozenset({"previous:shadow"}))
    since = Signal(name="since", measure=against("computed"), reads=frozenset({"computed:shadow"}))
    session, _ = run(reads(now, before, since, mask=mask), xs)
    sizes = [toy.through(x, 0, 1).abs().mean(1) for x in xs]
    computed = None
    for t, record in enumerate(session.records):
        expected = {"now": float(sizes[t].max()), "before": None, "since": None}
        for name, c in (("before", t - 1 if t else None), ("since", computed)):
            if c is not None:
                expected[name] = float(((sizes[t] - sizes[c]).abs() / sizes[c]).max())
        assert record.reading == {n: v if v is None else pytest.approx(v, rel=1e-5) for n, v in expected.items()}
        computed = t if mask[t] == "1" else computed


def test_what_it_is_asked_with(offer: Any, scenes: list[Scene]) -> None:
    offer(size)
    xs = latents(2)
    model = toy.Toy()
    policy = reads(Signal(name="s", measure=lambda t: t.norm(t.now("shadow")), reads=frozenset({"shadow"})))
    with mixcache.enable(model, policy, adapter=toy.ADAPTER) as session:
        toy.walk(session, model, xs)
    for scene, x in zip(scenes, xs):
        assert scene.model is model
        assert scene.block is model.blocks[0]
        assert torch.equal(scene.arguments["hidden_states"], x)
        assert torch.equal(scene.entered[0], x)
        assert torch.equal(scene.streams[0], toy.through(x, 0, 1))
        assert (scene.span, scene.adapter) == ((1, 3), toy.ADAPTER)


@pytest.mark.parametrize(("once", "calls"), [(True, 3), (False, 6)])
def test_one_that_is_the_same_at_every_place_is_made_once_a_call(
    offer: Any, scenes: list[Scene], once: bool, calls: int
) -> None:
    offer(lambda scene: scene.entered[0] * 2, once=once)
    doubled = Signal(name="s", measure=lambda t: t.norm(t.now("shadow")), reads=frozenset({"shadow"}))
    session, _ = run(reads(doubled, spans=((0, 2), (2, 4))), xs := latents(3))
    assert len(scenes) == calls
    for record in session.records:
        assert record.reading["s"] == pytest.approx(float((2 * xs[record.point.step]).abs().mean(1).max()))


def test_where_there_is_none_the_one_before_in_the_same_call_stands(offer: Any) -> None:
    """Never that of another call."""
    calls = iter([1.0, None, None, 3.0, None, None])

    def sometimes(scene: Scene) -> Tensor | None:
        value = next(calls)
        return None if value is None else torch.full((2, 1), value)

    offer(sometimes)

    def measure(t: Tensors) -> Tensor | None:
        shadow = t.now("shadow")
        return None if shadow is None else t.norm(shadow)

    session, _ = run(
        reads(Signal(name="s", measure=measure, reads=frozenset({"shadow"})), spans=((0, 2), (2, 4))), latents(3)
    )
    assert [r.reading["s"] for r in session.records] == [1.0, 1.0, None, 3.0, None, None]


def test_it_is_made_only_where_somebody_asks_for_it(offer: Any, scenes: list[Scene]) -> None:
    offer(size)
    run(reads("anchor_change"), latents(2))
    assert scenes == []


@pytest.mark.parametrize("level", ["step", "cfg"])
def test_there_is_none_above_the_blocks(offer: Any, level: str) -> None:
    offer(size)
    asks = reads(Signal(name="s", measure=size, reads=frozenset({"previous:shadow"})), at=level)
    with pytest.raises(ConfigurationError, match=rf"shadow can be had at 'block' alone, .* at '{level}' .*\(reads\)"):
        mixcache.enable(toy.Toy(), asks, adapter=toy.ADAPTER)


@pytest.mark.parametrize("what", ["shadow", "previous:shadow", "computed:shadow"])
def test_one_that_nobody_registered_is_an_error(what: str) -> None:
    asks = reads(Signal(name="s", measure=size, reads=frozenset({what})))
    with pytest.raises(ConfigurationError, match=r"nobody registered the side input 'shadow'; there are: .*'prefix'"):
        mixcache.enable(toy.Toy(), asks, adapter=toy.ADAPTER)


# read by forecasters


@frozen
class Along(Forecaster):
    """The straight line in the size of what enters: z_1 + (s - s_1) / (s_1 - s_0) (z_1 - z_0), per sample."""

    name = "along"
    reads = frozenset({"shadow"})

    @property
    def depth(self) -> int:
        return 2

    def forecast(self, history: Sequence[Entry], point: Point, beside: Beside) -> Streams:
        if len(history) < 2:
            return tuple(z.clone() for z in history[-1].z)
        s0, s1 = (entry.beside["shadow"][0] for entry in history)
        (now,) = beside["shadow"]
        return tuple(a + (now - s0) / (s1 - s0) * (b - a) for a, b in zip(history[0].z, history[1].z))


def test_a_forecaster_reads_it_now_and_as_it_was_at_every_entry(offer: Any) -> None:
    offer(size)
    xs = latents()
    session, outputs = run(reads(mask="110100"), xs, forecast=Along())
    entering = [toy.through(x, 0, 1) for x in xs]
    z = [toy.through(h, 1, 3) - h for h in entering]
    s = [h.abs().mean(1, keepdim=True) for h in entering]
    for t, (a, b) in {2: (0, 1), 4: (1, 3), 5: (1, 3)}.items():
        h = entering[t] + z[a] + (s[t] - s[a]) / (s[b] - s[a]) * (z[b] - z[a])
        torch.testing.assert_close(outputs[t], toy.through(h, 3, 4))
    assert session.report().peak_bytes == 2 * (xs[0].nbytes + s[0].nbytes)


# the anchor of every entry


@frozen
class Secant(Forecaster):
    """The straight line in x: z_1 + g (z_1 - z_0), where g says how far x has gone on along x_1 - x_0, per sample."""

    name = "secant"
    reads = frozenset({"anchor"})

    @property
    def depth(self) -> int:
        return 2

    def forecast(self, history: Sequence[Entry], point: Point, beside: Beside) -> Streams:
        if len(history) < 2:
            return tuple(z.clone() for z in history[-1].z)
        (x0,), (x1,) = (entry.beside["anchor"] for entry in history)
        (x,) = beside["anchor"]
        way = x1 - x0
        g = ((x - x1) * way).flatten(1).sum(1) / way.square().flatten(1).sum(1)
        return tuple(b + g.view(-1, *[1] * (b.dim() - 1)) * (b - a) for a, b in zip(history[0].z, history[1].z))


def bent(steps: int = 7) -> list[Tensor]:
    """A straight way in x that is gone at uneven speed, another for each of two samples."""
    generator = torch.Generator().manual_seed(5)
    start, way = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
    return [start + torch.tensor([[0.1], [0.2]]) * t**1.5 * way for t in range(steps)]


class Affine(torch.nn.Module):
    """x -> A x + b: what a secant in x continues exactly however fast x goes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.matrix = torch.randn(3, 3, generator=generator, dtype=torch.float64)

    def forward(self, hidden_states: Tensor, timestep: Any = None, return_dict: bool = False) -> tuple[Tensor]:
        return (hidden_states @ self.matrix + 0.5,)


@pytest.mark.parametrize("basis", ["residual", "output"])
def test_a_secant_in_x_is_exact_on_an_affine_model_at_any_speed(basis: str) -> None:
    model, xs = Affine(), bent()
    off = {}
    for forecast in (Secant(), "linear"):
        with mixcache.enable(model, "schedule:1100100", basis=basis, forecast=forecast) as session:
            outputs = toy.walk(session, model, xs)
        off[str(forecast)] = max(float((o[0] - model(x)[0]).abs().max()) for o, x in zip(outputs, xs))
        assert session.report().evaluations == 3
    assert off["Secant(abscissa='step')"] < 1e-12 < 1e-2 < off["linear"]


def test_a_forecaster_reads_the_anchor_at_a_span_of_blocks() -> None:
    xs = latents()
    _, outputs = run(reads(mask="110100"), xs, forecast=Secant())
    h = [toy.through(x, 0, 1) for x in xs]
    z = [toy.through(x, 1, 3) - x for x in h]
    for t, (a, b) in {2: (0, 1), 4: (1, 3), 5: (1, 3)}.items():
        way = h[b] - h[a]
        g = ((h[t] - h[b]) * way).sum(1) / way.square().sum(1)
        torch.testing.assert_close(outputs[t], toy.through(h[t] + z[b] + g[:, None] * (z[b] - z[a]), 3, 4))


def test_the_anchors_of_a_history_are_those_it_is_told_around() -> None:
    """Here half of what enters: the secant is the same, and what is kept is the half."""

    @frozen
    class Half(mixcache.Anchor):
        """Half of what enters."""

        def make(self, entering: Streams, point: Point, state: Any, beside: Beside) -> Streams:
            return tuple(0.5 * x for x in entering)

    seen: list[tuple[Tensor, ...]] = []

    @frozen
    class Looks(Secant):
        """Keeps what it is given."""

        def forecast(self, history: Sequence[Entry], point: Point, beside: Beside) -> Streams:
            seen.append((*(entry.beside["anchor"][0] for entry in history), beside["anchor"][0]))
            return super().forecast(history, point, beside)

    model, xs = Affine(), bent(4)
    with mixcache.enable(model, "schedule:1100", forecast=Looks(), anchor=Half()) as session:
        outputs = toy.walk(session, model, xs)
    for t in (2, 3):
        assert all(torch.equal(a, 0.5 * xs[i]) for a, i in zip(seen[t - 2], (0, 1, t)))
        torch.testing.assert_close(outputs[t][0], model(xs[t])[0])


def test_what_is_kept_of_an_anchor_is_not_the_callers_tensor() -> None:
    """A loop that updates its latent in place does not change the history."""
    model, xs = Affine(), bent(5)
    with mixcache.enable(model, "schedule:11000", forecast=Secant()) as session, session.run(5) as opened:
        latent = xs[0].clone()
        for t, x in enumerate(xs):
            latent.copy_(x)
            with torch.no_grad(), opened.step(t), opened.branch("cond"):
                (output,) = model(latent)
            torch.testing.assert_close(output, x @ model.matrix + 0.5)


def test_the_anchors_that_are_kept_count_as_cache() -> None:
    xs = [torch.ones(1, 100), torch.full((1, 100), 2.0), torch.full((1, 100), 3.0)]
    model = Scripted()
    for forecast, tensors in (("linear", 2), (Secant(), 4)):
        with mixcache.enable(model, "schedule:110", forecast=forecast) as session:
            follow(session, model, xs, [[2 * x] for x in xs])
        assert session.report().peak_bytes == tensors * 400
