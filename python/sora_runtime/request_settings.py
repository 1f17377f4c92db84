"""The settings of a request that decide quality and work, and the checks of single values."""

import math
import operator
from collections.abc import Mapping
from typing import Any

from .errors import InvalidRequest
from .manifest import Manifest
from .sampling import REUSE_POLICIES, GuidanceRule, StepReuse, guidance_rule


def checked_settings(given: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """The fields that decide quality and work, which a preset may hold, checked and completed with the bundle's own.

    Args:
        given: fields of `RequestFields` that are not None; all others are ignored.
        manifest: the bundle's.

    Raises:
        InvalidRequest: the first value that is wrong.
    """
    facts, defaults = manifest.facts, manifest.facts.defaults
    sigmas, timesteps = _levels("sigmas", given, 1), _levels("timesteps", given, facts.num_train_timesteps)
    second, solver = given.get("guidance_scale_2"), given.get("solver")
    return {
        "negative_prompt": checked_text("negative_prompt", given.get("negative_prompt", defaults.negative_prompt)),
        "num_inference_steps": _steps(given, sigmas or timesteps, defaults.num_inference_steps),
        "sigmas": sigmas,
        "timesteps": timesteps,
        "guidance_scale": checked_number(
            "guidance_scale", given.get("guidance_scale", defaults.guidance_scale), -1000, 1000
        ),
        "guidance_scale_2": None if second is None else checked_number("guidance_scale_2", second, -1000, 1000),
        "guidance_rescale": checked_number("guidance_rescale", given.get("guidance_rescale", 0.0), 0, 1),
        "solver": None if solver is None else checked_text("solver", solver),
        **_guidance(given),
        **_step_reuse(given),
    }


def _guidance(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of guidance beyond its scale."""
    method, interval = given.get("guidance_method", "cfg"), given.get("guidance_interval")
    if not isinstance(method, str | GuidanceRule):
        raise InvalidRequest(f"guidance_method is a {type(method).__name__}; pass a name or a GuidanceRule")
    rule = guidance_rule(method) if isinstance(method, str) else method
    if interval is not None:
        if not isinstance(interval, list | tuple) or len(interval) != 2:
            raise InvalidRequest(f"guidance_interval = {interval!r} is no pair of sigmas; use one such as (0.2, 0.8)")
        interval = tuple(checked_number("guidance_interval", value, 0, 1e6) for value in interval)
    first = 1 if rule.method == "cfg_zero_star" else 0
    return {
        "guidance_rule": rule,
        "guidance_interval": interval,
        "guidance_decay": checked_number("guidance_decay", given.get("guidance_decay", 0.0), 0, 1),
        "zero_init_steps": checked_integer("zero_init_steps", given.get("zero_init_steps", first), 0, 1000),
    }


def _step_reuse(given: Mapping[str, Any]) -> dict[str, Any]:
    """The three fields of step reuse, each checked alone; whether they fit the program is seen when there is one."""
    reuse, threshold = given.get("step_reuse"), given.get("reuse_threshold")
    if isinstance(reuse, str) and reuse not in REUSE_POLICIES:
        raise InvalidRequest(f"step_reuse = '{reuse}' is unknown; use {', '.join(REUSE_POLICIES)}")
    if reuse is not None and not isinstance(reuse, str | StepReuse):
        raise InvalidRequest(f"step_reuse is a {type(reuse).__name__}; pass the name of a policy or a StepReuse")
    if reuse is None and (threshold is not None or given.get("force_step_reuse")):
        raise InvalidRequest("reuse_threshold and force_step_reuse say nothing without step_reuse; name a policy")
    return {
        "step_reuse": reuse,
        "reuse_threshold": None if threshold is None else checked_number("reuse_threshold", threshold, 0, 1e6),
        "force_step_reuse": bool(given.get("force_step_reuse", False)),
    }


def _levels(name: str, given: Mapping[str, Any], most: float) -> tuple[float, ...] | None:
    """The levels of the steps, as many as there are; how they must descend is the schedule's to say."""
    values = given.get(name)
    if values is None:
        return None
    if isinstance(values, str | bytes | Mapping) or not (hasattr(values, "__len__") and hasattr(values, "__getitem__")):
        raise InvalidRequest(f"{name} = {values!r} is no list; give a number for each step")
    levels = tuple(checked_number(f"{name}[{index}]", value, 0, most) for index, value in enumerate(values))
    if not 1 <= len(levels) <= 1000:
        raise InvalidRequest(f"{name} has {len(levels)} levels; give one for each of 1 to 1000 steps")
    return levels


def _steps(given: Mapping[str, Any], levels: tuple[float, ...] | None, default: int) -> int:
    if "sigmas" in given and "timesteps" in given:
        raise InvalidRequest("sigmas and timesteps are both given; give one of them")
    steps = given.get("num_inference_steps", default if levels is None else len(levels))
    number = checked_integer("num_inference_steps", steps, 1, 1000)
    if levels is not None and number != len(levels):
        what = "sigmas" if "sigmas" in given else "timesteps"
        raise InvalidRequest(f"num_inference_steps = {number} and {len(levels)} {what} do not agree; leave it out")
    return number


def checked_text(name: str, value: Any) -> str:
    """A string that is text; raises `InvalidRequest` for anything else."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is a {type(value).__name__}; pass a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name} holds a character that is no Unicode text ({error.reason}); leave it out"
        ) from error
    return value


def checked_integer(name: str, value: Any, least: int, most: int) -> int:
    """A whole number from `least` to `most`; raises `InvalidRequest` for anything else."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InvalidRequest(f"{name} = {value!r} is no whole number; use {least} to {most}") from error
    if not least <= number <= most:
        raise InvalidRequest(f"{name} = {number} is out of range; use {least} to {most}")
    return number


def checked_number(name: str, value: Any, least: float, most: float) -> float:
    """A finite number from `least` to `most`; raises `InvalidRequest` for anything else."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise InvalidRequest(f"{name} = {value!r} is no number; use {least:g} to {most:g}")
    number = float(value)
    if not (math.isfinite(number) and least <= number <= most):
        raise InvalidRequest(f"{name} = {number:g} is out of range; use {least:g} to {most:g}")
    return number
