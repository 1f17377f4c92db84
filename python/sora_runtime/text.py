"""From prompts to the transformer's text inputs: token ids, then each encoder's outputs, encoded once.

Tokens are what diffusers' tokenizers give: the words of the bundle's template, the end token where the
tokenizer adds one, padding to the model's fixed length. The encoder's graph crops and zeroes as the model
was trained; its outputs are inputs of the transformer under the same names.
"""

import hashlib
import html
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .embedding_tiers import EmbeddingTiers, EncoderUse
from .engines.engine import Array, Engine
from .errors import BundleError, InvalidRequest
from .manifest import TextEncoderRecord

DEFAULT_CACHE_BYTES = 64 << 20

Outputs = Mapping[str, NDArray[np.float32]]
"""What an encoder gives, by the name of the transformer's input."""


def clean(prompt: str) -> str:
    """A prompt as diffusers' Wan pipeline hands it on: HTML entities decoded, runs of white space folded.

    The repair of wrongly decoded text (ftfy) that diffusers makes where it is installed is not made.
    """
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()


def quoted(prompt: str) -> str | None:
    """The words in quotation marks as HunyuanVideo 1.5's glyph encoder takes them, or None without any.

    `"sale" and “open”` becomes `Text "sale". Text "open". `; what is quoted twice is taken once.
    """
    found = [straight or curly for straight, curly in re.findall(r'"(.*?)"|“(.*?)”', prompt)]
    return "".join(f'Text "{text}". ' for text in dict.fromkeys(found)) or None


