"""The plan of a session: who votes, by which rule, what is measured for them, and how skipped outputs are rebuilt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from attrs import evolve, field, frozen
from torch import distributed as dist

from mixcache import plugins
from mixcache.basis import Basis
from mixcache.calibration import Calibrations
from mixcache.errors import ConfigurationError
from mixcache.forecast import Forecaster
from mixcache.points import Granularity, Point, parse_granularity
from mixcache.policy import Policy
from mixcache.signals import Memory, Samples, Signal, resolve
from mixcache.voting import Rule

OnError = Literal["raise", "compute"]


@frozen(kw_only=True)
class Plan:
    """What a session decided before the first run: who votes, by which rule, and how skipped outputs are rebuilt."""

    policies: tuple[Policy, ...]
    rule: Rule
    bases: Mapping[Granularity, Basis]
    forecasters: Mapping[Granularity, Forecaster]
    signals: Mapping[str, Signal]
    samples: Samples = "worst"
    max_cache_bytes: int | None = None
    offload: str | None = None
    audit: bool = False
    on_error: OnError = "raise"
    group: Any = None
    plugins: Sequence[tuple[str, Any]] = ()
    used: frozenset[Granularity] = field(init=False)
    gauges: Mapping[Granularity, Gauge] = field(init=False)

    @used.default
    def _used(self) -> frozenset[Granularity]:
        return frozenset(granularity for policy in self.policies for granularity in policy.granularities)

    @gauges.default
    def _gauges(self) -> Mapping[Granularity, Gauge]:
        return {g: Gauge.of([p for p in self.policies if g in p.granularities], self.signals) for g in Granularity}

    def calibrated(self, tables: Calibrations) -> Plan:
        """The plan for one model: policies, and the forecasters that are used, with their tables."""
        forecasters = {g: f.calibrated(tables) if self.uses(g) else f for g, f in self.forecasters.items()}
        return evolve(self, policies=tuple(p.calibrated(tables) for p in self.policies), forecasters=forecasters)

    def uses(self, granularity: Granularity) -> bool:
        """Whether any policy decides there; where none does, nothing is visited."""
        return granularity in self.used

    def reads(self, granularity: Granularity) -> frozenset[Memory]:
        """The remembered tensors that signals and the forecaster compare with there."""
        wanted = self.gauges[granularity].reads
        return wanted | {"computed_prefix"} if self.forecasters[granularity].reads_prefix else wanted


@frozen
class Gauge:
    """What is measured at one granularity: the union of what its policies read."""

    before: tuple[Signal, ...]
    after: tuple[Signal, ...]
    reads: frozenset[Memory]
    every_branch: bool
    exact_only: bool

    @classmethod
    def of(cls, policies: Sequence[Policy], known: Mapping[str, Signal]) -> Gauge:
        """The gauge for these policies; raises `UnknownNameError` for a signal nobody registered."""
        needed = resolve([name for policy in policies for name in policy.signals], known)
        return cls(
            tuple(s for s in needed if s.when == "before"),
            tuple(s for s in needed if s.when == "after"),
            frozenset(memory for s in needed for memory in s.reads),
            any(policy.branches == "independent" for policy in policies),
            any(policy.exact_history for policy in policies),
        )

    def measures(self, point: Point) -> bool:
        """Whether anybody reads signals at this visit; branches that follow are not measured."""
        return bool(self.before or self.after) and (point.leads or self.every_branch)


def make_plan(
    policies: Any,
    *,
    rule: Any = "unanimous",
    basis: Any = None,
    forecast: Any = None,
    samples: str = "worst",
    max_cache_bytes: int | None = None,
    offload: str | None = None,
    audit: bool = False,
    budget: float | None = None,
    on_error: str = "raise",
    group: Any = None,
) -> Plan:
    """The plan of these choices, in the forms that `mixcache.enable` takes.

    Raises `ConfigurationError` for what does not exist, has a bad value or does not go together.
    """
    if samples not in ("worst", "mean"):
        raise ConfigurationError(f"`samples` must be 'worst' or 'mean', got {samples!r}.")
    whole = isinstance(max_cache_bytes, int) and not isinstance(max_cache_bytes, bool)
    if max_cache_bytes is not None and not (whole and max_cache_bytes >= 0):
        raise ConfigurationError(f"`max_cache_bytes` must be None or a whole number >= 0, got {max_cache_bytes!r}.")
    if offload not in (None, "cpu"):
        raise ConfigurationError(f"`offload` must be None or 'cpu', got {offload!r}.")
    if on_error not in ("raise", "compute"):
        raise ConfigurationError(f"`on_error` must be 'raise' or 'compute', got {on_error!r}.")
    if group is not None:
        _check_group(group, max_cache_bytes, on_error)
    deciding = plugins.build_policies(policies)
    if budget is not None:
        deciding = (*deciding, *_guards(budget, deciding))

    def build_basis(spec: Any) -> Basis:
        return plugins.build("basis", spec, Basis)

    def build_forecaster(spec: Any) -> Forecaster:
        return plugins.build("forecaster", spec, Forecaster)

    return Plan(
        policies=deciding,
        rule=plugins.build_rule(rule),
        bases=_per_granularity("basis", basis, deciding, build_basis, "residual"),
        forecasters=_per_granularity("forecast", forecast, deciding, build_forecaster, "hold"),
        signals=plugins.all_signals(),
        samples=samples,  # type: ignore[arg-type]
        max_cache_bytes=max_cache_bytes,
        offload=offload,
        audit=bool(audit),
        on_error=on_error,  # type: ignore[arg-type]
        group=group,
        plugins=plugins.manager().list_name_plugin(),
    )


def _check_group(group: Any, max_cache_bytes: int | None, on_error: str) -> None:
    """Ranks that hold shards of one model must decide alike: nothing may make one of them compute alone."""
    if not (dist.is_available() and dist.is_initialized() and isinstance(group, dist.ProcessGroup)):
        raise ConfigurationError(
            "`group` must be the process group of torch.distributed over which the model is sharded, initialised, got "
            f"{group!r}."
        )
    if max_cache_bytes is not None or on_error != "raise":
        raise ConfigurationError(
            "`group` does not go with `max_cache_bytes` or on_error='compute': one rank alone could run out of room or "
            "fail, compute, and wait for the others for ever."
        )


def _guards(budget: Any, deciding: Sequence[Policy]) -> tuple[Policy, ...]:
    """The error budget as a guard wherever something is decided."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 <= budget < math.inf:
        raise ConfigurationError(f"`budget` must be None or a finite number >= 0, got {budget!r}.")
    among = sorted({str(g) for policy in deciding for g in policy.granularities})
    return plugins.build_policies(f"budget:total={budget!r},among={'/'.join(among)}")


