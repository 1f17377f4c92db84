"""Several clips of one prompt: a request for each seed, and one bill for what the clips share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch_record import BatchRecord
from .clip import Clip
from .embedding_tiers import holding
from .errors import InvalidRequest
from .pixels import read_picture
from .receipt import Receipt

_SHARED_STAGES = ("tokenize", "text_encode", "image_encode")


def with_seeds(fields: Mapping[str, Any], seeds: Any) -> list[dict[str, Any]]:
    """A request's fields once for each seed; whether a seed is in range is for `resolve` to say.

    Args:
        fields: what the caller asked for.
        seeds: whole numbers, no two the same.

    Raises:
        InvalidRequest: the seeds are none, `fields` say already what to start from, or the picture cannot be read.
    """
    if isinstance(seeds, str | bytes) or not hasattr(seeds, "__iter__"):
        raise InvalidRequest(f"seeds = {seeds!r} is no list; give a whole number for each clip")
    for name in ("seed", "latents"):
        if fields.get(name) is not None:
            raise InvalidRequest(f"{name} starts one clip and seeds are given for several; leave one of them out")
    numbers = list(seeds)
    if not numbers:
        raise InvalidRequest("seeds is empty; give a whole number for each clip")
    for index, seed in enumerate(numbers):
        if seed in numbers[:index]:
            raise InvalidRequest(f"seeds has {seed} more than once, which would be the same clip; give it once")
    shared = dict(fields)
    if shared.get("image") is not None:
        shared["image"] = read_picture(shared["image"]).rgb8  # a file once, not once a clip
    return [{**shared, "seed": seed} for seed in numbers]


def one_by_one(make: Callable[..., Clip], requests: Sequence[Mapping[str, Any]]) -> Iterator[Clip]:
    """The clip of each request, as it is asked for; what encoders give the first is held for the others.

    Args:
        make: makes the clip of a request's fields.
        requests: that differ in their seeds alone.
    """
    bill, held = SharedBill(len(requests)), dict[bytes, NDArray[np.float32]]()
    for request in requests:
        with holding(held):
            clip = make(**request)
        bill.enter(clip.receipt)
        yield clip


class SharedBill:
    """Bills what several clips share in equal parts: the first computed it, and the others found it.

    Args:
        clips: how many share.
    """

    def __init__(self, clips: int) -> None:
        self._clips = clips
        self._entered = 0
        self._shared: dict[str, float] = {}

    def enter(self, receipt: Receipt) -> None:
        """Change the receipt of the next clip to what it owes; the sum over all clips stays the same."""
        seconds, index = receipt.seconds, self._entered
        if index == 0:
            stages = {stage: getattr(seconds, stage) for stage in _SHARED_STAGES}
            self._shared = {stage: taken for stage, taken in stages.items() if taken is not None}
        for stage, taken in self._shared.items():
            more = taken / self._clips - (taken if index == 0 else 0.0)
            setattr(seconds, stage, getattr(seconds, stage) + more)
            seconds.total += more
        receipt.batch = BatchRecord(clips=self._clips, index=index, shared_seconds=sum(self._shared.values()))
        receipt.reasons.pop("batch", None)
        receipt.predicted = None
        receipt.reasons["predicted"] = "profiles predict clips that share nothing"
        receipt.bill()
        self._entered += 1
