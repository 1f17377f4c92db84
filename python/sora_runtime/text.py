"""From a prompt to `prompt_embeds`: tokenizer, text encoder, and the cache that spares it."""

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from . import _core
from .embedding_store import EmbeddingStore
from .engines.engine import Engine
from .errors import BundleError, InvalidRequest
from .request import clean

DEFAULT_CACHE_BYTES = 64 << 20


@dataclass(frozen=True)
class TokenIds:
    """A tokenized prompt: int64 [1, max_sequence_length] each."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]


class PromptTokenizer:
    """A bundle's `tokenizer.json`, padding to the model's fixed length."""

    def __init__(self, path: Path, *, max_sequence_length: int, pad_token_id: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"'{path}' is no tokenizer ({error}); rebuild the bundle") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.max_sequence_length = max_sequence_length
        self._pad_token_id = pad_token_id

    def __call__(self, prompt: str, name: str = "prompt") -> TokenIds:
        """Token ids and attention mask; `name` is what an error calls the text.

        Raises:
            InvalidRequest: the prompt has more tokens than the model was made for.
        """
        ids = self._tokenizer.encode(clean(prompt)).ids
        length = self.max_sequence_length
        if len(ids) > length:
            raise InvalidRequest(f"the {name} has {len(ids)} tokens and the model takes {length}; shorten it")
        input_ids = np.full((1, length), self._pad_token_id, np.int64)
        input_ids[0, : len(ids)] = ids
        mask = np.zeros((1, length), np.int64)
        mask[0, : len(ids)] = 1
        return TokenIds(input_ids, mask)


@dataclass
class TextUse:
    """What the prompts of one clip took; seconds of wall time."""

    hits: int = 0
    misses: int = 0  # each ran the text encoder
    tokenize_seconds: float = 0.0
    encode_seconds: float = 0.0  # waiting for another thread that computes the same prompt included
    engine_seconds: float = 0.0  # of encode_seconds, inside the network
    load_seconds: float = 0.0  # making the engine, not in encode_seconds


class TextEncoder:
    """`prompt_embeds` of a prompt, computed once: memory cache, then disk store, then the engine.

    The engine is made by `load_engine` when a prompt is first missed; with a warm cache it never is.

    Args:
        tokenizer: of the bundle.
        load_engine: makes the engine.
        fingerprint: names the engine's graph and weights by content; part of every key.
        shape: of an embedding, [1, max_sequence_length, text_dim].
        cache: the memory tier; may be shared between runtimes.
        store: the disk tier, if any.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        load_engine: Callable[[], Engine],
        *,
        fingerprint: str,
        shape: tuple[int, int, int],
        cache: _core.EmbeddingCache,
        store: EmbeddingStore | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._load_engine = load_engine
        self._fingerprint = fingerprint.encode()
        self._shape = shape
        self._cache = cache
        self._store = store
        self._engine: Engine | None = None
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        """Whether the engine was made."""
        return self._engine is not None

    def tokenize(self, text: str, name: str, use: TextUse) -> TokenIds:
        """Token ids of a text; raises `InvalidRequest`, calling it `name`, when it is too long."""
        start = time.perf_counter()
        ids = self._tokenizer(text, name)
        use.tokenize_seconds += time.perf_counter() - start
        return ids

    def embed(self, ids: TokenIds, use: TextUse) -> NDArray[np.float32]:
        """`prompt_embeds` float32 [1, max_sequence_length, text_dim], read-only, zero beyond the prompt."""
        start, loaded_before = time.perf_counter(), use.load_seconds
        key = hashlib.sha256(self._fingerprint + ids.input_ids.tobytes() + ids.attention_mask.tobytes()).digest()
        computed = []

        def compute() -> NDArray[np.float32]:
            stored = self._store.read(key, self._shape) if self._store is not None else None
            if stored is not None:
                return stored
            computed.append(True)
            embeds = self._encode(ids, use)
            if self._store is not None:
                self._store.write(key, embeds)
            return embeds

        embeds = self._cache.get_or_compute(key, compute)
        use.hits, use.misses = use.hits + (not computed), use.misses + bool(computed)
        loading = use.load_seconds - loaded_before
        use.encode_seconds += time.perf_counter() - start - loading
        return embeds

    def _encode(self, ids: TokenIds, use: TextUse) -> NDArray[np.float32]:
        with self._lock:  # two threads with two new prompts load the engine once, and close() waits
            if self._engine is None:
                start = time.perf_counter()
                self._engine = self._load_engine()
                use.load_seconds += time.perf_counter() - start
            embeds = self._engine.outputs["prompt_embeds"].empty()
            binding = self._engine.bind(
                {"input_ids": ids.input_ids, "attention_mask": ids.attention_mask, "prompt_embeds": embeds}
            )
        start = time.perf_counter()
        binding.run()
        use.engine_seconds += time.perf_counter() - start
        return embeds

    def close(self) -> None:
        """Give back the engine; the cache stays."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
