"""The language of wan-pocket: which scenes exist, how people describe them, and which are never trained on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (230, 40, 40),
    "green": (40, 185, 60),
    "blue": (50, 100, 245),
    "yellow": (245, 225, 50),
    "orange": (245, 135, 25),
    "purple": (150, 60, 205),
    "pink": (250, 130, 195),
    "cyan": (60, 220, 230),
    "white": (248, 248, 248),
}
BACKGROUNDS: dict[str, RGB] = {
    "black": (10, 10, 10),
    "gray": (125, 125, 125),
    "navy": (18, 24, 85),
    "teal": (10, 105, 100),
    "maroon": (100, 18, 42),
    "beige": (205, 186, 145),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
MOTIONS = ("left", "right", "up", "down", "growing", "shrinking", "spinning", "bouncing", "still")
SPINNING_SHAPES = ("square", "triangle", "star", "cross")

HELD_OUT_TRIPLE_PERCENT = 12
HELD_OUT_SCENE_PERCENT = 5

_COLOUR_WORDS = {"purple": ("purple", "purple", "violet"), "cyan": ("cyan", "cyan", "turquoise")}
_BACKGROUND_WORDS = {"gray": ("gray", "grey"), "beige": ("beige", "beige", "tan")}
_SHAPE_WORDS = {
    "circle": ("circle", "circle", "circle", "disc", "ball"),
    "square": ("square", "square", "square", "box"),
    "cross": ("cross", "cross", "plus", "plus sign"),
    "ring": ("ring", "ring", "ring", "hoop", "donut"),
}
# (gerund, third person) pairs: "a ball moving left" / "a ball that moves left"
_MOTION_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    direction: (
        (f"moving {direction}", f"moves {direction}"),
        (f"moving to the {direction}", f"moves to the {direction}"),
        (f"sliding {direction}", f"slides {direction}"),
        (f"drifting to the {direction}", f"drifts to the {direction}"),
        (f"going {direction}", f"goes {direction}"),
        (f"traveling {direction}", f"travels {direction}"),
        (f"moving {direction}wards", f"moves {direction}wards"),
    )
    for direction in ("left", "right")
}
_MOTION_WORDS |= {
    "up": (
        ("moving up", "moves up"),
        ("rising", "rises"),
        ("moving upwards", "moves upwards"),
        ("floating up", "floats up"),
        ("going up", "goes up"),
    ),
    "down": (
        ("moving down", "moves down"),
        ("falling", "falls"),
        ("moving downwards", "moves downwards"),
        ("sinking", "sinks"),
        ("going down", "goes down"),
    ),
    "growing": (
        ("growing", "grows"),
        ("getting bigger", "gets bigger"),
        ("growing larger", "grows larger"),
        ("expanding", "expands"),
    ),
    "shrinking": (
        ("shrinking", "shrinks"),
        ("getting smaller", "gets smaller"),
        ("becoming smaller", "becomes smaller"),
        ("contracting", "contracts"),
    ),
    "spinning": (
        ("spinning", "spins"),
        ("rotating", "rotates"),
        ("turning around", "turns around"),
        ("spinning in place", "spins in place"),
    ),
    "bouncing": (
        ("bouncing", "bounces"),
        ("bouncing up and down", "bounces up and down"),
        ("hopping", "hops"),
        ("jumping", "jumps"),
    ),
    "still": (
        ("standing still", "stands still"),
        ("staying still", "stays still"),
        ("not moving", "does not move"),
        ("resting", "rests"),
        ("sitting still", "sits still"),
    ),
}
_TEMPLATES = (
    "a {c} {s} {ing} on a {b} background",
    "a {c} {s} {ing} on a {b} background",
    "a {b} scene where a {c} {s} {does}",
    "{c} {s} {ing}, {b} background",
    "a video of a {c} {s} {ing} against a {b} backdrop",
    "on a {b} background, a {c} {s} {does}",
    "the {c} {s} {does} over a {b} background",
    "a {c} {s} that {does} in front of a {b} background",
    "{b} background with a {c} {s} {ing}",
    "a {c} {s} {does} on {b}",
)


@dataclass(frozen=True, order=True)
class Scene:
    """What one clip shows: words from COLOURS, SHAPES, MOTIONS and BACKGROUNDS."""

    colour: str
    shape: str
    motion: str
    background: str

    @property
    def prompt(self) -> str:
        """The plainest caption, as a user would type it."""
        gerund = _MOTION_WORDS[self.motion][0][0]
        text = _TEMPLATES[0].format(c=self.colour, s=self.shape, ing=gerund, b=self.background)
        return _with_articles(text)


def _with_articles(text: str) -> str:
    words = text.split(" ")
    for i in range(len(words) - 1):
        if words[i] == "a" and words[i + 1][0] in "aeiou":
            words[i] = "an"
    return " ".join(words)


def caption(scene: Scene, rng: random.Random) -> str:
    """One of many phrasings of `scene`; templates and synonyms are drawn from `rng`."""
    gerund, third = rng.choice(_MOTION_WORDS[scene.motion])
    text = rng.choice(_TEMPLATES).format(
        c=rng.choice(_COLOUR_WORDS.get(scene.colour, (scene.colour,))),
        s=rng.choice(_SHAPE_WORDS.get(scene.shape, (scene.shape,))),
        b=rng.choice(_BACKGROUND_WORDS.get(scene.background, (scene.background,))),
        ing=gerund,
        does=third,
    )
    return _with_articles(text)


def all_captions() -> Iterator[str]:
    """A sample of every template, word and motion: what the tokenizer learns its pieces from."""
    rng = random.Random(0)
    for scene in all_scenes():
        yield scene.prompt
        for _ in range(4):
            yield caption(scene, rng)


def all_scenes() -> list[Scene]:
    """Every valid scene, sorted: only shapes whose turning is visible may spin."""
    return sorted(
        Scene(colour, shape, motion, background)
        for colour in COLOURS
        for shape in SHAPES
        for motion in MOTIONS
        for background in BACKGROUNDS
        if motion != "spinning" or shape in SPINNING_SHAPES
    )


def _percentile(*words: str) -> int:
    return int.from_bytes(hashlib.sha256("|".join(words).encode()).digest()[:8], "big") % 100


def is_held_out(scene: Scene) -> bool:
    """True for scenes never rendered in training.

    About 12% of the (colour, shape, motion) triples are held out whatever the background, and 5% of the
    remaining full scenes. The choice is a SHA-256 of the words, so it is the same everywhere.
    """
    if _percentile("triple", scene.colour, scene.shape, scene.motion) < HELD_OUT_TRIPLE_PERCENT:
        return True
    words = ("scene", scene.colour, scene.shape, scene.motion, scene.background)
    return _percentile(*words) < HELD_OUT_SCENE_PERCENT


def training_scenes() -> list[Scene]:
    """The scenes that training may render."""
    return [scene for scene in all_scenes() if not is_held_out(scene)]


def held_out_scenes() -> list[Scene]:
    """The scenes kept for scoring."""
    return [scene for scene in all_scenes() if is_held_out(scene)]


def held_out_prompts(count: int, seed: int = 0) -> list[tuple[str, Scene]]:
    """`count` (prompt, scene) pairs from held-out scenes, balanced over motions, half plainly worded.

    Raises ValueError if there are not that many held-out scenes.
    """
    rng = random.Random(seed)
    by_motion: dict[str, list[Scene]] = {motion: [] for motion in MOTIONS}
    for scene in held_out_scenes():
        by_motion[scene.motion].append(scene)
    if count > sum(map(len, by_motion.values())):
        raise ValueError(f"prompts = {count} exceeds the {len(held_out_scenes())} held-out scenes; ask for fewer")
    for scenes in by_motion.values():
        rng.shuffle(scenes)
    chosen: list[tuple[str, Scene]] = []
    while len(chosen) < count:
        for scenes in by_motion.values():
            if scenes and len(chosen) < count:
                scene = scenes.pop()
                chosen.append((scene.prompt if len(chosen) % 2 == 0 else caption(scene, rng), scene))
    return chosen
