"""On which denoisers mixcache works: every class of diffusers through a loop of one's own, a cell at a time.

`python -m tests.models.support` prints the support table. A cell works, is refused with a reason that is true of the
model, or does not apply; whatever else happens, a wrong number or an error that no one foresaw, is an AssertionError.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from attrs import field, frozen
from torch import Tensor

import mixcache
from mixcache import AttachError, MixcacheError, ModelAdapter, Session, catalogue
from mixcache.host.adapter import adapter_for
from tests.helpers import state_of
from tests.zoo.denoisers import BUILT, NOT_BUILT, aligned, build, latent_argument

STEPS = 6
SKIP = "every=2,first_steps=1,last_steps=0"
KEPT = ("time", "ids", "rope", "rotary", "coords", "size", "mask", "camera", "guidance")
"""Arguments that pipelines leave in float32 where the model is in bfloat16, by parts of their names."""

ALL_CAST = {
    "AceStepTransformer1DModel",
    "HunyuanDiT2DModel",
    "HunyuanImageTransformer2DModel",
    "HunyuanVideo15Transformer3DModel",
    "Ideogram4Transformer2DModel",
    "MiniMaxMusic3Transformer1DModel",
    "T5FilmDecoder",
}
"""Classes that take all of it in the model's own dtype."""

FLOAT32_ONLY = {
    "SanaWMTransformer3DModel": "its grid of pixels takes no bfloat16 on a CPU, and its rays no mixed dtypes"
}
"""Classes whose bare model fails in bfloat16, each with the cause."""


@frozen
class Cell:
    """What came of one check. why: the reason of a refusal, or why the check does not apply."""

    verdict: Literal["works", "refused", "not applicable"]
    why: str = ""


WORKS = Cell("works")


@frozen
class Case:
    """A tiny model with the arguments of a call, and the adapter it needs to be told its latent, if it needs one."""

    name: str
    model: Any
    arguments: dict[str, Any]
    latent: str
    adapter: ModelAdapter | None = field()

    @adapter.default
    def _adapter(self) -> ModelAdapter | None:
        plain = self.latent == "hidden_states"
        return None if plain else ModelAdapter(model=self.name, latent_argument=self.latent)

    @classmethod
    def of(cls, name: str, dtype: torch.dtype = torch.float32) -> Case:
        model, arguments = build(name)
        if dtype is not torch.float32:
            kept = () if name in ALL_CAST else KEPT
            arguments = {k: v if any(part in k for part in kept) else cast(v, dtype) for k, v in arguments.items()}
            lower(model, dtype)
        return cls(name, model, arguments, latent_argument(name))

    @property
    def record(self) -> ModelAdapter:
        """What mixcache goes by."""
        return self.adapter or adapter_for(self.model, catalogue.models().values())

    def calls(self, moving: bool, **more: Any) -> list[dict[str, Any]]:
        """The arguments of every step: of a latent that shrinks, or of the same over and over."""
        more = {name: value for name, value in more.items() if name in inspect.signature(self.model.forward).parameters}
        latents = [cast(self.arguments[self.latent], factor=1 - moving * 0.1 * i) for i in range(STEPS)]
        return [{**self.arguments, self.latent: latent, **more} for latent in latents]

    def bare(self, calls: Sequence[dict[str, Any]]) -> list[Any]:
        with torch.no_grad():
            return [self.model(**arguments) for arguments in calls]

    def cached(self, policy: str, calls: Sequence[dict[str, Any]], **choices: Any) -> tuple[Session, list[Any]]:
        """The same calls with mixcache on."""
        session = mixcache.enable(self.model, policy, adapter=self.adapter, **choices)
        with session, session.run(num_steps=len(calls)) as run, torch.no_grad():
            results = []
            for i, arguments in enumerate(calls):
                with run.step(i, sigma=1 - i / len(calls)):
                    results.append(self.model(**arguments))
        return session, results


def lower(model: Any, dtype: torch.dtype) -> None:
    """The model in another dtype, but for what its class keeps in float32: as `from_pretrained` loads it."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not kept & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)


def cast(value: Any, dtype: torch.dtype | None = None, factor: float = 1.0) -> Any:
    """Every floating tensor in it, in another dtype or scaled."""
    if isinstance(value, Tensor):
        return (value * factor).to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: cast(one, dtype, factor) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(cast(one, dtype, factor) for one in value)
    return value


def leaves(result: Any) -> Iterator[Tensor]:
    """Every tensor in a result, in order."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, dict):
        yield from leaves(list(result.values()))
    elif isinstance(result, (list, tuple)):
        for one in result:
            yield from leaves(one)


