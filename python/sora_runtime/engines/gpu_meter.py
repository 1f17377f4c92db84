"""Energy, clocks and what holds them back, of the GPU that runs the engines, through NVIDIA's management library."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from ..gpu_record import GpuUse
from . import cuda
from .registry import GPU_ENGINES

_Answer = TypeVar("_Answer")
_LOG = logging.getLogger(__name__)
INSTALL_NVML = "pip install nvidia-ml-py"
# The reasons of nvml.h that mean less than the full clock under load; being idle or a user's own limit do not.
_REASONS = {
    "nvmlClocksEventReasonSwPowerCap": "power cap",
    "nvmlClocksThrottleReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonSwThermalSlowdown": "temperature",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "temperature (hardware)",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
}


class GpuMeter:
    """One GPU.

    Args:
        uuid: of the device, as CUDA gives it: an index would not be the same where CUDA_VISIBLE_DEVICES is set.
        nvml: the module `pynvml`, if not the installed one.

    Raises:
        Exception: the library is not installed, has no driver, or does not know the device.
    """

    def __init__(self, uuid: str, *, nvml: Any = None) -> None:
        self._nvml = importlib.import_module("pynvml") if nvml is None else nvml
        self._nvml.nvmlInit()
        self._device = self._nvml.nvmlDeviceGetHandleByUUID(
            uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        )

    def millijoules(self) -> int | None:
        """Since the driver was loaded; from compute capability 7.0 on."""
        return self._asked(lambda: int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device)))

    def use_since(self, before: int | None) -> GpuUse:
        """Of a clip that began when `millijoules` gave `before`."""
        nvml, device, now = self._nvml, self._device, self.millijoules()
        clock = nvml.nvmlDeviceGetClockInfo
        return GpuUse(
            energy_joules=None if before is None or now is None else (now - before) / 1e3,
            sm_clock_mhz=self._asked(lambda: int(clock(device, nvml.NVML_CLOCK_SM))),
            memory_clock_mhz=self._asked(lambda: int(clock(device, nvml.NVML_CLOCK_MEM))),
            temperature_c=self._asked(lambda: int(nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU))),
            slowed_by=self._asked(self._slowed_by),
        )

    def _slowed_by(self) -> list[str]:
        bits = int(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._device))
        return [said for name, said in _REASONS.items() if bits & int(getattr(self._nvml, name, 0))]

    def _asked(self, question: Callable[[], _Answer]) -> _Answer | None:
        """None where this GPU, or a driver in a container, does not say."""
        try:
            return question()
        except self._nvml.NVMLError:
            return None


class Measurement:
    """From its making to `end`: what the GPU of an engine did meanwhile, and why nothing is known otherwise."""

    def __init__(self, engine: str) -> None:
        meter, self.why_not = _meter_of(engine)
        self._meter, self._before = meter, None if meter is None else meter.millijoules()

    def end(self) -> GpuUse | None:
        """Null with a reason in `why_not`."""
        return None if self._meter is None else self._meter.use_since(self._before)


@cache
def _meter_of(engine: str) -> tuple[GpuMeter | None, str]:
    if engine not in GPU_ENGINES:
        return None, "the engine ran on the CPU"
    try:
        return GpuMeter(cuda.current_device().uuid), ""
    except ImportError:
        return None, f"NVIDIA's management library is not installed; {INSTALL_NVML}"
    except Exception as error:  # a driver's refusal must not cost the clip
        _LOG.info("the GPU's energy is not measured: %s", error)
        return None, f"NVIDIA's management library does not answer ({error})"
