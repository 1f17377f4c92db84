"""From words to token ids: templates, quotations, padding, and prompts that are too long."""

from pathlib import Path

import numpy as np
import pytest
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import extract_glyph_texts
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import sora_runtime as sora
from sora_runtime.manifest import TextEncoderRecord
from sora_runtime.text import PromptTokenizer, clean, quoted

WORDS = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "circle": 5, "moves": 6, "Describe": 7, ".": 8}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def ids(path: Path, text: str, /, **record: object) -> list[list[int]] | None:
    fields = {
        "graph": "g.onnx", "fingerprint": "f", "tokenizer": "t.json", "max_sequence_length": 6,
        "inputs": ["input_ids"], "outputs": {"encoder_hidden_states": [1, 6, 4]}, **record,
    }  # fmt: skip
    tokens = PromptTokenizer(path, TextEncoderRecord.model_validate(fields))(text)
    return None if tokens is None else [tokens.input_ids[0].tolist(), tokens.attention_mask[0].tolist()]


def test_padding_stands_on_the_side_that_the_model_knows(path: Path) -> None:
    assert ids(path, "a red circle") == [[3, 4, 5, 1, 0, 0], [1, 1, 1, 1, 0, 0]]
    left = ids(path, "a red circle", padding_side="left", pad_token_id=9)
    assert left == [[9, 9, 3, 4, 5, 1], [0, 0, 1, 1, 1, 1]]


def test_the_template_stands_around_the_prompt(path: Path) -> None:
    assert ids(path, "red circle", template="Describe {} .") == [[7, 4, 5, 8, 1, 0], [1, 1, 1, 1, 1, 0]]


def test_a_long_prompt_is_refused_or_cut_before_its_end_token(path: Path) -> None:
    with pytest.raises(sora.InvalidRequest, match="the prompt has 8 tokens and the model takes 6"):
        ids(path, "a red circle moves a red circle")
    cut = ids(path, "a red circle moves a red circle", overflow="truncate")
    assert cut == [[3, 4, 5, 6, 3, 1], [1] * 6]


def test_cleaning_is_done_where_the_model_expects_it(path: Path) -> None:
    assert clean("  a &amp;amp; b \n c ") == "a & b c"
    assert ids(path, "red&#32;circle", clean=True) == ids(path, "red circle")
    assert ids(path, "red&#32;circle") != ids(path, "red circle")


@pytest.mark.parametrize(
    "prompt",
    ["no quotation", 'a sign "sale" there', 'two “open” and "closed"', 'twice "a" "a"', 'an "open one', '"" empty'],
)
def test_quotations_are_those_of_diffusers(prompt: str) -> None:
    assert quoted(prompt) == extract_glyph_texts(prompt)


def test_only_what_is_quoted_is_read(path: Path) -> None:
    assert ids(path, "a red circle", prompt="quoted") is None
    assert ids(path, 'a "red" circle', prompt="quoted", max_sequence_length=12) == ids(
        path, 'Text "red". ', max_sequence_length=12
    )


def test_arrays_are_int64(path: Path) -> None:
    record = TextEncoderRecord(
        graph="g", fingerprint="f", tokenizer="t", max_sequence_length=6, inputs=[], outputs={"x": (1,)}
    )
    tokens = PromptTokenizer(path, record)("a")
    assert tokens is not None and tokens.input_ids.dtype == tokens.attention_mask.dtype == np.int64
