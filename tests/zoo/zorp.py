"""A pipeline that nobody described: no class of diffusers but its noise scheduler, and no name that tells anything.

Its model, the component `zorp`, takes a condition in front of the latent, and both guidance branches in one batch.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from tests.zoo.tiny import randn

CHANNELS, BESIDE, LENGTH = 8, 3, 24
Guide = Callable[[Tensor, Tensor], Tensor]


class Slab(nn.Module):
    """One block."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, gloop: Tensor, wump: Tensor) -> Any:
        return gloop + torch.tanh(self.mix(gloop) + wump)


class Zorp(nn.Module):
    """qux: a condition, then the latent, per row. rows: how many each call had.

    enter: what enters before a block, from its index, the stream and the time.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into = nn.Linear(BESIDE + CHANNELS, width)
        self.shelf = nn.ModuleDict({"slabs": nn.ModuleList([Slab(width) for _ in range(4)])})
        self.out = nn.Linear(width, CHANNELS)
        self.rows: list[int] = []
        self.enter: Callable[[int, Tensor, float], Tensor] | None = None
        for one in self.parameters():
            one.requires_grad_(False)

    def forward(self, qux: Tensor, blip: Tensor, wump: Tensor) -> Any:
        self.rows.append(qux.shape[0])
        gloop = self.into(qux.transpose(1, 2)) + blip[:, None, None]
        gloop = self.through(gloop, wump[:, None], float(blip[0]))
        return self.give(self.out(gloop).transpose(1, 2))

    def through(self, gloop: Tensor, wump: Tensor, time: float) -> Tensor:
        for index, slab in enumerate(self.shelf["slabs"]):
            if self.enter is not None:
                gloop = self.enter(index, gloop, time)
            gloop = slab(gloop, wump)
        return gloop

    def give(self, found: Tensor) -> Any:
        return {"frob": found}


class Tupled(Zorp):
    """The prediction stands second in a tuple."""

    def give(self, found: Tensor) -> Any:
        return None, found


class Split(Zorp):
    """The second half of the batch is treated otherwise, as by perturbed attention: half a batch is no batch."""

    def give(self, found: Tensor) -> Any:
        half = found.shape[0] // 2
        return {"frob": torch.cat([found[:half], 0.5 * found[half:]])}


def plain(scale: float) -> Guide:
    return lambda cond, uncond: uncond + scale * (cond - uncond)


def euler(**more: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **more)


def ddim(prediction: str) -> Any:
    return diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False, timestep_spacing="trailing")


class Pipe:
    """predicts: "minus" for the negative velocity, "clean" for a clean image that the pipeline makes a velocity of.

    guided_from: before that step the conditional branch is called alone. steps: the sample and the output that the
    noise scheduler was given. by: what to call instead of the model, with the step in front.
    """

    def __init__(
        self,
        scheduler: Any = None,
        guide: Guide | None = None,
        *,
        zorp: Zorp | None = None,
        predicts: str = "flow",
        first: str = "cond",
        guided_from: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.scheduler = euler() if scheduler is None else scheduler
        self.zorp = (Zorp() if zorp is None else zorp).to(dtype)
        self.guide = plain(4.0) if guide is None else guide
        self.predicts, self.first, self.guided_from, self.dtype = predicts, first, guided_from, dtype
        self.steps: list[tuple[Tensor, Tensor]] = []
        self.by: Callable[..., Any] | None = None

    @property
    def components(self) -> dict[str, Any]:
        return {"zorp": self.zorp, "scheduler": self.scheduler, "words": None}

    def __call__(self, steps: int = 8, images: int = 1, seed: int = 1) -> Tensor:
        self.steps.clear()
        self.zorp.rows.clear()
        solver = self.scheduler
        solver.set_timesteps(steps)
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(images, CHANNELS, LENGTH, generator=draw).to(self.dtype)
        x = x * getattr(solver, "init_noise_sigma", 1.0)
        more = {"generator": draw} if "generator" in inspect.signature(solver.step).parameters else {}
        for index, time in enumerate(solver.timesteps):
            scaled = solver.scale_model_input(x, time) if hasattr(solver, "scale_model_input") else x
            found = self.given(self.predicted(index, scaled.to(self.dtype), float(time)), x, index)
            self.steps.append((x.clone(), found.clone()))
            x = solver.step(found, time, x, return_dict=False, **more)[0]
        return x

    def predicted(self, index: int, x: Tensor, time: float) -> Tensor:
        words = randn(2, 16, seed=9).to(self.dtype).repeat_interleave(x.shape[0], 0)
        beside = randn(1, BESIDE, LENGTH, seed=8).to(self.dtype).repeat(x.shape[0], 1, 1)
        guided = index >= self.guided_from
        copies = 2 if guided else 1
        if self.first == "uncond":
            words = words.roll(x.shape[0], 0)
        words = words if guided else randn(2, 16, seed=9)[:1].to(self.dtype).repeat(x.shape[0], 1)
        qux = torch.cat([beside, x], dim=1).repeat(copies, 1, 1)
        blip = torch.full((len(qux),), time / 1000, dtype=self.dtype)
        result = self.zorp(qux, blip, wump=words) if self.by is None else self.by(index, qux, blip, words)
        out: Tensor = result["frob"] if isinstance(result, dict) else result[1]
        if not guided:
            return out
        halves = out.chunk(2)
        return self.guide(*(halves if self.first == "cond" else halves[::-1]))

    def given(self, found: Tensor, x: Tensor, index: int) -> Tensor:
        """What the noise scheduler is given."""
        if self.predicts == "clean":
            return (x - found) / self.scheduler.sigmas[index].to(x.dtype)
        return -found if self.predicts == "minus" else found


class Loud(Slab):
    """Returns something beside its stream, which nobody takes."""

    def forward(self, gloop: Tensor, wump: Tensor) -> Any:
        return super().forward(gloop, wump), wump + 1


class Heard(Zorp):
    """Its blocks are loud."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf["slabs"] = nn.ModuleList([Loud() for _ in range(3)])

    def through(self, gloop: Tensor, wump: Tensor, time: float) -> Tensor:
        for slab in self.shelf["slabs"]:
            gloop, _ = slab(gloop, wump)
        return gloop


