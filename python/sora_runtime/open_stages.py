"""The stages that a runtime has opened, one for each shape bucket, from when a clip first needs them."""

from collections.abc import Callable, Mapping, ValuesView
from typing import Any

from numpy.typing import NDArray

from .bundle import Bundle
from .embedding_tiers import EmbeddingTiers
from .engines.registry import DEFAULT_ENGINE
from .manifest import TransformerBucket
from .request import ResolvedRequest
from .stages import Stages

Observer = Callable[[str, Mapping[str, NDArray[Any]]], None]


class OpenStages:
    """Opens stages and keeps them; not for several threads at once.

    Args:
        bundle: whose.
        tiers: where encodings of pictures are kept.
        num_threads: of engines and sampler.
        engine: the library that runs the networks.
    """

    def __init__(
        self, bundle: Bundle, tiers: EmbeddingTiers, *, num_threads: int, engine: str = DEFAULT_ENGINE
    ) -> None:
        self._bundle, self._tiers = bundle, tiers
        self._num_threads, self._engine = num_threads, engine
        self._open: dict[TransformerBucket, Stages] = {}
        self._observer: Observer | None = None

    def of(self, request: ResolvedRequest) -> Stages:
        """The stages that serve a request; raises what `Stages.load` does."""
        if request.bucket not in self._open:
            stages = Stages.load(
                self._bundle,
                request.bucket,
                request.geometry,
                num_threads=self._num_threads,
                tiers=self._tiers,
                engine=self._engine,
            )
            if self._observer is not None:
                stages.observe(self._observer)
            self._open[request.bucket] = stages
        return self._open[request.bucket]

    def values(self) -> ValuesView[Stages]:
        """Those there are."""
        return self._open.values()

    def observe(self, observer: Observer) -> None:
        """As `Stages.observe`, of those there are and those to come."""
        self._observer = observer
        for stages in self._open.values():
            stages.observe(observer)

    def close(self) -> None:
        """Give back their engines."""
        for stages in self._open.values():
            stages.close()
        self._open.clear()
