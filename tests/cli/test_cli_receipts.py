"""The receipt that `sora-bench run` prints and writes."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from fake_runtime import TOTAL_SECONDS, Command, FakeRuntime

from sora_runtime.machine import DEFAULT_PRICE_SOURCE
from sora_runtime.receipt import Receipt
from sora_runtime.video import Rgb8, VideoWriter


def test_json_file_is_the_receipt(sora_bench: Command, fake: FakeRuntime, tmp_path: Path) -> None:
    assert sora_bench("run", "ein Kreis für 1 €", "--json", "r.json", "--seed", 3).exit_code == 0
    receipt = Receipt.model_validate_json((tmp_path / "r.json").read_bytes())
    assert receipt.request.prompt == "ein Kreis für 1 €"
    assert receipt.request.seed == 3
    assert receipt.seconds.encode_mp4 is not None
    assert receipt.seconds.encode_mp4 > 0
    # Only what was encoded after the last frame was handed over comes on top of the total.
    assert TOTAL_SECONDS < receipt.seconds.total <= TOTAL_SECONDS + receipt.seconds.encode_mp4
    assert receipt.cost.usd_per_clip == pytest.approx(receipt.seconds.total * 0.09 / 3600)
    assert "seconds.encode_mp4" not in receipt.reasons


def test_json_to_stdout_is_json_alone(sora_bench: Command, fake: FakeRuntime) -> None:
    result = sora_bench("run", "a red circle", "--json", "-")
    assert result.exit_code == 0
    assert Receipt.model_validate_json(result.stdout).request.prompt == "a red circle"
    assert result.stderr == ""


PROMPTS = ["a red circle", "many words " * 60, "brackets [bold] and [/nothing]", "word" * 100, "日本語" * 40]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("repeat", [1, 2])
def test_the_receipt_fits_80_columns(sora_bench: Command, fake: FakeRuntime, prompt: str, repeat: int) -> None:
    folder = Path("a-folder-of-a-rather-long-name-" * 2)
    folder.mkdir()
    words = ("--price-per-hour", "98.76", "--repeat", repeat, "--out", folder / "a-longer-name.mp4")
    result = sora_bench("run", prompt, *words)
    assert result.exit_code == 0, result.stderr
    for line in result.stdout.splitlines():
        # CJK characters take two columns.
        assert sum(1 + (character > "\u2fff") for character in line) <= 80
        assert line == line.rstrip()
    assert prompt[:10] in result.stdout
    for text in ("1,234 latent", "300.0 MiB", "98.76 USD an hour"):
        assert text in result.stdout


def test_the_receipt_shows_what_was_measured(sora_bench: Command, fake: FakeRuntime) -> None:
    lines = [" ".join(line.split()) for line in sora_bench("run", "[bold]x[/nope]").stdout.splitlines()]
    assert "prompt [bold]x[/nope]" in lines
    assert "load 0.500 once per runtime, not in total" in lines
    text = "\n".join(lines)
    assert re.search(r"^denoise 3\.000 7\d\.\d% 40 evaluations, 0 skipped, 150\.0 ms a step$", text, re.M)
    assert re.search(r"^vae_decode 0\.900 2\d\.\d%$", text, re.M)
    assert re.search(r"^encode_mp4 0\.\d\d\d \d+\.\d% beside vae_decode$", text, re.M)
    cost = re.search(r"^cost (\S+) USD a clip, (\S+) USD a generated second$", text, re.M)
    assert cost is not None
    # 4 s and a little of encoding at 0.09 USD an hour for 9 frames at 12 fps
    assert float(cost[1]) == pytest.approx(4 * 0.09 / 3600, rel=0.2)
    assert float(cost[2]) == pytest.approx(float(cost[1]) / 0.75, rel=0.01)


def test_waiting_is_shown_if_there_was_any(
    sora_bench: Command, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "queued" not in sora_bench("run", "a red circle").stdout
    generate = fake.generate

    def waits(prompt: str, **more: Any) -> Any:
        clip = generate(prompt, **more)
        clip.receipt.seconds.queued = 1.25
        return clip

    monkeypatch.setattr(fake, "generate", waits)
    lines = [" ".join(line.split()) for line in sora_bench("run", "a red circle").stdout.splitlines()]
    assert "queued 1.250 for other clips, not in total" in lines


def test_the_price_says_where_it_is_from(sora_bench: Command, fake: FakeRuntime) -> None:
    default = " ".join(sora_bench("run", "a red circle").stdout.split())
    source = "0.0408 per vCPU-hour, AWS m7g.large"
    assert default.endswith(f"price 0.0900 USD an hour (default: {source}; --price-per-hour sets yours)")
    for part in ("0.0408 USD per vCPU-hour", "AWS m7g.large"):
        assert part in DEFAULT_PRICE_SOURCE, "the table must say what the receipt says"
    stated = " ".join(sora_bench("run", "a red circle", "--price-per-hour", "2.5").stdout.split())
    assert stated.endswith("price 2.50 USD an hour, as stated")


@pytest.mark.parametrize("decoding", [0.3, 0.0])
def test_encoding_is_billed_once(
    sora_bench: Command, fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoding: float
) -> None:
    """Three chunks of 0.2 s to encode and 0.25 s to finish the file; what passes beside slow decoding costs no more."""

    class SlowWriter(VideoWriter):
        def write(self, rgb8: Rgb8) -> None:
            super().write(rgb8)
            self._seconds += 0.2
            time.sleep(0.2)

        def __exit__(self, *error: Any) -> None:
            super().__exit__(*error)
            self._seconds += 0.25
            time.sleep(0.25)

    fake.sleep_seconds = decoding
    monkeypatch.setattr("sora_runtime.cli.clip.VideoWriter", SlowWriter)
    start = time.perf_counter()
    assert sora_bench("run", "a red circle", "--json", "r.json").exit_code == 0
    wall = time.perf_counter() - start
    receipt = Receipt.model_validate_json((tmp_path / "r.json").read_bytes())
    encode, beyond = receipt.seconds.encode_mp4, receipt.seconds.total - TOTAL_SECONDS
    assert encode is not None and encode >= 0.85
    if decoding:
        assert 0.25 <= beyond <= encode - 0.2, "at least a chunk was encoded while another was decoded"
    else:
        assert 0.85 <= beyond <= min(encode, wall)
    assert receipt.cost.usd_per_clip == pytest.approx((TOTAL_SECONDS + beyond) * 0.09 / 3600)
