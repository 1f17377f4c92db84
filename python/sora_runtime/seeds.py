"""One request for several seeds: clips that differ in their noise alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .errors import InvalidRequest
from .request import ResolvedRequest, whole_number


def with_seeds(request: ResolvedRequest, seeds: Any, fields: Mapping[str, Any]) -> list[ResolvedRequest]:
    """The request once for each seed.

    Args:
        request: resolved from `fields`.
        seeds: whole numbers, no two the same.
        fields: what the caller asked for.

    Raises:
        InvalidRequest: the seeds are none, or `fields` say what they would start from already.
    """
    if isinstance(seeds, str | bytes) or not hasattr(seeds, "__iter__"):
        raise InvalidRequest(f"seeds = {seeds!r} is no list; give a whole number for each clip")
    for name in ("seed", "latents"):
        if fields.get(name) is not None:
            raise InvalidRequest(f"{name} starts one clip and seeds are given for several; leave one of them out")
    numbers = [whole_number(f"seeds[{index}]", seed, 0, 2**64 - 1) for index, seed in enumerate(seeds)]
    if not numbers:
        raise InvalidRequest("seeds is empty; give a whole number for each clip")
    seen: set[int] = set()
    for seed in numbers:
        if seed in seen:
            raise InvalidRequest(f"seeds has {seed} more than once, which would be the same clip; give it once")
        seen.add(seed)
    return [replace(request, seed=seed) for seed in numbers]
