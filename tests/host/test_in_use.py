"""What users do with a pipeline while mixcache is on: every result is that of the same caching written out by hand.

The reference never knows mixcache: a plain pipeline whose model, or whose blocks, hold what they gave last.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn

import mixcache
from tests.conftest import built
from tests.helpers import verdicts
from tests.zoo import pipelines, unusual
from tests.zoo.every import PIPELINES
from tests.zoo.pipelines import BUILDERS, WAN_14B, Tiny, wan, wan_transformer
from tests.zoo.tiny import randn

STEPS = 7
MASK = "1101001"

LEVELS = [(name, level) for name in ("wan", "sd3", "flux") for level in ("step", "cfg", "block")]
LEVELS.remove(("flux", "cfg"))


def over(places: list[tuple[str, str]]) -> Any:
    """The test for each of these pipelines and levels."""
    return pytest.mark.parametrize(("name", "level"), [pytest.param(*one, id="-".join(one)) for one in places])


over_levels = over(LEVELS)
SOME = [("wan", "cfg"), ("wan", "block"), ("sd3", "cfg"), ("flux", "step"), ("ltx", "block"), ("cogvideox", "step")]
over_some, over_three = over(SOME), over([("wan", "block"), ("sd3", "cfg"), ("flux", "step")])
whenever = pytest.mark.parametrize("before", [True, False], ids=["before", "after"])


def asked(level: str, mask: str = MASK) -> str:
    """The recipe that reuses where the mask has a 0."""
    return f'schedule:mask="{mask}",at={level}'


# the reference


class ByHand:
    """The caching that a mask prescribes, written out on a plain pipeline; for one run.

    A model, or the row of its blocks, gives what it gave when it was last computed: as much above what enters it now
    (`residual`), just that (`output`), or such that the implied noise or clean latent stays (flow matching alone). A
    guidance branch stays as far from the conditional one as it was. What has no history of its shape is computed.
    """

    def __init__(self, pipe: Any, level: str, mask: str = MASK, basis: str = "residual") -> None:
        self.pipe, self.level, self.mask, self.basis = pipe, level, mask, basis
        self.models = [m for m in (getattr(pipe, n, None) for n in ("transformer", "transformer_2")) if m is not None]
        self.held: dict[Any, Any] = {}
        self.conditional = torch.zeros(())
        self.step = -1
        self.branch = 0
        self.reuses: Counter[int] = Counter()
        self._time: float | None = None
        self._patched: list[nn.Module] = []

    def __enter__(self) -> ByHand:
        for model in self.models:
            self._put(model, self._call(model, model.forward))
            if self.level == "block":
                row = rows_of_blocks(model)
                for i, block in enumerate(row):
                    self._put(block, self._block(model, block, i, len(row), block.forward))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for module in self._patched:
            del module.forward

    def _put(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        assert "forward" not in vars(module)
        module.forward = forward
        self._patched.append(module)

    @property
    def reuse(self) -> bool:
        return self.mask[self.step] == "0"

    def _call(self, model: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(type(model).forward)

        def call(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(model, *args, **kwargs).arguments
            now = given["timestep"] if "timestep" in given else given["t"]
            time = float(now.flatten()[0])
            self.branch = self.branch + 1 if time == self._time else 0
            self.step += time != self._time
            self._time = time
            if self.basis == "output":
                return self._hold(model, lambda: forward(*args, **kwargs))
            if self.level == "step":
                return (self._whole(model, forward, kwargs),)
            if self.level == "cfg":
                return (self._guided(model, forward, kwargs),)
            return forward(*args, **kwargs)

        return call

    def _hold(self, model: nn.Module, compute: Callable[[], Any]) -> Any:
        key = (model, self.branch)
        if self.reuse and key in self.held:
            self.reuses[self.step] += 1
            return self.held[key]
        self.held[key] = compute()
        return self.held[key]

    def _whole(self, model: nn.Module, forward: Callable[..., Any], kwargs: dict[str, Any]) -> Tensor:
        x, key = kwargs["hidden_states"], (model, self.branch)
        p, q = self._coefficients()
        if self.reuse and key in self.held and self.held[key][0].shape == x.shape:
            self.reuses[self.step] += 1
            return (self.held[key][0] - p * x) / q
        out = forward(**kwargs)[0]
        self.held[key] = (p * x + q * out,)
        return out

    def _coefficients(self) -> tuple[float, float]:
        if self.basis == "residual":
            return -1.0, 1.0
        sigma = float(self.pipe.scheduler.sigmas[self.step])
        return (1.0, 1.0 - sigma) if self.basis == "noise" else (1.0, -sigma)

    def _guided(self, model: nn.Module, forward: Callable[..., Any], kwargs: dict[str, Any]) -> Tensor:
        rows = kwargs["hidden_states"].shape[0]
        doubled = isinstance(self.pipe, ONE_BATCH) and self.pipe.guidance_scale > 1
        if not doubled:
            if self.branch == 0:
                self.conditional = forward(**kwargs)[0]
                return self.conditional
            return self._beside(model, self.conditional, lambda: forward(**kwargs)[0])
        half = rows // 2
        if not (self.reuse and model in self.held):
            out = forward(**kwargs)[0]
            self._beside(model, out[half:], lambda: out[:half])
            return out
        given = {n: v[half:] if isinstance(v, Tensor) and v.shape[:1] == (rows,) else v for n, v in kwargs.items()}
        now = forward(**given)[0]
        return torch.cat([self._beside(model, now, lambda: pytest.fail("computed")), now])

    def _beside(self, model: nn.Module, now: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        if self.reuse and model in self.held:
            self.reuses[self.step] += 1
            return now + self.held[model][0]
        out = compute()
        self.held[model] = (out - now,)
        return out

    def _block(self, model: nn.Module, block: nn.Module, i: int, count: int, forward: Any) -> Callable[..., Any]:
        signature = inspect.signature(type(block).forward)

        def call(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(block, *args, **kwargs).arguments
            h, key = given["hidden_states"], (model, self.branch)
            if i == 0:
                self._entered = h
                self._passing = self.reuse and key in self.held and self.held[key][0].shape == h.shape
                self.reuses[self.step] += self._passing
            if self._passing:
                last = i == count - 1
                return streams(block, self.held[key][0] + h if last else h, given.get("encoder_hidden_states"))
            result = forward(*args, **kwargs)
            if i == count - 1:
                self.held[key] = (hidden_of(block, result) - self._entered,)
            return result

        return call


ONE_BATCH: tuple[Any, ...] = (
    diffusers.LTXPipeline,
    diffusers.StableDiffusion3Pipeline,
    diffusers.StableDiffusion3Img2ImgPipeline,
    diffusers.CogVideoXPipeline,
)
"""Pipelines with one batch over both branches, the conditional one behind."""


def rows_of_blocks(model: Any) -> list[nn.Module]:
    """The blocks of these models, in the order in which they run."""
    lists = ("blocks", "transformer_blocks", "single_transformer_blocks")
    return [block for name in lists for block in getattr(model, name, ())]


def streams(block: nn.Module, hidden: Tensor, text: Tensor | None) -> Any:
    """What a block of that kind returns."""
    kind = type(block).__name__
    if kind.startswith(("Wan", "LTX")):
        return hidden
    return (hidden, text) if kind.startswith("CogVideoX") else (text, hidden)


def hidden_of(block: nn.Module, result: Any) -> Tensor:
    if isinstance(result, Tensor):
        return result
    return result[0 if type(block).__name__.startswith("CogVideoX") else 1]


def by_hand(tiny: Tiny, level: str, mask: str = MASK, basis: str = "residual", **changes: Any) -> Tensor:
    """What a run must give; and it must not be what the plain pipeline gives."""
    with ByHand(tiny.pipe, level, mask, basis) as hand:
        result = tiny.run(changes.pop("steps", STEPS), **changes)
    assert hand.reuses, "nothing was to be reused"
    return result


def far(one: Tensor, other: Tensor) -> float:
    """Their distance, relative."""
    return float((one - other).norm() / other.norm())


def same(got: Tensor, want: Tensor) -> None:
    """To rounding."""
    torch.testing.assert_close(got, want)


def checked(tiny: Tiny, level: str, cached: Tensor, mask: str = MASK, basis: str = "residual", **changes: Any) -> None:
    """A cached run is the one by hand, which is not the plain one. mixcache is not on this pipeline (any more)."""
    want = by_hand(tiny, level, mask, basis, **changes)
    assert far(want, plain(tiny, **changes)) > 1e-4
    same(cached, want)


def plain(tiny: Tiny, **changes: Any) -> Tensor:
    return tiny.run(changes.pop("steps", STEPS), **changes)


def linears(model: nn.Module) -> list[str]:
    """The queries and values of every block, which a LoRA changes."""
    ends = (".attn.to_q", ".attn.to_v", ".attn1.to_q", ".attn1.to_v")
    found = [name for name, module in model.named_modules() if name.endswith(ends) and isinstance(module, nn.Linear)]
    assert found
    return found


# LoRA


class Lora(nn.Module):
    """What peft puts in the place of a linear layer."""

    def __init__(self, base: nn.Linear, seed: int) -> None:
        super().__init__()
        self.base, self.scale, self.fused = base, 1.0, False
        self.down, self.up = (
            nn.Parameter(0.5 * randn(*shape, seed=seed + i), requires_grad=False)
            for i, shape in enumerate([(2, base.in_features), (base.out_features, 2)])
        )

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        out = self.base(x)
        return out if self.fused else out + self.scale * (x @ self.down.T @ self.up.T)


class OwnLora:
    """A LoRA without peft: other modules in the place of linear layers, weights changed where it is fused."""

    def __init__(self, pipe: Any) -> None:
        self.model = pipe.transformer
        self.layers: dict[str, Lora] = {}

    def load(self) -> None:
        for seed, name in enumerate(linears(self.model)):
            self.layers[name] = Lora(self.model.get_submodule(name), seed)
            self.model.set_submodule(name, self.layers[name])

    def scale(self, to: float) -> None:
        for layer in self.layers.values():
            layer.scale = to

    def fuse(self) -> None:
        for layer in self.layers.values():
            layer.fused = True
            layer.base.weight.data += layer.scale * layer.up @ layer.down

    def unfuse(self) -> None:
        for layer in self.layers.values():
            layer.fused = False
            layer.base.weight.data -= layer.scale * layer.up @ layer.down

    def unload(self) -> None:
        for name, layer in self.layers.items():
            self.model.set_submodule(name, layer.base)


class PeftLora:
    """The same by the methods of a diffusers pipeline."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def load(self) -> None:
        weights = {}
        for seed, name in enumerate(linears(self.pipe.transformer)):
            base = self.pipe.transformer.get_submodule(name)
            weights[f"transformer.{name}.lora_A.weight"] = 0.5 * randn(2, base.in_features, seed=seed)
            weights[f"transformer.{name}.lora_B.weight"] = 0.5 * randn(base.out_features, 2, seed=seed + 1)
        self.pipe.load_lora_weights(weights, adapter_name="mine")

    def scale(self, to: float) -> None:
        self.pipe.set_adapters("mine", to)

    def fuse(self) -> None:
        self.pipe.fuse_lora(components=["transformer"])

    def unfuse(self) -> None:
        self.pipe.unfuse_lora(components=["transformer"])

    def unload(self) -> None:
        self.pipe.unload_lora_weights()