def form(result: Any) -> Any:
    """What a result is made of: types, names, shapes and dtypes."""
    if isinstance(result, Tensor):
        return tuple(result.shape), result.dtype
    if isinstance(result, dict):
        return type(result), {name: form(one) for name, one in result.items()}
    if isinstance(result, (list, tuple)):
        return type(result), [form(one) for one in result]
    return type(result)


def same(results: Sequence[Any], wanted: Sequence[Any], rounding: float = 0.0) -> None:
    """Raise `AssertionError` unless they have one form, and values equal to so many roundings of the largest."""
    assert [form(one) for one in results] == [form(one) for one in wanted], "the form of a result changed"
    for i, (found, right) in enumerate(zip(results, wanted)):
        for a, b in zip(leaves(found), leaves(right)):
            limit = rounding * torch.finfo(b.dtype).eps * max(float(b.abs().max()), 1.0)
            error = float((a.float() - b.float()).abs().max())
            assert error <= limit, f"step {i} is off by {error:.3g}, allowed are {limit:.3g}"


# is a refusal true?


def _values(case: Case) -> list[Any]:
    """What the model returns, as a list of values."""
    (result,) = case.bare(case.calls(False, return_dict=False)[:1])
    result = result if not isinstance(result, dict) else list(result.values())
    return [result] if isinstance(result, Tensor) else [one for one in result if one is not None]


def _no_latent(case: Case) -> bool:
    named = case.record.latent_argument if case.adapter else "hidden_states"
    return not isinstance(case.arguments.get(named), Tensor)


def _several(case: Case) -> bool:
    return len(list(leaves(_values(case)))) > 1


def _shapes(case: Case) -> bool:
    return _values(case)[0].shape != case.record.latent(case.model, case.arguments).shape


TRUE: dict[str, tuple[str, Callable[[Case], bool]]] = {
    "without a tensor": ("the latent is not one tensor", _no_latent),
    "takes no `hidden_states`": ("its latent has another name", _no_latent),
    "returned more than one tensor": ("returns several tensors", _several),
    "but their shapes differ": ("the output has another shape than the latent", _shapes),
    "no adapter lists its blocks": ("no adapter lists its blocks", lambda case: not case.record.blocks),
}
"""Parts of messages: what they say in short, and what must hold of the model for it to be true."""


def truth(error: MixcacheError, case: Case) -> str:
    """The reason of a refusal in short; `AssertionError` if it is not true of the model, or not known here."""
    for part, (short, holds) in TRUE.items():
        if part in str(error):
            assert holds(case), f"a refusal that is not true of {case.name}: {error}"
            return short
    raise AssertionError(f"a refusal that nobody foresaw: {error}") from error


def noted(session: Session, case: Case) -> Cell | None:
    """The refusal that a session's notes tell of, of a run that was computed as a whole."""
    found = [note for note in session.report().notes if "computed and not cached" in note]
    return Cell("refused", truth(AttachError(found[0]), case)) if found else None


# the cells


def exact(case: Case) -> Cell:
    """A policy that never reuses changes no bit, whichever form the caller asks for."""
    for more in ({"return_dict": False}, {}):
        calls = case.calls(True, **more)
        wanted = case.bare(calls)
        session, results = case.cached("static:every=1", calls)
        same(results, wanted)
        report = session.report()
        assert (report.evaluations, report.foreign_calls) == (STEPS, 0)
    return WORKS


def step(case: Case) -> Cell:
    """Reused steps give what computing gives at the same input, in the same form; computed ones stay exact.

    Where the latent moves, a reuse in the default basis is the last output, its prediction moved as the latent.
    """
    reused = list(range(1, STEPS, 2))
    for more in ({"return_dict": False}, {}):
        calls = case.calls(False, **more)
        session, results = case.cached(f"static:{SKIP}", calls)
        if refused := noted(session, case):
            return refused
        assert session.report().visits["step"].reused == len(reused), "not reused where it was asked for"
        same(results, case.bare(calls), 4.0)
    calls = case.calls(True, return_dict=False)
    wanted = case.bare(calls)
    _, results = case.cached(f"static:{SKIP}", calls)
    for i in reused:  # the residual of the step before, added to the latent of this one
        wanted[i] = copy.deepcopy(wanted[i - 1])
        first = next(leaves(wanted[i]))
        now, predicted = aligned(case.name, calls[i][case.latent], first)
        before, _ = aligned(case.name, calls[i - 1][case.latent], first)
        predicted.copy_(predicted.float() + now.float() - before.float())
    same(results[::2], wanted[::2])
    same(results[1::2], wanted[1::2], 4.0)
    return WORKS


