"""What nvcc makes of the CUDA kernels: code for every target, nothing spilled, and a module that needs no driver."""

import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sora_runtime import _core
from sora_runtime.sampling import FlowSchedule, Guidance, UniPC, compile_program

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "csrc/kernels"
RECIPE = (KERNELS / "cuda.cmake").read_text()
TARGETS = re.search(r"SORA_CUDA_TARGETS ([\d ]+)\)", RECIPE)[1].split()  # type: ignore[index]
BUILT = hasattr(_core, "cuda")

needs_cuda = pytest.mark.skipif(not BUILT, reason="the module was built where no nvcc compiles")


def compiled(target: str, file: Path) -> str:
    """Compiles the kernels for one target with the recipe's flags; returns what ptxas reports."""
    flags = re.search(r"SORA_CUDA_FLAGS ([^)]+)\)", RECIPE)[1].split()  # type: ignore[index]
    command = ["nvcc", "-O3", *flags, "-Xptxas=-v", f"-I{ROOT / 'csrc'}", "-cubin", f"-arch=sm_{target}"]
    done = subprocess.run(
        [*command, str(KERNELS / "cuda.cu"), "-o", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


@needs_cuda
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_compiled_without_spills_or_local_memory(target: str, tmp_path: Path) -> None:
    report = compiled(target, tmp_path / "kernels.cubin")
    kernels = re.findall(r"Compiling entry function '(\S+)'", report)
    assert len(kernels) >= 14
    assert any("map_kernelILi4E" in name and "Step" in name for name in kernels)  # 16 bytes at once
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(stacks) == len(kernels) and set(stacks) == {("0", "0", "0")}
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", report)]
    assert len(registers) == len(kernels) and max(registers) <= 85  # three blocks of 256 threads on a multiprocessor
    assert "lmem" not in report
    header = (tmp_path / "kernels.cubin").read_bytes()[:4]
    assert header == b"\x7fELF"


def code_in(file: Path) -> list[tuple[str, int]]:
    """Kind and compute capability of each piece of device code in a module.

    NVIDIA does not document the container; the fields are read as its tools write them: a header with this magic
    number, its own size and that of what follows, then entries of a kind (1: PTX, 2: binary), with the sizes of their
    headers and of their code, and the capability at offset 28.
    """
    data, found = file.read_bytes(), []
    for match in re.finditer(re.escape(struct.pack("<I", 0xBA55ED50)), data):
        start = match.start()
        _, header, size = struct.unpack_from("<HHQ", data, start + 4)
        position, end = start + header, start + header + size
        while position < end:
            kind, _, header, code = struct.unpack_from("<HHIQ", data, position)
            (capability,) = struct.unpack_from("<I", data, position + 28)
            found.append(({1: "ptx", 2: "binary"}[kind], capability))
            position += header + code
    return found


@needs_cuda
def test_the_module_holds_code_for_every_target() -> None:
    code = code_in(Path(str(_core.__file__)))
    for target in TARGETS:
        assert ("binary", int(target)) in code
    assert ("ptx", int(TARGETS[-1])) in code


@needs_cuda
def test_the_module_needs_no_library_of_cuda() -> None:
    needed = subprocess.run(["ldd", str(_core.__file__)], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in needed and not re.search(r"libcuda|libcudart|libnvidia", needed)


@needs_cuda
def test_a_launch_without_a_driver_is_refused_in_a_sentence() -> None:
    code = (
        "from sora_runtime import _core\n"
        "try:\n    _core.cuda.frames_to_rgb8(0, 0, num_frames=1, plane=16, stream=0)\n"
        "except RuntimeError as error:\n    print(error)\n"
    )
    # As on a machine without a GPU, whatever this one has.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"CUDA_VISIBLE_DEVICES": "-1"}
    )
    assert done.stdout.startswith("CUDA refused to launch a kernel: ")


@needs_cuda
def test_a_workspace_that_does_not_suffice_is_refused() -> None:
    program = compile_program(UniPC(), FlowSchedule(shift=3.0, max_sigma=0.999), 8, Guidance(scale=5.0))
    buffers = _core.cuda.Buffers(n=1000, latents=256, conditional=8192, unconditional=16384)
    needed = _core.cuda.workspace_bytes(program.rows, n=1000)
    for workspace, size in ((256, needed - 1), (260, needed)):
        with pytest.raises(ValueError, match=f"the program needs {needed}"):
            _core.cuda.Sampler(program.rows, buffers, workspace=workspace, workspace_bytes=size, stream=0)
    sampler = _core.cuda.Sampler(program.rows, buffers, workspace=256, workspace_bytes=needed, stream=0)
    assert len(sampler.tables) % 256 == 0 and len(sampler.tables) < needed


@needs_cuda
def test_nv12_of_odd_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="even height and width"):
        _core.cuda.frames_to_nv12(0, 0, shape=(1, 3, 4), pitch=4, picture_bytes=18, stream=0)
    with pytest.raises(ValueError, match="raise the pitch"):
        _core.cuda.frames_to_nv12(0, 0, shape=(1, 4, 4), pitch=2, picture_bytes=24, stream=0)


def test_what_a_sampler_keeps_is_known_beforehand() -> None:
    program = compile_program(UniPC(), FlowSchedule(shift=3.0, max_sigma=0.999), 8, Guidance(scale=5.0))
    depth = int(np.max(np.count_nonzero(program.rows["history"], axis=1)))
    found = _core.sampler_memory(program.rows, n=1000)
    assert found == {"history": 4000 * (depth + 1), "reused outputs": 0, "running difference": 0, "noise": 0}
    reuse = _core.StepReuse(criterion="output_change", threshold=0.1, order=1, residual=True)
    apg = _core.GuidanceRule(method="apg", momentum=-0.5)
    found = _core.sampler_memory(program.rows, n=1000, reuse=reuse, guidance=apg)
    assert found["reused outputs"] == 4000 * 5 and found["running difference"] == 4000  # 2 of c, 2 of u - c, the anchor
