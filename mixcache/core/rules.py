"""Rules: how the votes on one point become a verdict.

A rule is symmetric in its votes, so the order of the policies never matters (law 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mixcache.core.points import Verdict, Vote
from mixcache.errors import PluginError

Rule = Callable[[Sequence[Vote]], bool]
"""Gets the votes that do not abstain (never empty, no veto among them) and says whether to reuse."""


def unanimous(votes: Sequence[Vote]) -> bool:
    """Reuse only if every policy that has an opinion wants to."""
    return all(vote.choice == "reuse" for vote in votes)


def any_reuse(votes: Sequence[Vote]) -> bool:
    """Reuse if at least one policy wants to."""
    return any(vote.choice == "reuse" for vote in votes)


def majority(votes: Sequence[Vote]) -> bool:
    """Reuse if more policies want to than do not; a tie computes."""
    return sum(1 if vote.choice == "reuse" else -1 for vote in votes) > 0


def weighted(votes: Sequence[Vote]) -> bool:
    """Reuse if the weights for it outweigh those against; a tie computes."""
    return math.fsum(vote.weight if vote.choice == "reuse" else -vote.weight for vote in votes) > 0


def least_error(votes: Sequence[Vote]) -> bool:
    """The policy that predicts the smallest error decides; a tie computes; no prediction at all: unanimous."""
    predicted = [vote for vote in votes if vote.error is not None]
    if not predicted:
        return unanimous(votes)
    best = min(vote.error for vote in predicted if vote.error is not None)
    return all(vote.choice == "reuse" for vote in predicted if vote.error == best)


RULES: dict[str, Rule] = {
    "unanimous": unanimous,
    "any": any_reuse,
    "majority": majority,
    "weighted": weighted,
    "least_error": least_error,
}


def decide(votes: Sequence[Vote], rule: Rule) -> Verdict:
    """The verdict on a point: a veto computes, no opinion computes, otherwise the rule says.

    A vote to reuse with a predicted error that is not finite counts as a vote to compute. Raises `PluginError` if the
    rule returns anything but True or False.
    """
    vetoes = [vote for vote in votes if vote.veto]
    if vetoes:
        return Verdict(reuse=False, reason=_reasons(vetoes))
    voting = [vote for vote in votes if vote.choice is not None]
    broken = [vote for vote in voting if vote.error is not None and not math.isfinite(vote.error)]
    if broken:
        return Verdict(reuse=False, reason=f"predicted error is not finite ({_reasons(broken)})")
    if not voting:
        return Verdict(reuse=False, reason="no policy voted")
    found = rule(voting)
    if not isinstance(found, bool):
        raise PluginError(f"rule {getattr(rule, '__name__', rule)!r} must return True or False, it returned {found!r}.")
    if not found:
        return Verdict(reuse=False, reason=_reasons([v for v in voting if v.choice == "compute"] or voting))
    agreeing = [vote for vote in voting if vote.choice == "reuse"]
    errors = [vote.error for vote in agreeing if vote.error is not None]
    chosen = _chosen(agreeing)
    return Verdict(
        reuse=True,
        reason=_reasons(agreeing),
        error=max(errors) if errors else None,
        forecast=None if chosen is None else chosen.forecast,
        anchor=None if chosen is None else chosen.anchor,
    )


def _chosen(votes: Sequence[Vote]) -> Vote | None:
    """Of the votes that say how to rebuild, the one with the smallest predicted error; ties go by the policy's name."""
    naming = [vote for vote in votes if vote.forecast is not None or vote.anchor is not None]
    if not naming:
        return None
    return min(
        naming, key=lambda v: (math.inf if v.error is None else v.error, v.policy, v.forecast or "", v.anchor or "")
    )


def _reasons(votes: Sequence[Vote]) -> str:
    """Who said what, in alphabetical order."""
    return "; ".join(sorted({f"{vote.policy}: {vote.reason}" if vote.reason else vote.policy for vote in votes}))
