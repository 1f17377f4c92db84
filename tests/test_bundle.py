"""A bundle is what its hashes say, or it is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import sora_runtime as sora
from sora_runtime import verify


@pytest.fixture
def copy(runtime: sora.Runtime, tmp_path: Path) -> Path:
    """A private copy of the shipped bundle."""
    return Path(shutil.copytree(runtime.bundle.root, tmp_path / "bundle"))


def edit(root: Path, **changes: Any) -> None:
    path = root / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights_of(root: Path) -> Path:
    return root / "transformer/diffusion_pytorch_model.safetensors"


def flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def test_a_copy_loads(copy: Path) -> None:
    assert sora.Bundle.load(copy).name == "wan-pocket"


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/folder"])
def test_an_unknown_name_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(sora.BundleError, match=r"no bundle .*wan-pocket"):
        sora.Bundle.load(name)


def test_a_folder_without_bundle_json_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(sora.BundleError, match="sora-bench build"):
        sora.Bundle.load(tmp_path)


def test_damaged_json_is_refused(copy: Path) -> None:
    (copy / "bundle.json").write_text("{")
    with pytest.raises(sora.BundleError, match="cannot be read"):
        sora.Bundle.load(copy)


def test_another_schema_version_is_refused(copy: Path) -> None:
    edit(copy, schema_version=99)
    with pytest.raises(sora.BundleError, match="schema 99"):
        sora.Bundle.load(copy)


def test_a_missing_field_is_named(copy: Path) -> None:
    edit(copy, facts={})
    with pytest.raises(sora.BundleError, match=r"facts\.latent_channels"):
        sora.Bundle.load(copy)


@pytest.mark.parametrize("evil", ["../outside", "/etc/passwd"])
def test_a_path_out_of_the_bundle_is_refused(copy: Path, evil: str) -> None:
    edit(copy, scheduler=evil)
    with pytest.raises(sora.BundleError, match="points out of the bundle"):
        sora.Bundle.load(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    weights_of(copy).unlink()
    with pytest.raises(sora.BundleError, match=r"diffusion_pytorch_model\.safetensors' is missing"):
        sora.Runtime.load(copy)


def test_a_truncated_file_is_refused(copy: Path) -> None:
    path = weights_of(copy)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(sora.BundleError, match="bytes instead of"):
        sora.Runtime.load(copy)


def test_one_flipped_bit_is_refused(copy: Path) -> None:
    flip_a_bit(weights_of(copy))
    with pytest.raises(sora.BundleError, match="does not match its sha256"):
        sora.Runtime.load(copy)


def test_files_are_hashed_once_and_always_on_demand(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    original = verify.sha256_of
    monkeypatch.setattr(verify, "sha256_of", lambda path: hashed.append(path) or original(path))
    files = len(sora.Bundle.load(copy).manifest.files)
    assert len(hashed) == files
    sora.Bundle.load(copy)
    assert len(hashed) == files
    sora.Bundle.load(copy, verify="always")
    assert len(hashed) == 2 * files


def test_a_changed_file_is_hashed_again(copy: Path) -> None:
    sora.Bundle.load(copy)
    flip_a_bit(weights_of(copy))
    with pytest.raises(sora.BundleError, match="sha256"):
        sora.Bundle.load(copy)


def test_a_read_only_cache_folder_costs_only_the_hashing(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made below a file
    assert sora.Bundle.load(copy).name == "wan-pocket"


def test_a_file_without_a_hash_is_not_loaded(copy: Path) -> None:
    data = json.loads((copy / "bundle.json").read_text())
    graph = data["components"]["transformer"]["buckets"][0]["graph"]
    del data["files"][graph]
    (copy / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(sora.BundleError, match="lists no sha256"):
        sora.Runtime.load(copy).generate("a red circle", num_inference_steps=1)


def test_a_damaged_graph_with_a_right_hash_is_an_engine_error(copy: Path) -> None:
    data = json.loads((copy / "bundle.json").read_text())
    graph = data["components"]["transformer"]["buckets"][0]["graph"]
    (copy / graph).write_bytes(b"not a graph")
    data["files"][graph] = {"sha256": verify.sha256_of(copy / graph), "size": 11}
    (copy / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(sora.EngineError, match="cannot load"):
        sora.Runtime.load(copy).generate("a red circle", num_inference_steps=1)


def test_weights_that_change_after_loading_are_refused(copy: Path) -> None:
    runtime = sora.Runtime.load(copy)
    flip_a_bit(weights_of(copy))
    with pytest.raises(sora.BundleError, match="does not match its sha256"):
        runtime.generate("a red circle", num_inference_steps=1)


def test_a_graph_names_the_weights_it_points_into(copy: Path) -> None:
    manifest = sora.Bundle.load(copy).manifest
    graph = manifest.components.transformer.buckets[0].graph
    assert manifest.files[graph].data == ["transformer/diffusion_pytorch_model.safetensors"]


def test_facts_that_do_not_fit_the_graphs_are_refused(copy: Path) -> None:
    data = json.loads((copy / "bundle.json").read_text())
    data["facts"]["latent_channels"] += 1
    (copy / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(sora.BundleError, match=r"the facts of bundle\.json say"):
        sora.Runtime.load(copy).generate("a red circle", num_inference_steps=1)


@pytest.mark.parametrize(("text", "message"), [("[" * 200_000, "cannot be read"), ("[]", "bundle schema None")])
def test_odd_json_is_refused(copy: Path, text: str, message: str) -> None:
    (copy / "bundle.json").write_text(text)
    with pytest.raises(sora.BundleError, match=message):
        sora.Bundle.load(copy)


def test_a_patch_of_zero_is_refused(copy: Path) -> None:
    data = json.loads((copy / "bundle.json").read_text())
    data["facts"]["patch_size"] = [0, 0, 0]
    (copy / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(sora.BundleError, match="patch_size"):
        sora.Bundle.load(copy)


def test_a_bare_name_is_the_shipped_model_and_a_path_is_a_path(
    copy: Path, runtime: sora.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy.rename(copy.parent / "wan-pocket")
    monkeypatch.chdir(copy.parent)
    assert sora.Bundle.load("wan-pocket").root == runtime.bundle.root
    assert sora.Bundle.load("./wan-pocket").root == (copy.parent / "wan-pocket").resolve()


def test_an_overlong_name_and_an_unknown_mode_are_refused() -> None:
    with pytest.raises(sora.BundleError, match="cannot be opened"):
        sora.Bundle.load("x" * 300)
    with pytest.raises(sora.InvalidRequest, match="verify = 'sometimes'"):
        sora.Bundle.load("wan-pocket", verify="sometimes")  # type: ignore[arg-type]


def test_no_home_folder_costs_only_the_hashing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert sora.Bundle.load(copy).name == "wan-pocket"