def lora_kind(kind: str) -> Callable[[Any], Any]:
    if kind == "peft":
        pytest.importorskip("peft")
    return {"own": OwnLora, "peft": PeftLora}[kind]


lora_kinds = pytest.mark.parametrize("kind", ["own", "peft"])


@lora_kinds
@over_three
def test_a_lora_may_come_change_and_go_while_caching_is_on(name: str, level: str, kind: str) -> None:
    """Loaded, scaled, fused, unfused, unloaded between runs: the next run is as if enabled then; in the end all is
    as it was."""
    make = lora_kind(kind)
    tiny, twin = BUILDERS[name](), BUILDERS[name]()
    bare, module_names = plain(twin), [n for n, _ in tiny.pipe.transformer.named_modules()]
    loras = make(tiny.pipe), make(twin.pipe)
    stages = [("load", ()), ("scale", (0.5,)), ("fuse", ()), ("unfuse", ()), ("unload", ())]
    results: list[Tensor] = []
    with mixcache.enable(tiny.pipe, asked(level)) as session:
        results.append(tiny.run(STEPS))
        for stage, given in stages:
            for lora in loras:
                getattr(lora, stage)(*given)
            results.append(tiny.run(STEPS))
            checked(twin, level, results[-1])
            with mixcache.enable(twin.pipe, asked(level)) as fresh:
                assert torch.equal(twin.run(STEPS), results[-1])
            assert verdicts(session) == verdicts(fresh)
    assert far(results[1], results[0]) > 1e-2, "the LoRA does nothing"
    assert far(results[2], results[1]) > 1e-3, "its scale does nothing"
    same(results[3], results[2])
    same(results[5], results[0])
    same(plain(tiny), bare)
    assert [n for n, _ in tiny.pipe.transformer.named_modules()] == module_names


