"""What a search is over: the bundles that are loaded, the clips that are made, and how all of it is told apart."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sora_runtime.bench.frontier import Measured
from sora_runtime.bench.frontier_clips import ClipContest, Judge
from sora_runtime.bench.frontier_record import Setting
from sora_runtime.bench.frontier_space import SettingsSpace, variant_of
from sora_runtime.bundle import Bundle, find_bundle, is_shipped
from sora_runtime.errors import InvalidRequest
from sora_runtime.machine import default_usd_per_hour, this_machine
from sora_runtime.request import ResolvedRequest, resolve
from sora_runtime.reuse_calibration import ClipAsk
from sora_runtime.runtime import Runtime

# What clips of two bundles must share, for one noise to make comparable frames.
_SHARED = ("latent_channels", "spatial_stride", "temporal_stride", "fps", "pad_latent_frames")


@dataclass(frozen=True)
class Task:
    """What is searched.

    Attributes:
        bundle: name or folder of the bundle that presets are for.
        others: names or folders of bundles of the same model in other precisions, or distilled.
        clips: prompts, with pictures if the clips begin with some.
        size: height, width and num_frames; what is absent is the bundle's default.
        reference_steps: of the clips that all others are compared with; None: the bundle's default.
        usd_per_hour: of this machine; None: the default by its cores.
        num_threads: of the engines; None: one for every core.
        judge: of the clips; None where no detector knows the model.
        pairs: clips of a setting that are timed beside the reference's.
    """

    bundle: str
    clips: Sequence[ClipAsk]
    others: Sequence[str] = ()
    size: Mapping[str, int | None] = field(default_factory=dict)
    reference_steps: int | None = None
    usd_per_hour: float | None = None
    num_threads: int | None = None
    judge: Judge | None = None
    pairs: int = 3


@dataclass(frozen=True)
class Opened:
    """A task whose bundles are loaded.

    Attributes:
        bundle: that is searched.
        contest: measures settings.
        space: which settings there are.
        measured: the kind of clips, for presets.
        identity: what tells this task from others, as JSON.
    """

    bundle: Bundle
    contest: ClipContest
    space: SettingsSpace
    measured: Measured
    identity: Mapping[str, Any]


@contextmanager
def opened(task: Task, progress: Callable[[str], None] = lambda _: None) -> Iterator[Opened]:
    """Load the bundles of a task; they are given back at the end.

    Raises:
        InvalidRequest: another bundle is of another model or lies where no preset can name it, or a clip cannot be
            made.
        BundleError: a bundle is missing or damaged.
    """
    root = find_bundle(task.bundle)
    folders = [find_bundle(other) for other in task.others]
    names = [_name_beside(root, folder) for folder in folders]
    with ExitStack() as stack:
        first = stack.enter_context(Runtime.load(root, num_threads=task.num_threads))
        runtimes: dict[str | None, Runtime] = {None: first}
        for name, folder in zip(names, folders, strict=True):
            other = Runtime.load(folder, num_threads=task.num_threads, embedding_cache=first.embedding_cache)
            runtimes[name] = stack.enter_context(other)
            _check_same_model(first.bundle, other.bundle)
        yield _prepare(task, runtimes, progress)


def _prepare(task: Task, runtimes: Mapping[str | None, Runtime], progress: Callable[[str], None]) -> Opened:
    first, machine = runtimes[None], this_machine()
    requests = [resolve(ask.prompt, {**task.size, "image": ask.image}, first.bundle.manifest) for ask in task.clips]
    if len({request.bucket for request in requests}) > 1:
        raise InvalidRequest("some prompts have a picture and some have none; give all of them one, or none")
    steps = task.reference_steps or first.bundle.manifest.facts.defaults.num_inference_steps
    contest = ClipContest(
        runtimes=runtimes,
        clips=task.clips,
        reference=Setting({"num_inference_steps": steps}),
        usd_per_hour=default_usd_per_hour(machine.cores) if task.usd_per_hour is None else task.usd_per_hour,
        size=task.size,
        judge=task.judge,
        pairs=task.pairs,
        progress=progress,
    )
    clip = {**task.size, "image": task.clips[0].image}
    space = SettingsSpace([variant_of(runtime, name, clip, steps) for name, runtime in runtimes.items()])
    bucket = requests[0].bucket
    measured = Measured(
        bucket.task, (bucket.height, bucket.width, bucket.num_frames), machine.name, contest.usd_per_hour
    )
    return Opened(first.bundle, contest, space, measured, _identity(task, runtimes, requests, space, measured))


def _identity(
    task: Task,
    runtimes: Mapping[str | None, Runtime],
    requests: Sequence[ResolvedRequest],
    space: SettingsSpace,
    measured: Measured,
) -> dict[str, Any]:
    """The words name what differs, should a folder hold another search."""
    clips = [(request.prompt, None if request.image is None else request.image.sha256) for request in requests]
    return {
        # Of the files, not of bundle.json: the presets that are written into it leave the model as it is.
        "bundle": {name or "": _files_hash(runtime.bundle) for name, runtime in runtimes.items()},
        "list of prompts": hashlib.sha256(json.dumps(clips).encode()).hexdigest(),
        "kind of clip": [measured.task, *measured.size],
        "reference": task.reference_steps,
        "machine": measured.machine,
        "price": measured.usd_per_hour,
        "number of threads": runtimes[None].num_threads,
        "judge": task.judge is not None,
        "choice of settings": [asdict(variant) for variant in space.variants],
    }


def _files_hash(bundle: Bundle) -> str:
    hashes = {name: record.sha256 for name, record in bundle.manifest.files.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _name_beside(root: Path, other: Path) -> str:
    """How a preset of one bundle names another."""
    if other == root:
        raise InvalidRequest(f"'{other.name}' is the bundle that is searched; leave it out of --with")
    if not (is_shipped(other) or other.parent == root.parent):
        raise InvalidRequest(
            f"the bundle '{other}' lies in another folder than '{root.name}', where no preset finds it; "
            f"put it into '{root.parent}'"
        )
    if not re.fullmatch(r"[^./\\][^/\\]*", other.name):
        raise InvalidRequest(f"'{other.name}' begins with a dot, which no preset can name; rename the bundle")
    return other.name


def _check_same_model(bundle: Bundle, other: Bundle) -> None:
    mine, theirs = bundle.manifest, other.manifest
    if mine.family != theirs.family:
        raise InvalidRequest(
            f"'{other.name}' is of the family {theirs.family} and '{bundle.name}' of {mine.family}; "
            "give another precision of the same model, or a distilled one"
        )
    for name in _SHARED:
        if getattr(mine.facts, name) != getattr(theirs.facts, name):
            raise InvalidRequest(
                f"'{other.name}' has {name} {getattr(theirs.facts, name)} and '{bundle.name}' "
                f"{getattr(mine.facts, name)}; give another precision of the same model, or a distilled one"
            )
