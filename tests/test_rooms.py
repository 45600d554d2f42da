"""The house: which room imports which is checked by `make lint`; here, how deep the chain of imports goes."""

from __future__ import annotations

from functools import cache

import grimp

MOST = 11
"""The longest chain of files that import each other, `mixcache/__init__.py` apart, which imports on demand."""


def test_the_longest_chain_of_imports_is_short_and_has_no_circle() -> None:
    graph = grimp.build_graph("mixcache")  # imports in functions and for type checkers count too
    files = graph.modules - {"mixcache"}

    @cache
    def chain(module: str) -> tuple[str, ...]:
        below = [chain(other) for other in graph.find_modules_directly_imported_by(module) & files if other != module]
        return (*max(below, key=len, default=()), module)

    longest = max((chain(module) for module in files), key=len)  # a circle is a RecursionError
    assert len(longest) <= MOST, " <- ".join(longest)
