"""What machine this is, and what an hour of it costs when nobody said."""

import math
import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

# AWS m7g.large (2 vCPU, us-east-1, Linux, on demand) at 0.0816 USD an hour, June 2026, as reported by
# https://www.factualminds.com/blog/amazon-ec2-on-demand-pricing-instance-families-2026/
DEFAULT_USD_PER_VCPU_HOUR = 0.0816 / 2
DEFAULT_PRICE_SOURCE = (
    "default for CPU machines: 0.0408 USD per vCPU-hour "
    "(AWS m7g.large, us-east-1, Linux, on demand, June 2026); state yours as price per hour"
)


@dataclass(frozen=True)
class Machine:
    """The host, as far as it can be read without privileges."""

    cpu: str
    cores: int  # logical processors this process may use
    memory_bytes: int | None
    os: str

    @property
    def name(self) -> str:
        """What times measured here are filed under: processor and cores, without what a reboot may change."""
        return f"{self.cpu}, {self.cores} cores"


def this_machine() -> Machine:
    """Describe the machine at hand."""
    return Machine(_cpu_name(), available_cores(), _memory_bytes(), platform.platform(terse=True))


def available_cores() -> int:
    """Logical processors that this process may run on: its affinity, bounded by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota_cores() or cores))


def default_usd_per_hour(cores: int) -> float:
    """What an hour of a CPU machine with this many logical processors costs by default, in USD."""
    return DEFAULT_USD_PER_VCPU_HOUR * cores


def peak_host_memory_bytes() -> int:
    """Peak resident memory of this process over its whole life so far, in bytes."""
    try:
        # Not getrusage: on Linux a child begins with the peak of the process that started it.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _quota_cores() -> int | None:
    """Whole processors of the control group's quota (version 2), rounded up; None without one."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