@dataclass(frozen=True)
class TokenIds:
    """A tokenized prompt: int64 [1, max_sequence_length] each."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]


class PromptTokenizer:
    """An encoder's `tokenizer.json` with its template, padding to the model's fixed length.

    Args:
        path: of the tokenizer's file.
        record: the encoder's.
    """

    def __init__(self, path: Path, record: TextEncoderRecord) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"'{path}' is no tokenizer ({error}); rebuild the bundle") from error
        self._tokenizer.no_padding()
        if record.overflow == "truncate":
            self._tokenizer.enable_truncation(record.max_sequence_length)
        else:
            self._tokenizer.no_truncation()
        self._record = record
        self._before, _, self._after = record.template.partition("{}")

    def __call__(self, prompt: str, name: str = "prompt") -> TokenIds | None:
        """Token ids and attention mask, or None where the encoder has nothing to read.

        Args:
            prompt: the caller's text.
            name: what an error calls it.

        Raises:
            InvalidRequest: the prompt has more tokens than the model was made for.
        """
        record = self._record
        text = clean(prompt) if record.clean else prompt
        if record.prompt == "quoted":
            words = quoted(text)
            if words is None:
                return None
            text = words
        text = text or record.empty
        ids = self._tokenizer.encode(self._before + text + self._after).ids
        length = record.max_sequence_length
        if len(ids) > length:
            raise InvalidRequest(f"the {name} has {len(ids)} tokens and the model takes {length}; shorten it")
        place = slice(0, len(ids)) if record.padding_side == "right" else slice(length - len(ids), length)
        input_ids = np.full((1, length), record.pad_token_id, np.int64)
        input_ids[0, place] = ids
        mask = np.zeros((1, length), np.int64)
        mask[0, place] = 1
        return TokenIds(input_ids, mask)


@dataclass
class TextUse(EncoderUse):
    """What the prompts of one clip took."""

    tokenize_seconds: float = 0.0


class TextEncoder:
    """A text encoder's outputs for a prompt, computed once.

    The engine is made by `load_engine` when a prompt is first missed; with a warm cache it never is.

    Args:
        record: the encoder's, in bundle.json.
        tokenizer: of the encoder.
        load_engine: makes the engine.
        fingerprint: names the engine's graph and weights by content; part of every key.
        tiers: where outputs are kept.
    """

    def __init__(
        self,
        record: TextEncoderRecord,
        tokenizer: PromptTokenizer,
        load_engine: Callable[[], Engine],
        *,
        fingerprint: str,
        tiers: EmbeddingTiers,
    ) -> None:
        self.record = record
        self._tokenizer = tokenizer
        self._load_engine = load_engine
        self._fingerprint = fingerprint
        self._size = sum(math.prod(shape) for shape in record.outputs.values())
        self._tiers = tiers
        self._engine: Engine | None = None
        self.observe: Callable[[str, Mapping[str, Array]], None] | None = None
        """Called with the graph's name and its inputs before it runs."""
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        """Whether the engine was made."""
        return self._engine is not None

    def tokenize(self, text: str, name: str, use: TextUse) -> TokenIds | None:
        """Token ids of a text; raises `InvalidRequest`, calling it `name`, when it is too long."""
        start = time.perf_counter()
        ids = self._tokenizer(text, name)
        use.tokenize_seconds += time.perf_counter() - start
        return ids

    def embed(
        self,
        ids: TokenIds | None,
        use: TextUse,
        pixel_values: NDArray[np.float32] | None = None,
        *,
        resident: bool = False,
    ) -> dict[str, NDArray[np.float32]]:
        """The encoder's outputs, float32 of the record's shapes, read-only; zeros where there is no text.

        Args:
            ids: of `tokenize`.
            use: gets the time it takes.
            pixel_values: what an encoder that sees the picture is shown.
            resident: keep this text's outputs whatever else is cached, until another such text comes.
        """
        if ids is None:
            return self._split(np.zeros(self._size, np.float32))
        start, loaded_before = time.perf_counter(), use.load_seconds
        flat, found = self._tiers.get(
            self._key(ids, pixel_values),
            (self._size,),
            lambda: self._encode(ids, use, pixel_values),
            resident=self.record.graph if resident else None,
        )
        use.note(found, (self.record.graph,))
        loading = use.load_seconds - loaded_before
        use.encode_seconds += time.perf_counter() - start - loading
        return self._split(flat)

    def _key(self, ids: TokenIds, pixel_values: NDArray[np.float32] | None) -> bytes:
        """Of the encoder's graph and weights, the outputs' size and dtype, and all that the encoder is shown."""
        content = hashlib.sha256(f"{self._fingerprint} float32[{self._size}] {ids.input_ids.shape[1]} ".encode())
        content.update(ids.input_ids.tobytes() + ids.attention_mask.tobytes())
        if pixel_values is not None:
            content.update(pixel_values.tobytes())
        return content.digest()

    def _split(self, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The outputs as views of the one vector that the cache keeps of a prompt."""
        outputs, start = {}, 0
        for name, shape in self.record.outputs.items():
            size = math.prod(shape)
            outputs[name] = flat[start : start + size].reshape(shape)
            start += size
        return outputs

    def _encode(self, ids: TokenIds, use: TextUse, pixel_values: NDArray[np.float32] | None) -> NDArray[np.float32]:
        with self._lock:  # two threads with two new prompts load the engine once, and close() waits
            if self._engine is None:
                start = time.perf_counter()
                self._engine = self._load_engine()
                use.load_seconds += time.perf_counter() - start
            engine = self._engine
            self._check(engine)
            given = {"input_ids": ids.input_ids, "attention_mask": ids.attention_mask}
            inputs: dict[str, Array] = {name: given[name] for name in engine.inputs if name in given}
            if pixel_values is not None:
                inputs["pixel_values"] = pixel_values
            if self.observe is not None:
                self.observe(self.record.graph, inputs)
            outputs = {name: spec.empty() for name, spec in engine.outputs.items()}
            binding = engine.bind({**inputs, **outputs})
        start = time.perf_counter()
        binding.run()
        use.engine_seconds += time.perf_counter() - start
        return np.concatenate([outputs[name].ravel().astype(np.float32, copy=False) for name in self.record.outputs])

    def _check(self, engine: Engine) -> None:
        shapes = {name: spec.shape for name, spec in engine.outputs.items()}
        if shapes != self.record.outputs or not {"input_ids", "attention_mask", "pixel_values"} >= set(engine.inputs):
            raise BundleError(
                f"'{self.record.graph}' gives {shapes} and bundle.json says {self.record.outputs}; rebuild the bundle"
            )

    def close(self) -> None:
        """Give back the engine; the cache stays."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