@lora_kinds
@over_three
def test_a_lora_that_is_there_first_is_part_of_the_model(name: str, level: str, kind: str) -> None:
    """Loaded before; unloaded while caching is on; `disable()` brings nothing of it back."""
    make = lora_kind(kind)
    tiny, twin = BUILDERS[name](), BUILDERS[name]()
    bare = plain(twin)
    loras = make(tiny.pipe), make(twin.pipe)
    for lora in loras:
        lora.load()
    with mixcache.enable(tiny.pipe, asked(level)):
        checked(twin, level, tiny.run(STEPS))
        for lora in loras:
            lora.unload()
        checked(twin, level, tiny.run(STEPS))
    assert torch.equal(plain(tiny), bare)


@lora_kinds
@over_some
def test_a_lora_that_is_scaled_in_the_middle_of_a_run(name: str, level: str, kind: str) -> None:
    """What was kept stays what it was, what is computed has the new scale."""
    make = lora_kind(kind)
    tiny = BUILDERS[name]()
    lora = make(tiny.pipe)
    lora.load()

    def callback(_pipe: Any, index: int, *_: Any) -> dict[str, Any]:
        lora.scale(1.0 if index < 2 or index == STEPS - 1 else 0.25)
        return {}

    with mixcache.enable(tiny.pipe, asked(level)):
        cached = tiny.run(STEPS, callback_on_step_end=callback)
    checked(tiny, level, cached, callback_on_step_end=callback)
    assert far(cached, by_hand(tiny, level)) > 1e-3


