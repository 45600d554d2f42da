"""Watching noise schedulers: every `step` that a pipeline takes is told, and counted, beside the model's calls.

A watched noise scheduler has methods of its own in front of those of its class, which it keeps; a deep copy of it
(diffusion forcing has one per frame) is watched as well. When the last listener leaves, they are gone.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from attrs import frozen
from torch import Tensor

MARK = "_mixcache_watch"
OWN = (MARK, "step", "set_timesteps", "__deepcopy__", "__reduce_ex__")


@frozen(kw_only=True)
class Stepped:
    """One step of a noise scheduler: what it was given, and the sample that it went on to."""

    noise_scheduler: Any
    model_output: Tensor
    sample: Tensor
    after: Tensor


@frozen(eq=False)
class Listener:
    """Who listens: `wanted` is asked before anything is looked at, `told` gets every step."""

    wanted: Callable[[], bool]
    told: Callable[[Stepped], None]


class Watch:
    """A noise scheduler that is watched, with its copies.

    count: its steps since its timesteps were set. fresh: whether that was seen. epoch: if copies step for it
    (diffusion forcing), what stands for their present timesteps. rounds: how often some of them stepped between two
    model calls.
    """

    def __init__(self, noise_scheduler: Any) -> None:
        self.noise_scheduler = noise_scheduler
        self.count = 0
        self.fresh = False
        self.rounds = 0
        self.epoch: object | None = None
        self._listeners: list[Listener] = []
        self._between = False
        _put_on(noise_scheduler, self)

    @classmethod
    def join(cls, noise_scheduler: Any, listener: Listener) -> Watch:
        """Listen to a noise scheduler, which others may listen to as well."""
        found = vars(noise_scheduler).get(MARK)
        watch = found if isinstance(found, Watch) and found.noise_scheduler is noise_scheduler else cls(noise_scheduler)
        watch._listeners.append(listener)
        return watch

    def leave(self, listener: Listener) -> None:
        """Listen no more; after the last, the noise scheduler is as it was found."""
        self._listeners = [one for one in self._listeners if one is not listener]
        if not self._listeners:
            for name in OWN:
                vars(self.noise_scheduler).pop(name, None)

    def called(self) -> None:
        """A model is called: if copies have stepped since the last time, a round of theirs is over."""
        self.rounds += self._between
        self._between = False

    def set(self, noise_scheduler: Any) -> None:
        """Timesteps were set, of the noise scheduler or of a copy."""
        if noise_scheduler is self.noise_scheduler:
            self.count, self.epoch, self.fresh = 0, None, True
        elif self.epoch is None or self.rounds or self._between:  # the copies begin, or begin again
            self.epoch = object()
        else:
            return
        self.rounds, self._between = 0, False

    def stepped(self, noise_scheduler: Any, given: dict[str, Any], result: Any) -> None:
        """A step was taken."""
        if noise_scheduler is self.noise_scheduler:
            self.count += 1
        else:
            self._between = True
        listeners = [one for one in self._listeners if one.wanted()]
        after = result[0] if isinstance(result, (tuple, list)) else getattr(result, "prev_sample", None)
        output, sample = given.get("model_output"), given.get("sample")
        if isinstance(output, Tensor) and isinstance(sample, Tensor) and isinstance(after, Tensor):
            step = Stepped(noise_scheduler=noise_scheduler, model_output=output, sample=sample, after=after)
            for one in listeners:
                one.told(step)


def _put_on(noise_scheduler: Any, watch: Watch) -> None:
    """Give a noise scheduler, or a copy of a watched one, the methods that tell."""
    kind = type(noise_scheduler)
    plain_step, plain_set = noise_scheduler.step, noise_scheduler.set_timesteps
    signature = inspect.signature(plain_step)

    @functools.wraps(plain_step)
    def step(*args: Any, **kwargs: Any) -> Any:
        result = plain_step(*args, **kwargs)
        watch.stepped(noise_scheduler, signature.bind(*args, **kwargs).arguments, result)
        return result

    @functools.wraps(plain_set)
    def set_timesteps(*args: Any, **kwargs: Any) -> Any:
        result = plain_set(*args, **kwargs)
        watch.set(noise_scheduler)
        return result

    def state() -> dict[str, Any]:
        return {name: value for name, value in vars(noise_scheduler).items() if name not in OWN}

    def deepcopy(memo: dict[int, Any]) -> Any:
        made: Any = object.__new__(kind)
        memo[id(noise_scheduler)] = made
        vars(made).update(copy.deepcopy(state(), memo))
        _put_on(made, watch)
        return made

    def reduce(protocol: Any) -> Any:  # a pickle or a shallow copy is plain
        return copyreg.__newobj__, (kind,), state()  # type: ignore[attr-defined]

    vars(noise_scheduler).update(dict(zip(OWN, (watch, step, set_timesteps, deepcopy, reduce))))


def can_be_watched(noise_scheduler: Any) -> bool:
    """Whether it steps as diffusers' noise schedulers do."""
    own = all(callable(getattr(type(noise_scheduler), name, None)) for name in ("step", "set_timesteps"))
    return own and hasattr(noise_scheduler, "__dict__")


def noise_schedulers(pipeline: Any) -> Iterable[Any]:
    """The noise schedulers among a pipeline's components, whatever they are called."""
    return [one for one in getattr(pipeline, "components", {}).values() if can_be_watched(one)]