class Twice(Zorp):
    """Its blocks run twice in a call."""

    def through(self, gloop: Tensor, wump: Tensor, time: float) -> Tensor:
        return super().through(super().through(gloop, wump, time), wump, time)


class Forced(Pipe):
    """Diffusion forcing: a copy of the noise scheduler steps each half of the channels; its own never steps."""

    def __call__(self, steps: int = 8, images: int = 1, seed: int = 1) -> Tensor:
        self.zorp.rows.clear()
        self.scheduler.set_timesteps(steps)
        copies = [copy.deepcopy(self.scheduler) for _ in range(2)]
        for one in copies:
            one.set_timesteps(steps)
        x = randn(images, CHANNELS, LENGTH, seed=seed)
        for index, time in enumerate(self.scheduler.timesteps):
            found = self.predicted(index, x, float(time))
            halves = zip(copies, found.chunk(2, dim=1), x.chunk(2, dim=1))
            x = torch.cat([one.step(m, time, part, return_dict=False)[0] for one, m, part in halves], dim=1)
        return x


class Twins(Zorp):
    """Sound and picture: the sound's velocity is the first that it returns. extra: whether it returns a third."""

    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, qux: Tensor, snarf: Tensor, blip: Tensor, wump: Tensor) -> Any:  # type: ignore[override]
        picture = super().forward(qux, blip, wump)["frob"]
        sound = torch.tanh(snarf * blip[:, None] + 2 * picture.mean((1, 2))[:, None] + wump[:, :5])
        return (sound, picture, picture.flip(1)) if self.extra else (sound, picture)


class Duet(Pipe):
    """Two noise schedulers, one per output; the sound has sigmas of its own. heard: as `steps`, of the sound."""

    def __init__(self, zorp: Twins) -> None:
        super().__init__(zorp=zorp)
        self.drum = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
        self.heard: list[tuple[Tensor, Tensor]] = []

    @property
    def components(self) -> dict[str, Any]:
        return {**super().components, "drum": self.drum}

    def __call__(self, steps: int = 8, images: int = 1, seed: int = 1) -> Tensor:
        self.steps.clear()
        self.heard.clear()
        self.zorp.rows.clear()
        self.scheduler.set_timesteps(steps)
        self.drum.set_timesteps(steps)
        x, y = randn(images, CHANNELS, LENGTH, seed=seed), randn(images, 5, seed=seed + 1)
        beside, words = randn(images, BESIDE, LENGTH, seed=8), randn(images, 16, seed=9)
        for time, other in zip(self.scheduler.timesteps, self.drum.timesteps):
            blip = torch.full((images,), float(time) / 1000)
            sound, picture, *_ = self.zorp(torch.cat([beside, x], dim=1), y, blip, words)
            self.steps.append((x.clone(), picture.clone()))
            self.heard.append((y.clone(), sound.clone()))
            x = self.scheduler.step(picture, time, x, return_dict=False)[0]
            y = self.drum.step(sound, other, y, return_dict=False)[0]
        return torch.cat([x.flatten(), y.flatten()])
