"""The model cards of transformers with cross-attention and of packed mixtures: complete, and true to what is known."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

import pytest

from sora_runtime.cost.architectures import cosmos, ltx, minimax, sana, wan
from sora_runtime.cost.architectures.common import Conditioning
from sora_runtime.cost.work import ComponentWork, Sizes

TRANSFORMERS = wan.TRANSFORMERS | ltx.TRANSFORMERS | cosmos.TRANSFORMERS | sana.TRANSFORMERS | minimax.TRANSFORMERS
FAMILIES = {"wan", "skyreels", "ltx", "cosmos", "sana", "minimax"}
# Not in config.json: what the pipeline passes to the network.
OF_THE_PIPELINE = {"expand_timesteps", "timestep_per_frame", "frame_rate"}


def cards() -> dict[str, dict[str, Any]]:
    folder = resources.files("sora_runtime.cost").joinpath("catalogue/models")
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".toml")]
    found = {entry.name: tomllib.loads(entry.read_text(encoding="utf-8")) for entry in files}
    return {name: card for name, card in found.items() if card["family"] in FAMILIES}


CARDS = cards()


def work_of(card: Mapping[str, Any]) -> ComponentWork:
    network = card["transformer"]
    conditioning = Conditioning(network["text_tokens"], network.get("image_tokens", 0))
    return TRANSFORMERS[network["class"]](network["config"], conditioning)


def test_wan_14b_is_the_sum_of_its_layers_by_hand() -> None:
    tokens, width, hidden, layers, text = 75600, 5120, 13824, 40, 512
    by_hand = layers * (
        2 * tokens * (6 * width**2 + 2 * width * hidden)
        + 4 * tokens**2 * width
        + 4 * tokens * text * width
        + 4 * text * width**2
    )
    flops = work_of(CARDS["wan2.1-t2v-14b.toml"]).flops(Sizes(tokens, 90 * 160, 21))
    total = flops["linear"] + flops["attention"] + flops["convolution"]
    assert total == pytest.approx(by_hand, rel=0.005)
    assert total == pytest.approx(6.52e15, rel=0.005)
    assert flops["attention"] == layers * 4 * tokens * (tokens + text) * width


def test_linear_attention_is_linear_in_the_tokens() -> None:
    work = work_of(CARDS["sana-video-2b.toml"])
    one, two = (work.flops(Sizes(tokens, 4 * tokens, 1)) for tokens in (10_000, 20_000))
    assert two["attention"] == 2 * one["attention"]


def test_only_the_towers_of_cosmos_3_are_read() -> None:
    work = work_of(CARDS["cosmos3-nano.toml"])
    assert work.parameters - work.read == 2 * 151936 * 4096


@pytest.mark.parametrize("file", CARDS)
def test_card_is_complete(file: str) -> None:
    card = CARDS[file]
    assert file == card["name"] + ".toml" == file.lower()
    assert card["tasks"]
    assert {"latent_channels", "spatial_stride", "temporal_stride", "patch_size"} <= card["geometry"].keys()
    assert {"width", "height", "frames", "fps", "steps", "guidance"} <= card["defaults"].keys()
    assert card["defaults"]["guidance"] in {"cfg", "embedded", "none"}
    assert work_of(card).layers > 0


def test_cosmos_3_super_has_two_towers_of_qwen3_32b() -> None:
    width, hidden, layers, keys = 5120, 25600, 64, 1024
    tower = layers * (2 * width * 8192 + 2 * width * keys + 3 * width * hidden + 2 * width + 2 * 128) + width
    inputs_and_outputs = 2 * 192 * width + width + 192 + 256 * width + width + width**2 + width
    assert work_of(CARDS["cosmos3-super.toml"]).read == 2 * tower + inputs_and_outputs


PUBLISHED = [file for file, card in CARDS.items() if "parameters_published" in card["transformer"]]
# What the publisher counts beside the network: text connectors (LTX2TextConnectors of diffusers at eight layers of
# 4096 and of 2048 channels) and a vision tower.
BESIDE = {"ltx-2.3.toml": 3.17e9, "cosmos3-nano.toml": 0.58e9}


@pytest.mark.parametrize("file", PUBLISHED)
def test_parameters_are_those_published(file: str) -> None:
    published = CARDS[file]["transformer"]["parameters_published"]
    whole = work_of(CARDS[file]).parameters + BESIDE.get(file, 0.0)
    # A publisher who prints one digit rounds by more.
    tolerance = 0.05 if published < 10e9 else 0.03
    assert whole == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize("file", CARDS)
def test_card_builds_the_class_it_names(file: str) -> None:
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    network = CARDS[file]["transformer"]
    config = {key: value for key, value in network["config"].items() if key not in OF_THE_PIPELINE}
    with torch.device("meta"):
        weights = getattr(diffusers, network["class"])(**config).parameters()
    assert work_of(CARDS[file]).parameters == pytest.approx(sum(weight.numel() for weight in weights), rel=0.005)


def test_names_and_aliases_are_of_one_card_each() -> None:
    seen: dict[str, str] = {}
    for file, card in CARDS.items():
        for alias in {card["name"], *card["aliases"]}:
            assert seen.setdefault(alias.lower(), file) == file, alias
