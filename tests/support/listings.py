"""What a layout lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl3d.data.layouts import list_cases
from ssl3d.data.layouts.listing import Listing, Options, Problem


def listed(layout: str, folder: Path, **options: Any) -> Listing:
    return list_cases(layout, folder, Options(**options))


def the_problem(listing: Listing, *words: object) -> Problem:
    """The only problem of a listing; it contains each of `words`."""
    (problem,) = listing.problems
    text = f"{problem.name}: {problem.reason}"
    for word in words:
        assert str(word) in text
    return problem
