"""The plain pipeline with fewer steps, as a variant of a comparison."""

from __future__ import annotations

import re

from attrs import field, frozen

from mixcache.core.validators import ge
from mixcache.errors import ConfigurationError

_STEPS = re.compile(r"\s*steps\s*=(.*)", re.DOTALL)


@frozen
class Steps:
    """The plain pipeline with `count` denoising steps and its own noise levels: what every cache has to be better than.

    `str(Steps(18))` is "steps=18", and `Steps.parse("steps=18") == Steps(18)`.
    """

    count: int = field(validator=ge(1, whole=True))

    def __str__(self) -> str:
        return f"steps={self.count}"

    @classmethod
    def parse(cls, text: str) -> Steps | None:
        """Read "steps=18"; `None` for a text about something else. Raises `ConfigurationError` without a number."""
        found = _STEPS.fullmatch(text)
        if found is None:
            return None
        number = found.group(1).strip()
        if not re.fullmatch("[0-9]+", number) or not int(number):
            raise ConfigurationError(
                f"{text.strip()!r}: steps= takes a whole number from 1 on, and nothing beside it: it is the plain "
                "pipeline, without a cache. The steps of all runs are --steps."
            )
        return cls(int(number))
