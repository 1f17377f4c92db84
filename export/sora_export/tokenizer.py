"""Puts a checkpoint's tokenizer into one `tokenizer.json`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, CLIPTokenizerFast, T5TokenizerFast

from sora_export.checkpoint import Checkpoint
from sora_runtime.errors import BundleError


def write_tokenizer(checkpoint: Checkpoint, name: str, target: Path) -> None:
    """Copies the tokenizer.json of the checkpoint's folder `name`, or makes one, at `target`.

    Made are those of ByT5, which has no vocabulary file, of T5's spiece.model, and of CLIP's vocab.json and
    merges.txt.

    Raises:
        BundleError: The checkpoint has none of these, or they cannot be converted.
    """
    folder = checkpoint.root / name
    if (folder / "tokenizer.json").is_file():
        shutil.copyfile(folder / "tokenizer.json", target)
        return
    if checkpoint.class_of(name) == "ByT5Tokenizer":
        byt5_tokenizer(ByT5Tokenizer.from_pretrained(folder)).save(str(target))
        return
    if (folder / "spiece.model").is_file():
        _convert(T5TokenizerFast, folder, "spiece.model", target)
    elif str(checkpoint.class_of(name)).startswith("CLIP") and (folder / "merges.txt").is_file():
        _convert(CLIPTokenizerFast, folder, "vocab.json", target)
    else:
        raise BundleError(f"{folder} has no tokenizer.json, nor what one is made of; download the checkpoint again")


def _convert(tokenizer_class: Any, folder: Path, file: str, target: Path) -> None:
    try:
        tokenizer_class.from_pretrained(folder).backend_tokenizer.save(str(target))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(
            f"{folder / file} cannot be converted to tokenizer.json ({reason}); add a "
            "tokenizer.json saved by transformers"
        ) from error


def token_id(checkpoint: Checkpoint, name: str, token: str) -> int | None:
    """The number of a token, such as "<|end_header_id|>", in the tokenizer of folder `name`; None if it has none."""
    folder = checkpoint.root / name
    if (folder / "tokenizer.json").is_file():
        index: int | None = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(token)
        return index
    if (folder / "vocab.json").is_file():
        return checkpoint.json(f"{name}/vocab.json").get(token)
    return None


def pad_token_id(checkpoint: Checkpoint, name: str, default: int) -> int:
    """The number of the token that fills up a prompt, by tokenizer_config.json of folder `name`, else `default`."""
    token = tokenizer_settings(checkpoint, name).get("pad_token")
    content = token.get("content") if isinstance(token, dict) else token
    index = None if content is None else token_id(checkpoint, name, content)
    return default if index is None else index


def tokenizer_settings(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """tokenizer_config.json of folder `name`; empty if there is none."""
    file = f"{name}/tokenizer_config.json"
    return checkpoint.json(file) if (checkpoint.root / file).is_file() else {}


def byt5_tokenizer(tokenizer: ByT5Tokenizer) -> Tokenizer:
    """An equal of transformers' ByT5Tokenizer, which is Python: the id of a byte of UTF-8 is the byte plus 3.

    The one difference: a text that ends in the end token gets another one.
    """
    vocab = {character: byte + tokenizer.offset for byte, character in enumerate(_byte_characters())}
    added = dict(tokenizer.added_tokens_decoder)
    vocab |= {token.content: index for index, token in added.items()}
    equal = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    equal.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    equal.decoder = decoders.ByteLevel()
    for _, token in sorted(added.items()):
        flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
        equal.add_special_tokens([AddedToken(token.content, special=True, **flags)])
    end = str(tokenizer.eos_token)
    equal.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return equal


def _byte_characters() -> list[str]:
    """The character that stands for each byte in `pre_tokenizers.ByteLevel` (GPT-2's `bytes_to_unicode`)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]
