"""Trains the tokenizer on the captions: a T5-style unigram model that spells unknown words byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from sora_export.pocket.captions import all_captions
from sora_export.pocket.models import MAX_SEQUENCE_LENGTH

_SPECIAL = ["<pad>", "</s>", "<unk>"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-()"


def train_tokenizer(vocab_size: int = 400) -> Tokenizer:
    """Pieces learnt from the captions, then every letter, then 256 bytes for anything else.

    Ids: 0 <pad>, 1 </s>, 2 <unk>. Text is lower-cased; `</s>` is appended to every sequence.
    """
    learner = Tokenizer(models.Unigram())
    learner.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=_SPECIAL,
        unk_token="<unk>",
        initial_alphabet=list(_LETTERS),
    )
    learner.train_from_iterator(all_captions(), trainer)
    learnt = json.loads(learner.to_str())["model"]["vocab"]
    # the trainer sums in an order of its own: rounding and sorting make equal runs give equal ids
    learnt = [(piece, round(score, 1)) for piece, score in learnt[len(_SPECIAL) :]]
    pieces = [(piece, 0.0) for piece in _SPECIAL] + sorted(learnt, key=lambda pair: (-pair[1], pair[0]))
    words = {f"▁{word}" for text in all_captions() for word in text.lower().replace(",", "").split(" ")}
    known = {piece for piece, _ in pieces}
    worst = min(score for _, score in pieces)
    # whole words always cost least, so that every caption is one piece a word
    pieces = [(piece, -1.0 if piece in words else score) for piece, score in pieces]
    pieces += [(word, -1.0) for word in sorted(words - known)]
    pieces += [(letter, worst - 2) for letter in _LETTERS if letter not in known]
    pieces += [(f"<0x{byte:02X}>", worst - 10) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = learner.normalizer
    tokenizer.pre_tokenizer = learner.pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def load_or_train_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of the training run in `folder`; trained and kept there at the run's beginning.

    Ids must not change between a run, its resumption and the export of its weights.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        train_tokenizer().save(str(path))
    return Tokenizer.from_file(str(path))


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and the configuration that AutoTokenizer reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": MAX_SEQUENCE_LENGTH,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
