"""Every adapter describes a class that diffusers has, as that class really is."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch

import mixcache
from mixcache import ModelAdapter, catalogue
from mixcache.host.adapter import adapter_for
from mixcache.host.latents import find_source
from tests.conftest import built
from tests.helpers import listed_blocks, recorded_calls, reused_steps
from tests.zoo.architectures import build
from tests.zoo.pipelines import BUILDERS
from tests.zoo.tiny import Tiny

SHIPPED = {name: a for name, a in catalogue.models().items() if hasattr(diffusers, name)}
RANDOM = [name for name in BUILDERS if name != "embedded"]


def test_every_adapter_names_a_class_of_diffusers() -> None:
    assert set(SHIPPED) == set(catalogue.models())
    assert len(SHIPPED) >= 8


@pytest.mark.parametrize("name", SHIPPED)
def test_the_latent_argument_is_one_of_forward(name: str) -> None:
    parameters = inspect.signature(getattr(diffusers, name).forward).parameters
    assert SHIPPED[name].latent_argument in parameters


@pytest.mark.parametrize("name", RANDOM)
def test_blocks_take_and_return_what_the_adapter_says(name: str) -> None:
    """Seen from outside: arguments by name, and which returned tensor has which stream's shape."""
    tiny = built(name)
    model = tiny.pipe.transformer
    adapter = adapter_for(model, catalogue.models().values())
    assert not adapter.generic
    seen: dict[str, tuple[dict[str, Any], Any]] = {}

    def note(path: str) -> Any:
        def hook(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            names = list(inspect.signature(type(block).forward).parameters)[1:]
            seen[path] = {**dict(zip(names, args)), **kwargs}, result

        return hook

    lists = {kind.path: kind for kind in adapter.blocks}
    handles = [getattr(model, path)[0].register_forward_hook(note(path), with_kwargs=True) for path in lists]
    tiny.run(1)
    for handle in handles:
        handle.remove()
    assert set(seen) == set(lists)
    for path, kind in lists.items():
        arguments, result = seen[path]
        results = result if isinstance(result, tuple) else (result,)
        assert len(results) == len(kind.returns)
        assert set(kind.streams) <= set(kind.returns)
        for stream, tensor in zip(kind.returns, results):
            assert arguments[stream].shape == tensor.shape, f"{path}: {stream}"
        shapes = [arguments[stream].shape for stream in kind.returns]
        assert len(set(shapes)) == len(shapes), "the tiny model cannot tell its streams apart"


def probed(model: Any, call: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """The adapter's probe at the first block, what the attention of that block is given, and the block's arguments."""
    kind = adapter_for(model, catalogue.models().values()).blocks[0]
    block = getattr(model, kind.path)[0]
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    seen: list[Any] = []

    def enters(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = {**dict(zip(names, args)), **kwargs}
        assert kind.probe is not None
        seen.extend([kind.probe(block, arguments), arguments])

    def attends(_attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    attention = block.attn if hasattr(block, "attn") else block.attn1
    handles = [
        block.register_forward_pre_hook(enters, with_kwargs=True),
        attention.register_forward_pre_hook(attends, with_kwargs=True),
    ]
    with torch.no_grad():
        call()
    for handle in handles:
        handle.remove()
    probe, arguments, attended = seen[:3]
    return probe, attended, arguments


@pytest.mark.parametrize("name", ["flux", "hunyuan", "ltx", "qwen", "sd3"])
def test_the_probe_is_what_the_first_attention_is_given(name: str) -> None:
    """The modulated input, taken where the block itself uses it."""
    tiny = built(name)
    probe, attended, _ = probed(tiny.pipe.transformer, lambda: tiny.run(1))
    assert torch.equal(probe, attended)


@pytest.mark.filterwarnings("ignore:In CPU autocast")  # diffusers asks for float32 there
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated")
@pytest.mark.parametrize("name", ["mochi", "hunyuan15", "framepack", "flux2", "chroma"])
def test_the_probe_is_what_the_first_attention_is_given_without_a_pipeline_too(name: str) -> None:
    model, arguments = build(name)
    probe, attended, _ = probed(model, lambda: model(**arguments))
    assert torch.equal(probe, attended)


@pytest.mark.parametrize(
    ("name", "embedding"), [("wan", "condition_embedder.time_proj"), ("cogvideox", "time_embedding")]
)
def test_the_probe_is_the_time_embedding(name: str, embedding: str) -> None:
    """As that module of the model makes it; for Wan in its six parts."""
    tiny = built(name)
    model = tiny.pipe.transformer
    made: list[torch.Tensor] = []
    handle = model.get_submodule(embedding).register_forward_hook(lambda *given: made.append(given[-1]))
    probe, attended, _ = probed(model, lambda: tiny.run(1))
    handle.remove()
    assert torch.equal(probe.flatten(1), made[0])
    assert probe.shape != attended.shape


@pytest.mark.parametrize("name", RANDOM)
def test_all_blocks_are_listed_in_the_order_in_which_they_run(name: str) -> None:
    tiny = built(name)
    model = tiny.pipe.transformer
    listed = listed_blocks(model)
    order: list[int] = []
    handles = [block.register_forward_hook(lambda *_, i=i: order.append(i)) for i, block in enumerate(listed)]
    tiny.run(1, **tiny.unguided)
    for handle in handles:
        handle.remove()
    assert order == list(range(len(listed)))
    assert len(listed) >= 3
    lists = [m for m in model.children() if isinstance(m, torch.nn.ModuleList) and "Block" in type(m[0]).__name__]
    assert sum(map(len, lists)) == len(listed)


@pytest.mark.parametrize("name", RANDOM)
def test_branches_reach_the_model_as_the_adapter_says(name: str) -> None:
    tiny = built(name)
    adapter = adapter_for(tiny.pipe.transformer, catalogue.models().values())
    with recorded_calls(tiny.pipe.transformer) as calls:
        tiny.run(1)
    rows = [arguments["hidden_states"].shape[0] for arguments, _ in calls]
    assert rows == {"sequential": [1, 1], "doubled": [2], "embedded": [1]}[adapter.branches]


@pytest.mark.parametrize("name", RANDOM)
def test_the_latent_is_what_the_noise_scheduler_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument that the record names holds the sample that the noise scheduler is given; v_t has its shape.

    It is what watching finds as well.
    """
    tiny = built(name)
    adapter = adapter_for(tiny.pipe.transformer, catalogue.models().values())
    samples: list[torch.Tensor] = []
    step = tiny.pipe.scheduler.step

    def stepped(output: Any, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        samples.append(sample.clone())
        return step(output, timestep, sample, *args, **kwargs)

    monkeypatch.setattr(tiny.pipe.scheduler, "step", stepped)
    with recorded_calls(tiny.pipe.transformer) as calls:
        tiny.run(2)
    arguments, output = calls[0]
    latent = arguments[adapter.latent_argument]
    assert latent.shape == output.shape
    torch.testing.assert_close(latent[:1], samples[0][:1])
    source = find_source(arguments, samples[0])
    assert source is not None
    assert (source.argument, source.part, source.scale) == (adapter.latent_argument, None, 1.0)
    assert source.copies == (2 if adapter.branches == "doubled" else 1)


class Conditioned(torch.nn.Module):
    """Sixteen channels of what it is given, halved and shifted; the others are a condition, as Wan I2V has."""

    def __init__(self, latent: slice) -> None:
        super().__init__()
        self.latent = latent
        self.calls = 0

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor]:
        self.calls += 1
        return (0.5 * hidden_states[:, self.latent] + 1.0 + hidden_states.mean(),)


@pytest.mark.parametrize(
    ("latent", "stepped"),
    [(slice(0, 16), True), (slice(0, 16), False), (slice(20, 36), True)],
    ids=["declared and stepped", "declared", "behind and stepped"],
)
def test_condition_channels_are_not_part_of_the_latent(latent: slice, stepped: bool) -> None:
    """Wan I2V: 36 channels in, 16 out; the anchor is the first 16, or those that are seen to be stepped."""
    model, generator = Conditioned(latent), torch.Generator().manual_seed(0)
    x, given = torch.randn(1, 36, 2, 4, 4, generator=generator), []
    record = catalogue.models()["WanTransformer3DModel"]
    with mixcache.enable(model, "schedule:100", adapter=record) as session, session.run(3) as run:
        for step in range(3):
            with run.step(step), run.branch("cond"):
                output = model(x)[0]
            given.append((x[:, latent], output))
            x = x.clone() if stepped else torch.randn(1, 36, 2, 4, 4, generator=generator)
            if stepped:
                x[:, latent] -= 0.1 * output
    assert model.calls == 1
    first, computed = given[0]
    for now, rebuilt in given[1:]:
        torch.testing.assert_close(rebuilt, now + (computed - first))


def test_the_adapter_of_a_base_class_serves_and_strangers_are_generic() -> None:
    class Ours(diffusers.FluxTransformer2DModel):
        pass

    ours = Ours.__new__(Ours)
    assert adapter_for(ours, catalogue.models().values()).model == "FluxTransformer2DModel"

    class Stranger:
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states

    assert adapter_for(Stranger(), catalogue.models().values()) == ModelAdapter(model="Stranger", generic=True)


class Odd(torch.nn.Module):
    """Two arguments that are alike, neither of which has the usual name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, tokens: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        return tokens + 1.0


def walked(model: Odd, *others: torch.Tensor, **how: Any) -> tuple[mixcache.Report, list[torch.Tensor]]:
    """Three steps at latents 0, 1, 2, which no output explains."""
    with mixcache.enable(model, "schedule:100", **how) as session, session.run(3) as run:
        outputs = []
        for step in range(3):
            with run.step(step), run.branch("cond"):
                outputs.append(model(torch.full((1, 1), float(step)), *others))
    return session.report(), outputs


def test_a_call_whose_latent_cannot_be_told_is_computed_and_says_what_to_declare() -> None:
    model, other = Odd(), torch.full((1, 1), 7.0)
    report, outputs = walked(model, other)
    assert [output.item() for output in outputs] == [1.0, 2.0, 3.0]
    assert model.calls == report.evaluations == 3
    assert any(
        note == "calls were computed and not cached: Odd: its latent was not found among the arguments; pass "
        "adapter=ModelAdapter(model=..., latent_argument=...)"
        for note in report.notes
    )
    model = Odd()
    report, outputs = walked(model, other, adapter=ModelAdapter(model="Odd", latent_argument="tokens"))
    assert [output.item() for output in outputs] == [1.0, 2.0, 3.0]
    assert model.calls == report.evaluations == 1


def test_the_one_argument_that_is_like_the_output_is_its_latent() -> None:
    """Whatever a record says that does not hold."""
    for how in ({}, {"adapter": ModelAdapter(model="Odd")}):
        model = Odd()
        report, outputs = walked(model, **how)
        assert [output.item() for output in outputs] == [1.0, 2.0, 3.0]
        assert model.calls == report.evaluations == 1


@pytest.mark.parametrize("policy", ["magcache:first_share=0", "teacache:threshold=0.5"])
def test_the_embedded_model_has_its_own_tables(embedded_wan: Tiny, policy: str) -> None:
    (name, _, _) = policy.partition(":")
    (record,) = (
        c for c in SHIPPED["WanTransformer3DModel"].calibrations if c.policy == name and "tiny_wan" in c.source
    )
    assert record.fits(embedded_wan.pipe.transformer)
    with mixcache.enable(embedded_wan.pipe, policy) as session:
        embedded_wan.run(6)
    assert reused_steps(session, "block")