# how weights are kept


@whenever
@over([("wan", "block"), ("sd3", "cfg"), ("flux", "step"), ("ltx", "cfg")])
def test_layerwise_casting(name: str, level: str, before: bool) -> None:
    """Weights in 8 bits, computed in 32; switched on before mixcache or under it."""
    tiny, twin = BUILDERS[name](), BUILDERS[name]()
    full = plain(twin)

    def cast(one: Tiny) -> None:
        one.pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)

    cast(twin)
    if before:
        cast(tiny)
    session = mixcache.enable(tiny.pipe, asked(level))
    if not before:
        checked(BUILDERS[name](), level, tiny.run(STEPS))
        cast(tiny)
    cached = tiny.run(STEPS)
    session.disable()
    checked(twin, level, cached)
    assert torch.equal(plain(tiny), plain(twin))
    assert far(plain(twin), full) > 1e-3, "casting did nothing"
    assert any(p.dtype == torch.float8_e4m3fn for p in tiny.pipe.transformer.parameters())


@pytest.mark.filterwarnings("ignore")
@whenever
@over_three
def test_torchao_int8(name: str, level: str, before: bool) -> None:
    """Quantized weights are tensors of a class of their own."""
    ao = pytest.importorskip("torchao.quantization")
    tiny, twin = BUILDERS[name](), BUILDERS[name]()
    full = plain(twin)
    ao.quantize_(twin.pipe.transformer, ao.Int8WeightOnlyConfig())
    if before:
        ao.quantize_(tiny.pipe.transformer, ao.Int8WeightOnlyConfig())
    with mixcache.enable(tiny.pipe, asked(level)):
        if not before:
            ao.quantize_(tiny.pipe.transformer, ao.Int8WeightOnlyConfig())
        cached = tiny.run(STEPS)
    checked(twin, level, cached)
    assert far(plain(twin), full) > 1e-5, "quantizing did nothing"


@pytest.mark.filterwarnings("ignore")
def test_a_trace_of_a_model_with_quantized_weights(tmp_path: Any) -> None:
    """A trace names the model it is of by samples of its weights."""
    ao = pytest.importorskip("torchao.quantization")
    tiny = BUILDERS["wan"]()
    ao.quantize_(tiny.pipe.transformer, ao.Int8WeightOnlyConfig())
    with mixcache.enable(tiny.pipe, asked("step"), trace=tmp_path / "trace") as session:
        tiny.run(STEPS)
    assert "WanTransformer3DModel" in session.header().models["transformer"]