def _by_granularity(text: str) -> Any:
    """ "step=linear cfg=hold" -> a mapping; a plain spec as it is; an empty one is no choice."""
    parts = [part.partition("=") for part in text.split()]
    if parts and all(value and ":" not in key for key, _, value in parts):
        return {key: value for key, _, value in parts}
    return text or None


def _per_granularity(
    what: str, given: Any, policies: Sequence[Policy], build: Callable[[Any], Any], default: str
) -> dict[Granularity, Any]:
    """What the caller chose, for all or by granularity; where nothing was chosen, what the policies wish for."""
    if isinstance(given, str):
        given = _by_granularity(given)
    table = given if isinstance(given, Mapping) else dict.fromkeys(Granularity, given)
    chosen = {parse_granularity(key): value for key, value in table.items() if value is not None}

    def wish(granularity: Granularity) -> Any:
        deciding = [policy for policy in policies if granularity in policy.granularities]
        wishes = {policy.rebuilt(granularity)[what == "forecast"] for policy in deciding} - {None}
        if len(wishes) > 1:
            raise ConfigurationError(
                f"the policies at {granularity.value!r} were published with different values of `{what}` "
                f"({', '.join(sorted(map(repr, wishes)))}); choose one with {what}={{{granularity.value!r}: ...}}."
            )
        return wishes.pop() if wishes else default

    return {g: build(chosen[g] if g in chosen else wish(g)) for g in Granularity}
