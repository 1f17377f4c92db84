"""What a request for an estimate says, read and checked: types, sizes of numbers, words for sharing and reuse."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sora_runtime.cost import settings
from sora_runtime.cost.profile_path import is_this_machine
from sora_runtime.cost.settings import Engine, Parallelism
from sora_runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from sora_runtime.cost.estimate import Ask

_TEXTS = ("model", "gpu", "precision", "engine", "attention", "parallelism")
_WHOLE = ("gpu_count", "width", "height", "num_frames", "num_inference_steps")
_REAL = ("seconds", "fps", "guidance_scale", "pace")
_MOST_DIGITS = 30  # longer integers are refused unread: Python itself refuses to print the longest
_SHOWN = 60
_LONGEST = 4096  # characters of a text, as of a path
_WAYS = re.compile(r"(cfg|ulysses|ring|tensor)\s*[=x]?\s*(\d{1,4})", re.ASCII)


def checked(ask: Ask) -> Ask:
    """The same with plain numbers and texts.

    Raises:
        InvalidRequest: a value is of the wrong type, empty, or too long to be meant.
    """
    found: dict[str, object] = {"model": os.fspath(ask.model) if isinstance(ask.model, os.PathLike) else ask.model}
    for name in _TEXTS:
        value = found.get(name, getattr(ask, name))
        optional = name in {"attention", "parallelism"}
        if value is not None or not optional:
            _text(name, value)
    found |= {name: _whole(name, getattr(ask, name)) for name in _WHOLE}
    found |= {name: _real(name, getattr(ask, name)) for name in _REAL}
    if not isinstance(ask.assumptions, Mapping):
        raise InvalidRequest(f"assumptions = {_shown(ask.assumptions)} is no mapping; use one such as {{'pue': 1.2}}")
    pace = found["pace"]
    if pace is not None:
        if not is_this_machine(str(found.get("gpu", ask.gpu))):
            raise InvalidRequest(f"pace = {pace} is of this machine; ask with gpu = 'this-machine', or leave it out")
        if not 1e-6 <= float(pace) <= 1e3:  # type: ignore[arg-type]
            raise InvalidRequest(f"pace = {pace} is out of range; use seconds as bench.pace reads them, 1e-6 to 1000")
    found["assumptions"] = {str(name): _real(str(name), value) for name, value in ask.assumptions.items()}
    for name in ("image", "compiled"):
        value = getattr(ask, name)
        if not isinstance(value, bool) and (value is not None or name == "image"):
            raise InvalidRequest(f"{name} = {_shown(value)} is neither True nor False; give one")
    for name in ("price", "step_reuse"):
        value = getattr(ask, name)
        if not (value is None or isinstance(value, str)):
            _real(name, value)  # a price is shown as it was given
    return replace(ask, **found)  # type: ignore[arg-type]


def _shown(value: object) -> str:
    """What a sentence shows of a value: its representation on one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer that Python refuses to print
        text = f"of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} = {_shown(value)} is not text; give a name")
    if not value.strip():
        raise InvalidRequest(f"{name} is empty; give a name")
    if len(value) > _LONGEST or "\0" in value:
        raise InvalidRequest(f"{name} = {_shown(value)} is no name; give one of at most {_LONGEST} characters")


def _whole(name: str, value: object) -> int | None:
    if value is None and name != "gpu_count":
        return None
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise InvalidRequest(f"{name} = {_shown(value)} is not a whole number; give one")
    if abs(number) >= 10**_MOST_DIGITS:
        raise InvalidRequest(f"{name} has more than {_MOST_DIGITS} digits; give a smaller number")
    return number


def _real(name: str, value: object) -> float | None:
    if value is None and name in _REAL:
        return None
    try:
        number = None if isinstance(value, bool | str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = None
    except OverflowError:
        raise InvalidRequest(f"{name} is beyond all numbers; give a smaller one") from None
    if number is None:
        raise InvalidRequest(f"{name} = {_shown(value)} is not a number; give one")
    return number


def parallelism_of(text: str | None, gpus: int, *, guided: bool, engine: Engine) -> Parallelism:
    """How `gpus` GPUs share a clip: the engine's usual way, or exactly what the words say.

    Args:
        text: such as "cfg2 ulysses4 vae"; GPUs that it leaves over share by Ulysses if it does not name that. None: the
            usual way.
        gpus: at least 1.
        guided: whether a step has two evaluations.
        engine: decides the usual way.

    Raises:
        InvalidRequest: a word means nothing, a way is named twice, or the product is not `gpus`.
    """
    if text is None:
        return settings.parallelism_in("", gpus, guided=guided, engine=engine)
    remedy = 'use words such as "cfg2 ulysses4", with tensor, ring and vae beside them'
    rest = _WAYS.sub(" ", text.lower()).replace(",", " ").split()
    ways = _WAYS.findall(text.lower())
    if set(rest) - {"vae"} or not ways:
        raise InvalidRequest(f"parallelism = {text!r} is not understood; {remedy}")
    sizes = {name: int(size) for name, size in ways}
    if len(sizes) < len(ways) or 0 in sizes.values():
        raise InvalidRequest(f"parallelism = {text!r} names a way twice or with 0 GPUs; {remedy}")
    plan = Parallelism(**sizes, vae="vae" in rest)
    if "ulysses" not in sizes and gpus % plan.gpus == 0:
        plan = replace(plan, ulysses=gpus // plan.gpus)
    if plan.gpus != gpus:
        raise InvalidRequest(f"parallelism = {text!r} makes {plan.gpus} GPUs of {gpus}; make the product equal")
    return plan


def reuse_of(wanted: str | float | None) -> tuple[str, float | None]:
    """A method with its usual share (None), or "stated" and a share of steps.

    Raises:
        InvalidRequest: neither a method nor a share.
    """
    if wanted is None:
        return "", None
    try:
        share = float(wanted)
    except ValueError:
        method, _, _ = settings.reuse_in(str(wanted))
        if not method:
            raise InvalidRequest(
                f"step_reuse = {wanted!r} is neither a share nor a method; use 0.4, teacache, easycache or cache-dit"
            ) from None
        return method, None
    if not 0 <= share < 1:
        raise InvalidRequest(f"step_reuse = {share:g} is out of range; use 0 to below 1, the share of steps reused")
    return ("stated", share) if share else ("", None)


def left_to_the_model(ask: Ask) -> Iterator[tuple[str, str, str]]:
    """What the request left to the model: name, value and origin of the assumption."""
    length = ask.num_frames if ask.seconds is None else ask.seconds
    inputs = {
        "width": ask.width,
        "height": ask.height,
        "frames": length,
        "fps": ask.fps,
        "steps": ask.num_inference_steps,
        "guidance": ask.guidance_scale,
    }
    unsaid = [name for name, value in inputs.items() if value is None]
    if unsaid:
        yield "default", ", ".join(unsaid), "the model's reference pipeline"
