"""How mixcache sits on a transformer: one diffusers hook on the instance, put on and taken off without a trace."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from diffusers.hooks.hooks import BaseState, CacheContext, HookRegistry, ModelHook, StateManager

from mixcache.errors import AttachError
from mixcache.host.latents import arguments_of
from mixcache.host.protocol import Call, Forward

HOOK_NAME = "mixcache"
BlockHandler = Callable[[Any, Forward, int, tuple[Any, ...], dict[str, Any]], Any]
Handler = Callable[[Any, Forward, Call, tuple[Any, ...], dict[str, Any]], Any]


_contexts: ContextVar[Mapping[int, CacheContext]] = ContextVar("mixcache_cache_contexts", default=MappingProxyType({}))


COMPILE_FIRST = (
    "caching cannot be compiled with it. Compile inside of the hooks, before enable(): `for block in "
    "pipe.transformer.blocks: block.forward = torch.compile(block.forward)`; where no policy decides about blocks, "
    "`pipe.transformer.compile_repeated_blocks()` will do as well."
)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _refuse_compiling() -> None:
    raise AttachError(f"this model was compiled after enable(), and {COMPILE_FIRST}")


class _OwnContext(StateManager):  # type: ignore[misc]
    """The `CacheContext` of the call in progress, one per thread and task (diffusers keeps one for all)."""

    def __init__(self) -> None:
        super().__init__(BaseState)

    def set_context(self, context: CacheContext | None) -> None:
        others = {key: value for key, value in _contexts.get().items() if key != id(self)}
        _contexts.set(others if context is None else {**others, id(self): context})

    def get(self) -> CacheContext | None:
        """The context of this thread or task, or `None`."""
        return _contexts.get().get(id(self))


class _Hook(ModelHook):  # type: ignore[misc]
    """Passes every forward of a transformer to the session, with what the pipeline says about it."""

    _is_stateful = True

    def __init__(self, component: str, handler: Handler, finished: Callable[[], None]) -> None:
        super().__init__()
        self.component = component
        self.handler = handler
        self.finished = finished
        self.own_context = _OwnContext()

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            _refuse_compiling()
        context = self.own_context.get()
        call = Call(
            component=self.component,
            branch=context.name if context else None,
            step=context.step_index if context else None,
            num_steps=context.num_inference_steps if context else None,
            sigma=context.sigma if context else None,
            timestep=arguments_of(module, args, kwargs).get("timestep"),
        )
        return self.handler(module, self.fn_ref.original_forward, call, args, kwargs)

    def reset_state(self, module: Any) -> Any:
        """diffusers calls this when a pipeline is done."""
        self.finished()
        return module


@contextmanager
def _inside_accelerate(model: Any) -> Iterator[None]:
    """Work on the forward that accelerate's offload hook wraps.

    A pipeline with CPU offload takes accelerate's hook off and puts it on again after every call; what was hooked
    outside of it would be lost then. Inside of it, a hook stays, and a skipped call still moves no weights.
    """
    if not hasattr(model, "_hf_hook") or not hasattr(model, "_old_forward"):
        yield
        return
    outer = model.forward
    model.forward = model._old_forward
    try:
        yield
        model._old_forward = model.forward
    finally:
        model.forward = outer


class _BlockHook(ModelHook):  # type: ignore[misc]
    """Passes every forward of a block to the session, with the block's index."""

    def __init__(self, handler: BlockHandler, index: int) -> None:
        super().__init__()
        self.handler = handler
        self.index = index

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            _refuse_compiling()
        return self.handler(module, self.fn_ref.original_forward, self.index, args, kwargs)


def root_hook(component: str, handler: Handler, finished: Callable[[], None]) -> ModelHook:
    """The hook for a transformer: `handler` gets every call, `finished` is called when a pipeline is done."""
    return _Hook(component, handler, finished)


def block_hook(handler: BlockHandler, index: int) -> ModelHook:
    """The hook for block `index` of a transformer."""
    return _BlockHook(handler, index)


def _remove(registry: HookRegistry) -> None:
    """Take our hook out of a chain; one that was put around it keeps its own forward (diffusers would drop that)."""
    names = list(registry.hooks)
    inner = registry.hooks[HOOK_NAME].fn_ref
    after = names[names.index(HOOK_NAME) + 1 :]
    outer = registry.hooks[after[0]].fn_ref if after else None
    own_forward = outer.forward if outer is not None and outer.original_forward is not None else None
    registry.remove_hook(HOOK_NAME, recurse=False)
    if outer is not None and own_forward is not None:
        outer.forward, outer.original_forward = own_forward, inner.original_forward


def check_compiled(model: Any, *, inside: bool) -> None:
    """Raise `AttachError` if a hook on `model` would be compiled with it, and name the recipe that keeps it outside.

    Dynamo cannot trace decisions. inside: whether blocks of the model, too, are to have hooks.
    """
    forward_compiled = hasattr(vars(model).get("forward"), "_torchdynamo_orig_callable")
    if hasattr(model, "_orig_mod") or model._compiled_call_impl is not None or (inside and forward_compiled):
        raise AttachError(
            f"this {type(getattr(model, '_orig_mod', model)).__name__} was compiled as a whole, and {COMPILE_FIRST}"
        )


class Attachment:
    """mixcache's hook on one module: a transformer or one of its blocks."""

    def __init__(self, model: Any, hook: ModelHook) -> None:
        self.model = model
        self._had_registry = hasattr(model, "_diffusers_hook")
        registry = HookRegistry.check_if_exists_or_initialize(model)
        if registry.get_hook(HOOK_NAME) is not None:
            raise AttachError(
                f"mixcache is enabled on this {type(model).__name__} already, perhaps through another pipeline that "
                "shares it; disable() that session first. One session can hold several policies: enable(pipe, [a, b])."
            )
        with _inside_accelerate(model):
            self._own_forward = "forward" in vars(model)
            registry.register_hook(hook, HOOK_NAME)
        registry.invalidate_child_registries_cache()
        vars(model)["__reduce_ex__"] = self._reduce

    def _reduce(self, protocol: Any) -> tuple[Any, ...]:
        """A pickle or a deep copy of the model is the plain model: a hook of diffusers would call the original's.

        Raises `AttachError` where others have hooked the model as well: what they did is not ours to copy.
        """
        state = dict(vars(self.model))
        if set(self.model._diffusers_hook.hooks) != {HOOK_NAME} or self._own_forward or "_hf_hook" in state:
            raise AttachError(
                f"this {type(self.model).__name__} has hooks of others beside mixcache's, which do not survive copying "
                "or pickling; disable() the session and remove them first."
            )
        for name in ("__reduce_ex__", "_diffusers_hook", "forward"):
            state.pop(name, None)
        return copyreg.__newobj__, (type(self.model),), state  # type: ignore[attr-defined]

    def detach(self) -> None:
        """Take the hook off and leave the model as it was found; doing so twice is harmless."""
        vars(self.model).pop("__reduce_ex__", None)
        registry = getattr(self.model, "_diffusers_hook", None)
        if registry is None or registry.get_hook(HOOK_NAME) is None:
            return
        with _inside_accelerate(self.model):
            _remove(registry)
            if not self._own_forward and not registry.hooks:
                vars(self.model).pop("forward", None)
        registry.invalidate_child_registries_cache()
        if not self._had_registry and not registry.hooks:
            del self.model._diffusers_hook