def output(case: Case) -> Cell:
    """Reused steps repeat the last output, to the bit."""
    calls = case.calls(True, return_dict=False)
    wanted = case.bare(calls)
    session, results = case.cached(f"static:{SKIP}", calls, basis="output")
    if refused := noted(session, case):
        return refused
    same(results, [wanted[i - i % 2] for i in range(STEPS)])
    return WORKS


def blocks(case: Case) -> Cell:
    """Spans of blocks: exact where nothing is reused; a reused span gives what running it gives."""
    calls = case.calls(True, return_dict=False)
    wanted = case.bare(calls)
    _, results = case.cached("static:every=1,at=block,blocks=1", calls)
    same(results, wanted)
    calls = case.calls(False, return_dict=False)
    session, results = case.cached(f"static:{SKIP},at=block", calls)
    assert session.report().visits["block"].reused >= STEPS // 2, "no span was reused"
    same(results, case.bare(calls), 64.0)
    return WORKS


def restored(case: Case) -> Cell:
    """After enabling, running and disabling, nothing is left on the model; also where the run was refused."""
    calls = case.calls(True, return_dict=False)
    wanted = case.bare(calls)
    before = hanging_on(case.model)
    alive = [dict(vars(module)) for module in case.model.modules()]  # an identity of something dead says nothing
    case.bare(calls)
    own = {key for key, value in hanging_on(case.model).items() if before.get(key) != value}  # the model's own doing
    for policy in (f"static:{SKIP}", f"static:{SKIP},at=block"):
        try:
            case.cached(policy, calls)
        except MixcacheError as error:
            truth(error, case)
        after = hanging_on(case.model)
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert changed <= own, f"left on the model: {sorted(changed - own)}"
    del alive
    same(case.bare(calls), wanted)
    return WORKS


def hanging_on(model: Any) -> dict[tuple[str, str], Any]:
    """`state_of` by module and attribute, with tensors by identity."""

    def by_identity(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: by_identity(one) for key, one in value.items()}
        return id(value) if isinstance(value, Tensor) else value

    found = state_of(model).items()
    return {(name, key): by_identity(value) for name, state in found for key, value in state.items()}


CELLS: dict[str, tuple[Callable[[Case], Cell], torch.dtype]] = {
    "exact": (exact, torch.float32),
    "step": (step, torch.float32),
    "step in bfloat16": (step, torch.bfloat16),
    "step, basis output": (output, torch.float32),
    "blocks": (blocks, torch.float32),
    "blocks in bfloat16": (blocks, torch.bfloat16),
    "restored": (restored, torch.float32),
}


def check(name: str, column: str) -> Cell:
    """One cell. Raises `AssertionError` for a result that is wrong, or an error that is no true refusal."""
    check_cell, dtype = CELLS[column]
    case = Case.of(name, dtype)
    if dtype is torch.bfloat16 and name in FLOAT32_ONLY:
        with contextlib.suppress(RuntimeError, ValueError):
            case.bare(case.calls(False)[:1])
            raise AssertionError(f"{name} runs in bfloat16 by now")
        return Cell("not applicable", f"without mixcache it fails in bfloat16: {FLOAT32_ONLY[name]}")
    try:
        return check_cell(case)
    except MixcacheError as error:
        return Cell("refused", truth(error, case))


def matrix() -> str:
    """The support table in Markdown: a row for every class, and a count of every column."""
    lines = [f"| class | {' | '.join(CELLS)} |", f"|---{'|---' * len(CELLS)}|"]
    counts: dict[str, Counter[str]] = {column: Counter() for column in CELLS}
    for name in BUILT:
        row = []
        for column in CELLS:
            try:
                cell = check(name, column)
            except Exception as error:  # a table that stops at the first failure tells nothing of the rest
                verdict, why = "WRONG", f"{type(error).__name__}: {error}".splitlines()[0][:160]
            else:
                verdict, why = cell.verdict, cell.why
            counts[column][verdict] += 1
            row.append(f"{verdict}: {why}" if why else verdict)
        lines.append(f"| {name} | {' | '.join(row)} |")
    for verdict in sorted({verdict for count in counts.values() for verdict in count}):
        lines.append(f"| **{verdict}** | {' | '.join(str(counts[column][verdict]) for column in CELLS)} |")
    left_out = [f"\nLeft out: {name}, which {why}." for name, why in NOT_BUILT.items()]
    return "\n".join(lines + left_out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(matrix())