class OddTensor(Tensor):
    """A weight of another class, as quantized ones are: it knows what a linear layer needs, and no views."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in ("flatten", "view", "reshape"):
            raise NotImplementedError(f"no {name} of an OddTensor")
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
        return result.as_subclass(cls) if name == "detach" else result


def test_a_trace_of_a_model_with_weights_of_another_class(tmp_path: Any) -> None:
    """The same without torchao: a trace is no reason to refuse a model that runs."""
    tiny = BUILDERS["wan"]()
    for module in tiny.pipe.transformer.modules():
        if isinstance(module, nn.Linear):
            odd = module.weight.detach().as_subclass(OddTensor)
            module.weight = nn.Parameter(odd, requires_grad=False)
    bare = plain(tiny)
    with mixcache.enable(tiny.pipe, "static:every=1", trace=tmp_path / "trace"):
        assert torch.equal(tiny.run(STEPS), bare)


def by_model(tiny: Tiny) -> None:
    tiny.pipe.enable_model_cpu_offload(device="cpu")


def by_group(tiny: Tiny) -> None:
    cpu = torch.device("cpu")
    apply_group_offloading(
        tiny.pipe.transformer, cpu, cpu, offload_type="block_level", num_blocks_per_group=1, use_stream=False
    )


OFFLOADED = [
    pytest.param(*place, offload, before, id=f"{'-'.join(place)}-{offload.__name__}-{'before' if before else 'after'}")
    for i, place in enumerate(SOME)
    for offload, before in [(by_model, i % 2 == 0), (by_group, i % 2 == 1)]
]


@pytest.mark.parametrize(("name", "level", "offload", "before"), OFFLOADED)
def test_offloading(name: str, level: str, offload: Callable[[Tiny], None], before: bool) -> None:
    """By the pipeline's own methods, which take their hooks off and put them on again after every run."""
    tiny, twin = BUILDERS[name](), BUILDERS[name]()
    if before:
        offload(tiny)
    session = mixcache.enable(tiny.pipe, asked(level))
    if not before:
        offload(tiny)
    cached = tiny.run(STEPS)
    assert torch.equal(tiny.run(STEPS), cached)
    session.disable()
    checked(twin, level, cached)
    assert torch.equal(plain(tiny), plain(twin))


@pytest.mark.parametrize(("backend", "before"), [("native", False), ("_native_math", True), ("_native_math", False)])
@over([("wan", "cfg"), ("sd3", "block")])
def test_attention_backends(name: str, level: str, backend: str, before: bool) -> None:
    """Another kernel under caching that is on, or before it."""
    tiny, twin = BUILDERS[name](), built(name)
    if before:
        tiny.pipe.transformer.set_attention_backend(backend)
    with mixcache.enable(tiny.pipe, asked(level)):
        if not before:
            tiny.pipe.transformer.set_attention_backend(backend)
        cached = tiny.run(STEPS)
    checked(twin, level, cached)
    tiny.pipe.transformer.reset_attention_backend()


VAES = [("wan", "step"), ("wan", "block"), ("cogvideox", "block")]


@over(VAES)
def test_a_vae_that_decodes_in_tiles_and_slices(name: str, level: str) -> None:
    """It decodes what the cached run ended with, once; switched on while caching is on."""
    tiny = BUILDERS[name]()
    with mixcache.enable(tiny.pipe, asked(level)) as session:
        latents = tiny.run(STEPS, batch=2)
        for switch in ("enable_tiling", "enable_slicing"):
            getattr(tiny.pipe.vae, switch)()
        cached = tiny.run(STEPS, batch=2, output_type="pt")
        assert session.report().foreign_calls == 0
    checked(tiny, level, latents, batch=2)
    checked(tiny, level, cached, batch=2, output_type="pt")


# compiled blocks


