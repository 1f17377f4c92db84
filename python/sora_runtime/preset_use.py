"""Presets at work: finds the one that a request names, puts its settings under the request, opens its bundle."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .bundle import Bundle, Verify, find_bundle
from .errors import BundleError, InvalidRequest
from .manifest import Manifest
from .presets import PRESET_SETTINGS, Preset
from .sampling import GuidanceRule, StepReuse

SIZE = ("height", "width", "num_frames")
# What says the steps: a request that names one of these gets none of them from a preset.
_STEPS = {"num_inference_steps", "sigmas", "timesteps"}
# What says something of a policy of step reuse, and nothing of another one.
_OF_REUSE = {"reuse_threshold", "force_step_reuse"}
# Settings that JSON holds as an object of a record's fields.
_RECORDS = {"guidance_method": GuidanceRule, "step_reuse": StepReuse}


@dataclass(frozen=True)
class UsedPreset:
    """The preset under a request.

    `changed` are the settings that the request has otherwise; if there are any, the recorded quality and cost are not
    this clip's.
    """

    name: str
    preset: Preset
    changed: tuple[str, ...] = ()


def find_preset(manifest: Manifest, name: object) -> Preset:
    """The preset of this name.

    Raises:
        InvalidRequest: there is none; the message lists those there are.
    """
    if isinstance(name, str) and name in manifest.presets:
        return manifest.presets[name]
    if not manifest.presets:
        raise InvalidRequest(
            f"preset = {name!r}, and '{manifest.name}' has no presets; `sora-bench frontier` writes them into a bundle"
        )
    raise InvalidRequest(f"preset = {name!r} is none of '{manifest.name}'; use {' or '.join(manifest.presets)}")


def settings_of(name: str, preset: Preset, manifest: Manifest) -> dict[str, Any]:
    """A preset's settings as fields of a request, their values as they lie there.

    Raises:
        BundleError: it holds a setting that this release does not know, or a record that is none.
    """
    fields: dict[str, Any] = {}
    for setting, value in preset.settings.items():
        if setting not in PRESET_SETTINGS:
            raise damaged(name, manifest, f"'{setting}' is no setting of a preset")
        if value is None:
            continue
        if setting in _RECORDS and isinstance(value, dict):
            try:
                fields[setting] = _RECORDS[setting](**{key: _tuples(part) for key, part in value.items()})
            except (TypeError, ValueError) as error:
                raise damaged(name, manifest, f"{setting}: {error}") from error
        else:
            fields[setting] = value
    return fields


def damaged(name: str, manifest: Manifest, why: object) -> BundleError:
    """What is raised where a preset cannot be used as it lies in the bundle."""
    return BundleError(
        f"preset '{name}' of '{manifest.name}' cannot be used ({why}); write it anew with `sora-bench frontier`"
    )


def under(given: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A request's fields with a preset's settings where the request says nothing of the same."""
    levels = settings.get("sigmas") or settings.get("timesteps") or ()
    said = _STEPS & given.keys()
    meant = said == {"num_inference_steps"} and given["num_inference_steps"] == len(levels)
    left_out = (_STEPS if said and not meant else set()) | (_OF_REUSE if "step_reuse" in given else set())
    return {name: value for name, value in settings.items() if name not in left_out} | dict(given)


def sized(given: Mapping[str, Any], name: str, preset: Preset) -> dict[str, Any]:
    """A request's fields with the size that a preset was measured at, since its settings hold for no other.

    Raises:
        InvalidRequest: the request is for another size, length or task; or the preset is for another bundle.
    """
    if preset.bundle is not None:
        raise InvalidRequest(
            f"preset '{name}' is for the bundle '{preset.bundle}'; load it with Runtime.load(..., preset='{name}') "
            f"or `sora-bench run --preset {name}`"
        )
    task = "t2v" if given.get("image") is None else "i2v"
    fields = {size: getattr(preset, size) for size in SIZE} | dict(given)
    other = [size for size in SIZE if fields[size] != getattr(preset, size)]
    if other or task != preset.task:
        asked = f"{other[0]} = {fields[other[0]]!r}" if other else f"this is {task}"
        raise InvalidRequest(
            f"preset '{name}' was measured on clips of {preset.clip} and {asked}; ask for such a clip, or write a "
            "preset for yours with `sora-bench frontier`"
        )
    return fields


def open_preset(bundle: Bundle, name: str, verify: Verify) -> Bundle:
    """The bundle that a preset's settings are for, with every preset of `bundle` that is for it.

    Raises:
        InvalidRequest: there is no such preset.
        BundleError: the other bundle is missing, damaged or of another model.
    """
    preset = find_preset(bundle.manifest, name)
    if preset.bundle is None:
        return bundle
    beside = bundle.root.parent / preset.bundle
    try:
        other = Bundle.load(find_bundle(beside if beside.is_dir() else preset.bundle), verify=verify)
    except BundleError as error:
        raise damaged(name, bundle.manifest, f"its bundle: {error}") from error
    if other.manifest.family != bundle.manifest.family:
        raise damaged(name, bundle.manifest, f"'{other.name}' is of the family {other.manifest.family}")
    brought = _for_bundle(bundle.manifest.presets.items(), preset.bundle)
    presets = {**other.manifest.presets, **brought}
    return replace(other, manifest=other.manifest.model_copy(update={"presets": presets}))


def _for_bundle(presets: Iterable[tuple[str, Preset]], bundle: str) -> dict[str, Preset]:
    """Those that are for this other bundle, as its own."""
    return {name: preset.model_copy(update={"bundle": None}) for name, preset in presets if preset.bundle == bundle}


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
