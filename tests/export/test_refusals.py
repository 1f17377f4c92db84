"""What cannot be built is refused in one sentence, and a failed build leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from sora_export import build_bundle, parity
from sora_export.checkpoint import Checkpoint
from sora_export.defaults import read_defaults, with_defaults
from sora_export.families import Shapes, family_of
from sora_export.staging import Staging
from sora_export.tokenizer import write_tokenizer
from sora_runtime.errors import BundleError, EngineError, InvalidRequest, OutputError

Copy = Callable[[], Path]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("size", "frames", "message"),
    [
        ((36, 48), 9, "height = 36 is not a multiple of 8 .*use 32 or 40"),
        ((32, 3), 9, "width = 3 is not a multiple of 8 .*use 8"),
        ((32, -8), 9, "width = -8 .*use 8"),
        ((32, 48), 80, r"num_frames = 80 is not 4k\+1; use 77 or 81"),
        ((32, 48), 0, r"num_frames = 0 is not 4k\+1; use 1"),
        ((1024, 48), 9, "128 positions on an axis, but the transformer knows 64"),
    ],
)
def test_shapes(plain: Path, tmp_path: Path, size: tuple[int, int], frames: int, message: str) -> None:
    with pytest.raises((InvalidRequest, BundleError), match=message):
        build_bundle(plain, tmp_path / "out", [size], [frames])
    assert not (tmp_path / "out").exists()


def test_nothing_to_build(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="nothing to build"):
        build_bundle(plain, tmp_path / "out", [], [9])


def test_pickles_are_refused_and_not_read(copy_of_plain: Copy, tmp_path: Path) -> None:
    checkpoint = copy_of_plain()
    weights = checkpoint / "transformer/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(BundleError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        build_bundle(checkpoint, tmp_path / "out", [(32, 48)], [9])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "MochiPipeline"}, "is a MochiPipeline, which cannot"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderMod"),
        ("vae/config.json", {"scale_factor_spatial": 8}, "scale_factor_spatial = 8, but .* make it 4"),
        ("vae/config.json", {"z_dim": 6}, "takes 4 channels, but latents have 6"),
        ("transformer/config.json", {"text_dim": 64}, "prompt_embeds of 64, .* gives 32"),
        ("sora_defaults.json", {"steps": 4}, "unknown key steps"),
        ("sora_defaults.json", {"fps": "fast"}, "fps = 'fast'; use a float"),
        ("sora_defaults.json", {"max_sequence_length": -1}, "use a positive number"),
    ],
)
def test_configs_that_do_not_fit(copy_of_plain: Copy, path: str, changes: dict[str, Any], message: str) -> None:
    checkpoint = copy_of_plain()
    edit(checkpoint / path, **changes)
    with pytest.raises(BundleError, match=message):
        build_bundle(checkpoint, checkpoint, [(32, 48)], [9])


@pytest.mark.parametrize("path", ["model_index.json", "vae/config.json", "scheduler/scheduler_config.json"])
def test_missing_and_damaged_files(copy_of_plain: Copy, path: str) -> None:
    checkpoint = copy_of_plain()
    (checkpoint / path).write_text("{")
    with pytest.raises(BundleError, match="not valid JSON"):
        build_bundle(checkpoint, checkpoint, [(32, 48)], [9])
    (checkpoint / path).unlink()
    with pytest.raises(BundleError, match=re.escape(Path(path).name)):
        build_bundle(checkpoint, checkpoint, [(32, 48)], [9])


def test_weights_of_another_config_and_truncated_weights(copy_of_plain: Copy) -> None:
    checkpoint = copy_of_plain()
    before = snapshot(checkpoint)
    edit(checkpoint / "text_encoder/config.json", d_ff=64)
    with pytest.raises(BundleError, match=r"has shape \[48, 32\], but config.json makes it"):
        build_bundle(checkpoint, checkpoint, [(32, 48)], [9])
    edit(checkpoint / "text_encoder/config.json", d_ff=48, num_layers=3)
    with pytest.raises(BundleError, match=r"has no tensor encoder\.block\.2"):
        build_bundle(checkpoint, checkpoint, [(32, 48)], [9])
    weights = checkpoint / "text_encoder/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(BundleError, match="is cut short"):
        build_bundle(checkpoint, checkpoint, [(32, 48)], [9])
    assert set(snapshot(checkpoint)) == set(before)


def test_a_graph_that_differs_from_torch_is_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "MAX_RELATIVE_L2", 1e-12)
    with pytest.raises(EngineError, match=r"text_encoder\.onnx differs from torch by"):
        build_bundle(plain, tmp_path / "new/out", [(32, 48)], [9])
    assert not (tmp_path / "new").exists()


def test_a_failed_build_leaves_an_older_bundle_whole(
    plain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(plain_bundle, tmp_path / "bundle"))
    before = snapshot(bundle)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parity, "measure", fail)
    with pytest.raises(KeyboardInterrupt):
        build_bundle(bundle, bundle, [(32, 48)], [9])
    assert snapshot(bundle) == before


def test_failure_while_renaming_leaves_no_manifest(tmp_path: Path, plain: Path) -> None:
    def fail() -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"), Staging(tmp_path / "out") as staging:
        staging.link_checkpoint(Checkpoint(plain), print)
        staging.new_file("a.onnx").write_bytes(b"graph")
        staging.finish(fail)
    assert not (tmp_path / "out").exists()


def test_out_is_a_file_or_holds_another_checkpoint(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file"):
        build_bundle(plain, tmp_path / "file", [(32, 48)], [9])
    other = tmp_path / "other"
    (other / "vae").mkdir(parents=True)
    (other / "vae/config.json").write_text("{}")
    with pytest.raises(BundleError, match="exists and differs"):
        build_bundle(plain, other, [(32, 48)], [9])
    assert list(snapshot(other)) == ["vae/config.json"]


def test_symbolic_links_in_place_are_refused(copy_of_plain: Copy, tmp_path: Path) -> None:
    checkpoint = copy_of_plain()
    weights = checkpoint / "vae/diffusion_pytorch_model.safetensors"
    shutil.move(weights, tmp_path / "blob")
    weights.symlink_to(tmp_path / "blob")
    with pytest.raises(BundleError, match="symbolic link out of its folder"):
        build_bundle(checkpoint, checkpoint, [(32, 48)], [9])


def test_files_are_copied_where_they_cannot_be_linked(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    said: list[str] = []
    with Staging(tmp_path / "out") as folder:
        folder.link_checkpoint(Checkpoint(plain), said.append)
        copied = tmp_path / "out/vae/config.json"
        assert copied.read_bytes() == (plain / "vae/config.json").read_bytes()
    assert "copying config.json, because it cannot be hard-linked" in " ".join(said)


def test_sentencepiece_model_is_converted_or_refused(copy_of_plain: Copy, tmp_path: Path) -> None:
    checkpoint = copy_of_plain()
    folder = checkpoint / "tokenizer"
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(BundleError, match=r"has no tokenizer\.json, nor what one is made of"):
        write_tokenizer(Checkpoint(checkpoint), "tokenizer", tmp_path / "tokenizer.json")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a red circle moves left\na blue square falls down\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "spiece"), vocab_size=24, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    shutil.copy(tmp_path / "spiece.model", folder / "spiece.model")
    write_tokenizer(Checkpoint(checkpoint), "tokenizer", tmp_path / "tokenizer.json")
    ids = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a red square").ids
    expected = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model"))
    assert ids == [*expected.encode("a red square"), 1]
    (folder / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(BundleError, match=r"spiece\.model cannot be converted"):
        write_tokenizer(Checkpoint(checkpoint), "tokenizer", tmp_path / "tokenizer.json")


def test_licence_comes_from_the_model_card_or_the_defaults(copy_of_plain: Copy) -> None:
    checkpoint = copy_of_plain()
    assert "license" not in read_defaults(Checkpoint(checkpoint))
    (checkpoint / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Card\n")
    assert read_defaults(Checkpoint(checkpoint))["license"] == "apache-2.0"
    edit(checkpoint / "sora_defaults.json", license="MIT")
    assert read_defaults(Checkpoint(checkpoint))["license"] == "MIT"


def test_the_exporter_holds_no_weights(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traced module's parameters are fake: they have no storage to fill."""
    shapes = Shapes([(32, 48)], [9])
    checkpoint = Checkpoint(plain)
    family = family_of(checkpoint)
    facts = with_defaults(family.read_facts(checkpoint), read_defaults(checkpoint), shapes)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    for component in family.components(checkpoint, facts, shapes):
        for graph in component.graphs.values():
            with FakeTensorMode(allow_non_fake_inputs=True):
                module = graph.make_module()
            assert all(isinstance(parameter, FakeTensor) for parameter in module.parameters())