class Backend:
    """A backend of torch.compile that runs what it is given as it is. graphs: how many it was given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _examples: Any) -> Any:
        self.graphs += 1
        return graph.forward


@over([("wan", "cfg"), ("flux", "step")])
def test_compiled_blocks_are_compiled_once(name: str, level: str) -> None:
    """Whatever is reused, no step compiles anew, nor does another run: nothing of ours is traced or looks different."""
    torch.compiler.reset()
    tiny, backend = BUILDERS[name](), Backend()
    tiny.pipe.transformer.compile_repeated_blocks(backend=backend, fullgraph=True)
    compiled: list[int] = []

    def count(*_: Any) -> dict[str, Any]:
        compiled.append(backend.graphs)
        return {}

    with mixcache.enable(tiny.pipe, asked(level)):
        cached = tiny.run(STEPS, callback_on_step_end=count)
        again = tiny.run(STEPS, callback_on_step_end=count)
    assert compiled[0] > 0
    assert len(compiled) == 2 * STEPS
    settled = 0 if level == "step" else 1  # the conditional branch alone is another batch, once
    assert set(compiled[settled:]) == {compiled[-1]}
    assert torch.equal(again, cached)
    checked(BUILDERS[name](), level, cached)


# pipelines that share a transformer


def flux_images() -> tuple[Tiny, Tiny]:
    text = pipelines.flux()
    text.pipe.vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    pipe = diffusers.FluxImg2ImgPipeline.from_pipe(text.pipe)
    given = {"image": unusual.picture(16), "strength": 0.6}
    return text, unusual.like(text, pipe, more=lambda batch: {**given, "image": [given["image"]] * batch})


def sd3_images() -> tuple[Tiny, Tiny]:
    text = unusual.sd3_with_vae()
    return text, unusual.sd3_again(text, strength=0.6)


def wan_videos() -> tuple[Tiny, Tiny]:
    text = wan()
    pipe = diffusers.WanVideoToVideoPipeline.from_pipe(text.pipe)
    given = {"video": unusual.clip(9), "strength": 0.6}
    return text, unusual.like(text, pipe, ("num_frames",), lambda batch: given)


SHARED = {"flux": flux_images, "sd3": sd3_images, "wan": wan_videos}


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "unguided"])
@over_levels
def test_from_pipe_is_followed_with_or_without_guidance(name: str, level: str, guided: bool) -> None:
    """Image to image begins in the middle of the schedule; the pipeline that was enabled runs before and after it."""
    text, image = SHARED[name]()
    more = {} if guided or name == "flux" else {"guidance_scale": 1.0}
    steps, mask = 10, "110101"
    with mixcache.enable(text.pipe, asked(level, mask)) as session:
        first = text.run(6)
        cached = image.run(steps, **more)
        assert {r.point.num_steps for r in session.records} <= {6}
        again = text.run(6)
        report = session.report()
    assert torch.equal(again, first)
    assert report.foreign_calls == 0
    checked(text, level, first, mask=mask, steps=6)
    if level == "cfg" and not guided:
        assert torch.equal(cached, image.run(steps, **more))
    else:
        checked(image, level, cached, mask=mask, steps=steps, **more)


@pytest.mark.parametrize("name", SHARED)
def test_from_pipe_with_a_noise_scheduler_of_its_own_is_followed_or_computed_with_a_note(name: str) -> None:
    text, image = SHARED[name]()
    image.pipe.scheduler = type(image.pipe.scheduler).from_config(image.pipe.scheduler.config)
    bare = image.run(10)
    with mixcache.enable(text.pipe, asked("step", "110101")) as session:
        first = text.run(6)
        cached = image.run(10)
        report = session.report()
        assert torch.equal(text.run(6), first)
    if report.foreign_calls:
        assert "belonged to no run of this pipeline" in str(report)
        assert torch.equal(cached, bare)
    else:
        checked(image, "step", cached, mask="110101", steps=10)


# callbacks


def change_latents(pipe: Any, index: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"latents": 0.9 * tensors["latents"] + 0.05} if index in (1, 3) else {}


def change_guidance(pipe: Any, index: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    pipe._guidance_scale = {1: 2.0, 3: 7.0}.get(index, pipe._guidance_scale)
    return {}


def change_prompt(pipe: Any, index: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_embeds": tensors["prompt_embeds"].flip(1) * 2.0} if index == 1 else {}


CHANGES: dict[str, tuple[Callable[..., dict[str, Any]], list[str]]] = {
    "latents": (change_latents, ["latents"]),
    "guidance": (change_guidance, ["latents"]),
    "prompt": (change_prompt, ["latents", "prompt_embeds"]),
}


CHANGED = [
    pytest.param(name, level, what, id=f"{name}-{level}-{what}")
    for name, level in SOME
    for what in CHANGES
    if what != "guidance" or name not in ("wan", "flux")  # they take the scale once, before the first step
]


@pytest.mark.parametrize(("name", "level", "what"), CHANGED)
def test_a_callback_that_changes_what_the_run_goes_on_with(name: str, level: str, what: str) -> None:
    """The cache stands on what really enters the model; the next run knows nothing of it."""
    tiny = built(name)
    callback, inputs = CHANGES[what]
    changed = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": inputs}
    with mixcache.enable(tiny.pipe, asked(level)) as session:
        first, decided = tiny.run(STEPS), verdicts(session)
        cached = tiny.run(STEPS, **changed)
        again = tiny.run(STEPS)
        assert verdicts(session) == decided
    assert torch.equal(again, first)
    checked(tiny, level, cached, **changed)
    assert far(cached, first) > 1e-4, "the callback did nothing"


@pytest.mark.parametrize("basis", ["noise", "clean"])
@pytest.mark.parametrize("name", ["wan", "sd3", "flux", "ltx"])
def test_latents_that_a_callback_changes_after_the_first_step_do_not_shake_the_noise_levels(
    name: str, basis: str
) -> None:
    """The level is verified by the step that the solver took, not by what became of the latent afterwards."""

    def callback(_pipe: Any, index: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": 0.9 * tensors["latents"] + 0.05}

    tiny = built(name)
    with mixcache.enable(tiny.pipe, asked("step"), basis=basis) as session:
        cached = tiny.run(STEPS, callback_on_step_end=callback)
    assert session.report().notes == ()
    checked(tiny, "step", cached, basis=basis, callback_on_step_end=callback)


def stop_guidance(names: list[str]) -> Callable[..., dict[str, Any]]:
    """Dynamic guidance as the guide of diffusers has it: off after some steps, and one branch of everything is left."""

    def callback(pipe: Any, index: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index != 2:
            return {}
        pipe._guidance_scale = 1.0
        return {name: tensors[name].chunk(2)[-1] for name in names}

    return callback


@pytest.mark.parametrize("level", ["step", "cfg", "block"])
def test_a_callback_that_ends_guidance_in_one_batch(level: str) -> None:
    """From then on the model is called with one half of the rows: what was kept of both is of no use."""
    tiny = built("sd3")
    names = ["prompt_embeds", "pooled_prompt_embeds"]
    changed = {
        "callback_on_step_end": stop_guidance(names),
        "callback_on_step_end_tensor_inputs": names,
    }
    mask = "1010010" if level != "cfg" else "1010000"
    with mixcache.enable(tiny.pipe, asked(level, mask)):
        first = tiny.run(STEPS)
        cached = tiny.run(STEPS, **changed)
        assert torch.equal(tiny.run(STEPS), first)
    checked(tiny, level, cached, mask=mask, **changed)


def interrupt(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
    pipe._interrupt = index >= 3
    return {}


@over_some
def test_a_run_that_is_interrupted_and_the_next_one(name: str, level: str) -> None:
    """It ends early with what it has; the next run is as a first, and nothing of the interrupted one is left."""
    tiny = built(name)
    with mixcache.enable(tiny.pipe, asked(level)) as session:
        first, decided = tiny.run(STEPS), verdicts(session)
        stopped = tiny.run(STEPS, callback_on_step_end=interrupt)
        assert {r.point.step for r in session.records} == {0, 1, 2, 3}
        for _ in range(2):
            assert torch.equal(tiny.run(STEPS), first)
            assert verdicts(session) == decided
        report = session.report()
    assert report.runs == 4
    assert report.foreign_calls == 0
    checked(tiny, level, first)
    checked(tiny, level, stopped, callback_on_step_end=interrupt)


@over_some
def test_a_run_that_is_interrupted_in_its_first_step(name: str, level: str) -> None:
    """Nothing is known of it yet."""
    tiny = built(name)

    def at_once(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
        pipe._interrupt = True
        return {}

    bare = plain(tiny, callback_on_step_end=at_once)
    with mixcache.enable(tiny.pipe, asked(level)) as session:
        assert torch.equal(tiny.run(STEPS, callback_on_step_end=at_once), bare)
        cached = tiny.run(STEPS)
        assert session.report().runs == 2
    checked(tiny, level, cached)


# more than one sample


def different(tiny: Tiny) -> Tiny:
    """The prompts of a batch are not alike."""

    def arguments(batch: int) -> dict[str, Any]:
        given = dict(tiny.arguments(batch))
        for name in ("prompt_embeds", "pooled_prompt_embeds"):
            if name in given:
                turns = torch.linspace(1.0, -1.0, batch) if batch > 1 else torch.ones(1)
                given[name] = given[name] * turns.reshape(-1, *[1] * (given[name].dim() - 1))
        return given

    return Tiny(tiny.pipe, arguments, tiny.other_size, tiny.steps, tiny.unguided)


@over([*SOME, ("sd3", "step"), ("sd3", "block"), ("ltx", "cfg"), ("cogvideox", "cfg")])
def test_two_prompts_at_once(name: str, level: str) -> None:
    """Every sample is reused from itself, and from its own branch."""
    tiny = different(built(name))
    with mixcache.enable(tiny.pipe, asked(level)) as session:
        cached = tiny.run(STEPS, batch=2)
        assert torch.equal(tiny.run(STEPS, batch=2), cached)
    assert session.report().foreign_calls == 0
    assert cached.shape[0] == 2
    checked(tiny, level, cached, batch=2)


@over([("wan", "step"), ("wan", "cfg"), ("wan", "block"), ("flux", "step")])
def test_several_images_of_a_prompt(name: str, level: str) -> None:
    tiny, several = built(name), {"num_images_per_prompt": 2, "num_videos_per_prompt": 2}
    with mixcache.enable(tiny.pipe, asked(level)) as session:
        cached = tiny.run(STEPS, **several)
    assert session.report().foreign_calls == 0
    assert cached.shape[0] == 2
    checked(tiny, level, cached, **several)


def test_several_videos_of_several_prompts(embedded_wan: Tiny) -> None:
    """Read from words by the pipeline's own text encoder."""
    level, mask = "cfg", "1010"
    several = {"prompt": ["a red circle moving left", "a blue square"], "num_videos_per_prompt": 2, "batch": 2}
    with mixcache.enable(embedded_wan.pipe, asked(level, mask)):
        cached = embedded_wan.run(4, **several)
    assert cached.shape[0] == 4
    checked(embedded_wan, level, cached, mask=mask, steps=4, **several)


