"""Energy and clocks through a double of NVIDIA's management library, which is held against the real module."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from gpu.doubles import Gpu
from sora_runtime import Runtime
from sora_runtime.engines import cuda, gpu_meter
from sora_runtime.engines.gpu_meter import GpuMeter

ASK = {"prompt": "a red circle moving left", "num_inference_steps": 2, "seed": 4}


class Nvml:
    """A GPU that draws 300 J between two questions, until it is told to refuse."""

    NVMLError = pynvml.NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU

    def __init__(self) -> None:
        self.energy, self.reasons, self.refuses = 5_000_000, 0, False
        for name in gpu_meter._REASONS:
            setattr(self, name, getattr(pynvml, name))

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        assert uuid.startswith("GPU-8dec1f8a-")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if self.refuses:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self.energy += 300_000
        return self.energy

    def nvmlDeviceGetClockInfo(self, handle: str, type: int) -> int:  # noqa: N802
        return 2520 if type == self.NVML_CLOCK_SM else 10501

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        return 61

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        return self.reasons


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    gpu_meter._meter_of.cache_clear()
    yield
    gpu_meter._meter_of.cache_clear()


@pytest.fixture
def nvml(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Nvml:
    double = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", double)
    return double


def test_the_double_asks_what_the_library_answers() -> None:
    functions = {name for name in vars(Nvml) if name.startswith("nvml")}
    for name in functions:
        own = list(inspect.signature(getattr(Nvml, name)).parameters)[1:]
        assert own == list(inspect.signature(getattr(pynvml, name)).parameters), name
    assert all(isinstance(getattr(pynvml, name), int) for name in gpu_meter._REASONS)


def test_a_receipt_holds_energy_and_clocks(nvml: Nvml, bundle: Path) -> None:
    nvml.reasons = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonGpuIdle
    with Runtime.load(bundle) as runtime:
        receipt = runtime.generate(**ASK).receipt
    assert receipt.gpu_use is not None
    assert receipt.gpu_use.energy_joules == 300.0
    assert (receipt.gpu_use.sm_clock_mhz, receipt.gpu_use.memory_clock_mhz) == (2520, 10501)
    assert receipt.gpu_use.temperature_c == 61
    assert receipt.gpu_use.slowed_by == ["power cap"]
    assert "300 J, 2,520 MHz at the end, slowed by power cap" in str(receipt)
    assert not {"gpu_use", "machine.gpu"} & set(receipt.reasons)


def test_what_a_gpu_does_not_say_is_null(nvml: Nvml) -> None:
    nvml.refuses = True
    meter = GpuMeter(cuda.current_device().uuid, nvml=nvml)
    use = meter.use_since(meter.millijoules())
    assert use.energy_joules is None
    assert use.sm_clock_mhz == 2520


def test_without_the_library_the_receipt_says_so(gpu: Gpu, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Runtime.load(bundle) as runtime:
        receipt = runtime.generate(**ASK).receipt
    assert receipt.gpu_use is None
    assert receipt.reasons["gpu_use"].endswith("pip install nvidia-ml-py")


def test_without_a_driver_the_receipt_says_so(gpu: Gpu, bundle: Path) -> None:
    with Runtime.load(bundle) as runtime:
        receipt = runtime.generate(**ASK).receipt
    assert receipt.gpu_use is None
    assert receipt.reasons["gpu_use"].startswith("NVIDIA's management library does not answer (")
