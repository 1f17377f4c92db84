"""All text encoders of a bundle: what a clip's texts become, for both branches of guidance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from . import _core
from .bundle import Bundle
from .denoise import Embeddings
from .embedding_tiers import EmbeddingTiers, EncoderUse
from .engines.registry import DEFAULT_ENGINE
from .manifest import TextEncoderRecord
from .pixels import Picture
from .request import ResolvedRequest
from .stages import open_engine
from .text import PromptTokenizer, TextEncoder, TextUse
from .turns import stop_if_cancelled

Report = Callable[[str, int, int], None]

RESIDENT = "negative_prompt"
"""The text that nearly every clip shares: never encoded twice, however many prompts pass through the cache."""


@dataclass
class Encoded:
    """What was encoded for a clip: for which request, and what that took."""

    request: ResolvedRequest
    embeddings: Embeddings
    use: TextUse
    picture: EncoderUse | None = None

    def take(self, other: "Encoded") -> None:
        """Go on with what was encoded for another request; the bill is of both."""
        self.request, self.embeddings = other.request, other.embeddings
        for part in fields(TextUse):
            setattr(self.use, part.name, getattr(self.use, part.name) + getattr(other.use, part.name))


class TextEncoders:
    """The text encoders of a bundle; each engine is made when a prompt first misses the cache.

    Args:
        bundle: whose encoders they are.
        num_threads: of the engines.
        tiers: where their outputs are kept.
        engine: the library that runs them; embeddings of two libraries are never taken for each other.

    Raises:
        BundleError: a tokenizer cannot be read.
    """

    def __init__(
        self, bundle: Bundle, *, num_threads: int, tiers: EmbeddingTiers, engine: str = DEFAULT_ENGINE
    ) -> None:
        def encoder(record: TextEncoderRecord) -> TextEncoder:
            return TextEncoder(
                record,
                PromptTokenizer(bundle.path(record.tokenizer), record),
                lambda: open_engine(bundle, record.graph, num_threads=num_threads, engine=engine),
                fingerprint=bundle.fingerprint(record.graph) + ("" if engine == DEFAULT_ENGINE else f" {engine}"),
                tiers=tiers,
            )

        records = bundle.manifest.components.text_encoders
        self.encoders = {name: encoder(record) for name, record in records.items()}

    @property
    def loaded(self) -> bool:
        """Whether any engine was made."""
        return any(encoder.loaded for encoder in self.encoders.values())

    def embed(
        self,
        texts: Sequence[tuple[str, str]],
        image: Picture | None,
        report: Report,
        cancel: _core.CancelToken | None,
    ) -> tuple[list[dict[str, NDArray[np.float32]]], TextUse]:
        """The transformer's text inputs for each text.

        Args:
            texts: (what an error calls it, the text).
            image: shown to encoders that see the picture.
            report: called with (stage, done, total).
            cancel: stops between two encoders.

        Raises:
            InvalidRequest: a text is too long.
            Cancelled: stopped through `cancel`.
        """
        use = TextUse()
        # All texts are measured before the first is encoded, which may take minutes.
        report("tokenize", 0, len(texts))
        encoders = list(self.encoders.values())
        ids = [[encoder.tokenize(text, name, use) for encoder in encoders] for name, text in texts]
        report("tokenize", len(texts), len(texts))
        embedded: list[dict[str, NDArray[np.float32]]] = []
        report("text_encode", 0, len(texts))
        for (text_name, _), tokens in zip(texts, ids, strict=True):
            outputs: dict[str, NDArray[np.float32]] = {}
            for encoder, own in zip(encoders, tokens, strict=True):
                stop_if_cancelled(cancel, "before the text encoder")
                seen = encoder.record.image_input
                pixels = None if seen is None or image is None else image.pixel_values(seen)
                outputs |= encoder.embed(own, use, pixels, resident=text_name == RESIDENT)
            embedded.append(outputs)
            report("text_encode", len(embedded), len(texts))
        return embedded, use

    def encode(
        self, request: ResolvedRequest, report: Report, cancel: _core.CancelToken | None, *, guided: bool
    ) -> Encoded:
        """The texts of a request, the negative one only where there is guidance; raises as `embed` does."""
        texts = [("prompt", request.prompt), *([(RESIDENT, request.negative_prompt)] if guided else [])]
        branches, use = self.embed(texts, request.image, report, cancel)
        return Encoded(request, Embeddings(branches[0], branches[1] if guided else None), use)

    def close(self) -> None:
        """Give back the engines; the cache stays."""
        for encoder in self.encoders.values():
            encoder.close()
