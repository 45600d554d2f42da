"""The plan of a session: who votes, by which rule, what is measured, and how each place is rebuilt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from attrs import evolve, field, frozen

from mixcache.core.anchors import Anchor, Entering
from mixcache.core.basis import Basis, Residual
from mixcache.core.forecast.base import Forecaster
from mixcache.core.hooks import Hooks
from mixcache.core.points import Granularity, NoiseLevel, Point
from mixcache.core.policy import Policy
from mixcache.core.rules import Rule
from mixcache.core.signals import OWN, Samples, SideInput, Signal, resolve
from mixcache.core.tables import Calibrations
from mixcache.errors import ConfigurationError, PluginError, called

OnError = Literal["raise", "compute"]
Chosen = Mapping[Granularity, Any]
"""What the caller chose for each granularity: a spec or an object."""
Build = Callable[[str, Any], Any]
"""(kind, spec) -> the basis, forecaster or anchor."""
Place = tuple[Granularity, "tuple[int, int] | None", int]


@frozen
class Gauge:
    """What is measured at one place: the union of what its policies read.

    before, after: signals by when they are measured; derived: those computed from readings; sums: names summed since
    the last compute. reads: tensors that are kept for them. every_branch: whether branches that follow are measured
    too. exact_only: whether only exact visits are stored. learns: whether anybody wants to know at once what was
    measured after a compute.
    """

    before: tuple[Signal, ...] = ()
    after: tuple[Signal, ...] = ()
    derived: tuple[Signal, ...] = ()
    sums: tuple[str, ...] = ()
    reads: frozenset[str] = frozenset()
    every_branch: bool = False
    exact_only: bool = False
    learns: bool = False
    names: tuple[str, ...] = field(init=False)
    active: bool = field(init=False)
    kept: Mapping[str, tuple[tuple[str, str], ...]] = field(init=False)

    @names.default
    def _names(self) -> tuple[str, ...]:
        told = [signal.name for signal in (*self.before, *self.after, *self.derived)]
        return (*told, *(f"sum({name})" for name in self.sums))

    @kept.default
    def _kept(self) -> Mapping[str, tuple[tuple[str, str], ...]]:
        """(name, "when:name") of every tensor that is kept, by when."""
        split = [(*key.partition(":")[::2], key) for key in sorted(self.reads)]
        return {when: tuple((n, key) for w, n, key in split if w == when) for when in ("previous", "computed")}

    @active.default
    def _active(self) -> bool:
        return bool(self.before or self.after)

    @classmethod
    def of(cls, policies: Sequence[Policy], known: Mapping[str, Signal]) -> Gauge:
        """The gauge for these policies; raises `UnknownNameError` for a signal nobody registered."""
        needed, sums = resolve([name for policy in policies for name in policy.signals], known)
        return cls(
            tuple(s for s in needed if s.derive is None and s.when == "before"),
            tuple(s for s in needed if s.derive is None and s.when != "before"),
            tuple(s for s in needed if s.derive is not None),
            sums,
            frozenset(memory for s in needed for memory in s.reads),
            any(policy.branches == "independent" for policy in policies),
            any(policy.exact_history for policy in policies),
            any(policy.learns for policy in policies),
        )

    def measures(self, point: Point) -> bool:
        """Whether anybody reads signals at this visit; branches that follow are not measured."""
        return self.active and (point.leads or self.every_branch)


@frozen(kw_only=True)
class Site:
    """How one place is measured and rebuilt.

    forecasters, anchors: by the spec that a vote may name; `None` is the one that holds where no vote names one.
    keys: of anchors that are equal, the spec that all of them are known by. side_inputs: what the host has to bring, by
    name.
    """

    gauge: Gauge
    basis: Basis
    forecasters: Mapping[str | None, Forecaster]
    anchors: Mapping[str | None, Anchor]
    keys: Mapping[str | None, str | None] = field(init=False)
    depth: int = field(init=False)
    plain: bool = field(init=False)
    keeps: frozenset[str] = field(init=False)
    side_inputs: frozenset[str] = field(init=False)

    @keys.default
    def _keys(self) -> Mapping[str | None, str | None]:
        known = self.anchors.items()
        return {spec: next(key for key, other in known if other == anchor) for spec, anchor in known}

    @depth.default
    def _depth(self) -> int:
        return max(forecaster.depth for forecaster in self.forecasters.values())

    @plain.default
    def _plain(self) -> bool:
        return type(self.anchors[None]) is Entering

    @keeps.default
    def _kept(self) -> frozenset[str]:
        return frozenset(name for forecaster in self.forecasters.values() for name in forecaster.reads)

    @side_inputs.default
    def _side_inputs(self) -> frozenset[str]:
        gauge = self.gauge
        asked = {n for s in (*gauge.before, *gauge.after) for n in s.side_inputs}
        return frozenset((asked | self.keeps) - set(OWN))

    def forecaster(self, spec: str | None) -> Forecaster:
        """The one that a vote named; raises `PluginError` for one that no policy here lists in its `forecasts`."""
        if spec not in self.forecasters:
            raise PluginError(f"a vote names forecast={spec!r}, which no policy here lists in `forecasts`.")
        return self.forecasters[spec]

    def key(self, spec: str | None) -> str | None:
        """The key of the anchor that a vote named; raises `PluginError` for one that no policy here lists."""
        if spec not in self.keys:
            raise PluginError(f"a vote names anchor={spec!r}, which no policy here lists in `anchors`.")
        return self.keys[spec]


@frozen(kw_only=True)
class Plan:
    """What a session decided before the first run. `build` makes plugins of the specs that policies name."""

    policies: tuple[Policy, ...]
    rule: Rule
    build: Build
    signals: Mapping[str, Signal]
    side_inputs: Mapping[str, SideInput] = field(factory=dict)
    basis: Chosen = field(factory=dict)
    forecast: Chosen = field(factory=dict)
    anchor: Chosen = field(factory=dict)
    samples: Samples = "worst"
    max_cache_bytes: int | None = None
    offload: str | None = None
    audit: bool = False
    on_error: OnError = "raise"
    group: Any = None
    hooks: Hooks = field(factory=Hooks)
    tables: Calibrations | None = None
    used: frozenset[Granularity] = field(init=False)
    _sites: dict[Place, Site] = field(init=False, factory=dict)

    @used.default
    def _used(self) -> frozenset[Granularity]:
        return frozenset(g for policy in self.policies if not policy.guard for g in policy.granularities)

    def calibrated(self, tables: Calibrations) -> Plan:
        """The plan for one model: policies and forecasters with their tables."""
        return evolve(self, policies=tuple(p.calibrated(tables) for p in self.policies), tables=tables)

    def uses(self, granularity: Granularity) -> bool:
        """Whether any policy decides there; where none does, nothing is visited."""
        return granularity in self.used

    def needs_level(self, *granularities: Granularity) -> bool:
        """Whether a basis used there rests on what the model's output means at a noise level."""
        unknown = NoiseLevel(sigma=0.5, alpha=0.5, sign=None)
        for granularity in granularities:
            point = Point(granularity=granularity, step=0, num_steps=2, level=unknown)
            if self.uses(granularity) and self.site(granularity).basis.checked(point) is None:
                return True
        return False

    def check(self, granularity: Granularity) -> None:
        """Raise `ConfigurationError` if what is used there does not go together; at BLOCK, over all blocks."""
        if self.uses(granularity) and granularity is not Granularity.BLOCK:
            self.site(granularity)

    def deciding(self, granularity: Granularity) -> list[Policy]:
        """The policies that decide there and are no guards."""
        return [p for p in self.policies if not p.guard and granularity in p.granularities]

    def site(self, granularity: Granularity, span: tuple[int, int] | None = None, blocks: int = 0) -> Site:
        """How a place is measured and rebuilt; made once for each.

        Raises `ConfigurationError` where the policies there do not go together, `UnknownNameError` for a plugin that
        nobody registered.
        """
        place = granularity, span, blocks
        site = self._sites.get(place)
        if site is None:
            site = self._sites[place] = self._make_site(granularity, span, blocks)
        return site

    def _make_site(self, granularity: Granularity, span: tuple[int, int] | None, blocks: int) -> Site:
        point = Point(granularity=granularity, step=0, num_steps=1, span=span, blocks=blocks)
        policies = [p for p in self.policies if called(("policy", p.policy_name()), p.covers, point)]
        basis = self.build("basis", self._chosen("basis", self.basis, granularity, span, policies, "residual"))
        forecast = self._chosen("forecast", self.forecast, granularity, span, policies, "hold")
        forecasters: dict[str | None, Forecaster] = {None: self.build("forecaster", forecast)}
        anchors: dict[str | None, Anchor] = {None: self.build("anchor", self.anchor.get(granularity, "input"))}
        for policy in policies:
            forecasters.update({spec: self.build("forecaster", spec) for spec in policy.forecasts})
            anchors.update({spec: self.build("anchor", spec) for spec in policy.anchors})
        for anchor in anchors.values():
            _check_cost(anchor)
        if self.tables is not None:
            forecasters = {spec: found.calibrated(self.tables) for spec, found in forecasters.items()}
        if any(found.depth == 0 for found in forecasters.values()) and not isinstance(basis, Residual):
            raise ConfigurationError(
                f"forecast='none' at {granularity.value!r} takes z = output - anchor as 0, which needs "
                f"basis='residual' there, got {basis!r}."
            )
        gauge = Gauge.of(policies, self.signals)
        site = Site(gauge=gauge, basis=basis, forecasters=forecasters, anchors=anchors)
        if site.side_inputs and granularity is not Granularity.BLOCK:
            names, place = ", ".join(sorted(site.side_inputs)), granularity.value
            raise ConfigurationError(
                f"{names} can be had at 'block' alone, and a signal or forecaster at {place!r} asks for it "
                f"({', '.join(policy.policy_name() for policy in policies)}); leave out at={place}."
            )
        unknown = site.side_inputs - set(self.side_inputs)
        if unknown:
            raise ConfigurationError(
                f"nobody registered the side input {sorted(unknown)[0]!r}; there are: {sorted(self.side_inputs)}."
            )
        return site

    @staticmethod
    def _chosen(
        what: str,
        chosen: Chosen,
        granularity: Granularity,
        span: tuple[int, int] | None,
        policies: Sequence[Policy],
        default: str,
    ) -> Any:
        """What the caller chose; where nothing was chosen, what the policies wish for, else the default."""
        if granularity in chosen:
            return chosen[granularity]
        wishes = {_wish(policy, granularity, span)[what == "forecast"] for policy in policies} - {None}
        if len(wishes) > 1:
            raise ConfigurationError(
                f"the policies at {granularity.value!r} were published with different values of `{what}` "
                f"({', '.join(sorted(map(repr, wishes)))}); choose one with {what}={{{granularity.value!r}: ...}}."
            )
        return wishes.pop() if wishes else default


def _check_cost(anchor: Anchor) -> None:
    cost = called(("anchor", anchor), getattr, anchor, "cost")
    if not isinstance(cost, (int, float)) or not 0.0 <= cost <= 1.0:
        raise PluginError(
            f"anchor {anchor!r} must have a cost from 0 to 1, the share of its place's work, got {cost!r}."
        )


def _wish(policy: Policy, granularity: Granularity, span: tuple[int, int] | None) -> tuple[str | None, str | None]:
    """`Policy.rebuilt`, checked."""
    wish = called(("policy", policy.policy_name()), policy.rebuilt, granularity, span)
    if not (isinstance(wish, tuple) and len(wish) == 2 and all(w is None or isinstance(w, str) for w in wish)):
        raise PluginError(
            f"policy {policy.policy_name()!r} must return (basis, forecaster) from rebuilt(), each a spec or None, got "
            f"{wish!r}."
        )
    return wish