def test_a_text_that_is_repeated_within_a_block_is_computed_and_said() -> None:
    """Embeddings of one prompt beside the latents of two images: one row enters the first block, two leave it."""
    tiny, several = built("flux"), {"num_images_per_prompt": 2}
    bare = plain(tiny, **several)
    with mixcache.enable(tiny.pipe, asked("block")) as session:
        cached = tiny.run(STEPS, **several)
    if any(r.outcome.reused for r in session.records):
        checked(tiny, "block", cached, **several)
    else:
        assert torch.equal(cached, bare)
        assert "output of (2, 6, 32) beside an anchor of (1, 6, 32)" in str(session.report())


# other pipelines


def by_casting(tiny: Tiny) -> None:
    tiny.pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("QwenImagePipeline", by_model),  # branches in turn
        ("Lumina2Pipeline", by_group),  # the negative velocity
        ("Lumina2Pipeline", by_casting),
        ("ZImagePipeline", by_model),  # lists in and out
        ("ZImagePipeline", by_casting),
        ("WanVACEPipeline", by_group),  # a condition between the blocks
    ],
)
def test_other_pipelines_hold_their_outputs(name: str, way: Callable[[Tiny], None]) -> None:
    """Whatever goes in and out of the model: what is held is what it gave."""
    tiny, twin = PIPELINES[name](), PIPELINES[name]()
    if way is by_casting:
        way(twin)
    with mixcache.enable(tiny.pipe, asked("step"), basis="output") as session:
        before = tiny.run(STEPS)
        way(tiny)
        cached = tiny.run(STEPS)
        assert {r.point.step for r in session.records if r.outcome.reused} == {2, 4, 5}
    checked(twin, "step", cached, basis="output")
    if way is by_casting:
        assert far(cached, before) > 1e-4
    else:
        assert torch.equal(cached, before)


# two experts


def two_experts() -> Tiny:
    return wan(transformer_2=wan_transformer(seed=3), boundary_ratio=0.9)


@pytest.mark.parametrize(
    ("level", "basis"),
    [("step", "residual"), ("step", "noise"), ("step", "clean"), ("cfg", "residual"), ("block", "residual")],
)
def test_two_experts_have_a_memory_each(level: str, basis: str) -> None:
    """Where the second begins with a reuse it has nothing to reuse and is computed; afterwards it reuses its own."""
    tiny, steps, mask = two_experts(), 10, "1010010101"
    bare = tiny.run(steps)
    with mixcache.enable(tiny.pipe, asked(level, mask), **({} if basis == "residual" else {"basis": basis})) as session:
        cached = tiny.run(steps)
        assert torch.equal(tiny.run(steps), cached)
    first = {r.point.component: r.point.step for r in reversed(session.records)}
    reused = {r.point.component for r in session.records if r.outcome.reused}
    assert mask[first["transformer_2"]] == "0"
    assert not any(r.outcome.reused for r in session.records if r.point.step == first["transformer_2"])
    assert reused == {"transformer", "transformer_2"}
    assert not [note for note in session.report().notes if "noise level" in note]
    checked(tiny, level, cached, mask=mask, basis=basis, steps=steps)
    assert torch.equal(tiny.run(steps), bare)


@pytest.mark.parametrize("policy", ["teacache", "magcache"])
def test_two_experts_do_not_take_the_table_of_the_one_model_that_is_configured_like_them(policy: str) -> None:
    """The table is refused, or it is one for two experts, which the report names."""
    with torch.device("meta"):
        one, two = (diffusers.WanTransformer3DModel(**WAN_14B) for _ in range(2))
    rest = {"tokenizer": None, "text_encoder": None, "vae": None, "scheduler": pipelines.unipc()}
    with mixcache.enable(diffusers.WanPipeline(**rest, transformer=one), policy) as session:
        alone = str(session.calibrated)
    pipe = diffusers.WanPipeline(**rest, transformer=one, transformer_2=two, boundary_ratio=0.875)
    with pytest.raises(mixcache.ConfigurationError, match=r"table|calibrate"):
        mixcache.enable(pipe, policy)
    assert alone != policy
