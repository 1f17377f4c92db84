"""The page of `sora-bench explore` in headless Chromium: the same numbers and sentences as the command's."""

import html
import json
import random
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sora_runtime.cli.explore import explore
from sora_runtime.cost.estimate import Ask, Estimate, estimate_of
from sora_runtime.cost.explore import explore_page
from sora_runtime.cost.hardware import gpus
from sora_runtime.cost.memory import memory_of
from sora_runtime.cost.models import load_model, model_names
from sora_runtime.cost.prices import COMMITMENTS, gpu_prices
from sora_runtime.cost.roofline import limit_seconds
from sora_runtime.cost.settings import ATTENTIONS, ENGINE_BY_NAME, PRECISIONS
from sora_runtime.errors import InvalidRequest

TODAY = "2026-11-22"
# Rounding alone: the page's exponential and power functions may differ from libm's in the last bit, and the slope of
# a difference over a step of 1e-4 makes that 1e-12.
TOLERANCE = 1e-9
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed (apt-get install chromium)")

# The page answers what it is asked, then says how wide it lies.
ANSWER = """
<pre id="answers"></pre><script>
const answers = ASKS.map((ask) => {
  try {
    const { stages, memory, p10, p50, p90, limit, money, money10, money90, clip } = window.sora.estimate(ask);
    return { stages, memory, p10, p50, p90, limit, money, money10, money90, tokens: clip.tokens };
  } catch (error) {
    return { refused: error.message };
  }
});
document.getElementById("answers").textContent = JSON.stringify({ answers });
</script>
"""

# A window of the browser has a least width; a frame in it may be as narrow as a telephone.
FRAME = """<!doctype html><body style="margin: 0">
<iframe id="page" src="page.html" style="border: 0; width: WIDTHpx; height: 900px"></iframe><pre id="widths"></pre>
<script>document.getElementById("page").addEventListener("load", ({ target }) => {
  const { scrollWidth, clientWidth } = target.contentDocument.documentElement;
  document.getElementById("widths").textContent = `${scrollWidth} ${clientWidth}`;
});</script></body>"""


@pytest.fixture(scope="module")
def page() -> str:
    return explore_page(TODAY)


def dom_of(page: str, folder: Path, fragment: str = "", name: str = "page.html") -> str:
    """The document after its scripts have run."""
    path = folder / name
    path.write_text(page, encoding="utf-8")
    command = [
        str(BROWSER),
        "--headless=new",
        "--no-sandbox",  # without it Chromium refuses to run as root, as it does in a container
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1280,900",
        "--allow-file-access-from-files",  # else a page from disk may not look into its own frame
        "--dump-dom",
        path.as_uri() + fragment,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def answers_to(asks: list[dict[str, object]], page: str, folder: Path) -> dict[str, object]:
    script = ANSWER.replace("ASKS", json.dumps(asks))
    dom = dom_of(page.replace("</body>", script + "</body>"), folder)
    return json.loads(html.unescape(re.search(r'<pre id="answers">(.*?)</pre>', dom, re.DOTALL)[1]))


def random_ask(random_: random.Random) -> Ask:
    """Settings that no refusal meets, over everything that the page can set."""
    model, gpu = load_model(random_.choice(model_names())), random_.choice(list(gpus()))
    step = model.strides.spatial_stride * model.strides.patch_size[1]
    ask = Ask(
        model.name,
        gpu=gpu,
        gpu_count=random_.choice([1, 1, 2, 3, 4, 8]),
        width=step * random_.randint(-(-400 // step), 1920 // step),
        height=step * random_.randint(-(-256 // step), 1088 // step),
        seconds=random_.choice([None, random_.uniform(0.5, 20)]) if model.strides.patch_size[0] == 1 else None,
        fps=random_.choice([None, 12, 29.97]),
        num_inference_steps=random_.choice([None, random_.randint(1, 100)]),
        guidance_scale=random_.choice([None, 1.0, 6.0]),
        image=random_.random() < 0.3,
        precision=random_.choice(PRECISIONS),
        engine=random_.choice(list(ENGINE_BY_NAME)),
        attention=random_.choice([None, *ATTENTIONS]),
        compiled=random_.choice([None, True, False]),
        step_reuse=random_.choice([None, random_.uniform(0, 0.8)]),
        price=random_.choice([None, random_.uniform(0.2, 9), *commitments(gpu)]),
        assumptions=random_.choice([{}, {"utilisation": random_.uniform(0.1, 1), "discarded_share": 0.2, "pue": 1.2}]),
    )
    return ask if ask.seconds else replace(ask, num_frames=random_.choice([None, model.defaults.frames]))


def commitments(gpu: str) -> list[str]:
    known = {price.commitment for price in gpu_prices(gpu)}
    return [name for name in COMMITMENTS if name in known]


def figures(estimate: Estimate) -> dict[str, float]:
    """Every number that the page shows of an estimate."""
    prediction, money = estimate.prediction, estimate.money
    memory = memory_of(estimate.model, estimate.clip, estimate.gpu, replace(estimate.setting, offload=""))
    found = {"p10": prediction.p10, "p50": prediction.p50, "p90": prediction.p90, "tokens": estimate.clip.tokens}
    found["limit"] = limit_seconds(estimate.clip, estimate.gpu, estimate.setting.precision, estimate.ask.gpu_count)
    found |= {f"memory {name}": getattr(memory, name) for name in ("weights", "activations", "resident", "peak")}
    for stage, seconds in prediction.stages.items():
        found |= {f"{stage} {name}": value for name, value in seconds.items()}
    if money is not None:
        found |= {f"usd {name}": value for name, value in money.items.items() if name != "electricity"}
        found |= {"usd_per_clip": money.usd_per_clip, "usd_per_second": money.usd_per_second}
        found |= {"wh": money.wh or 0.0, "usd p10": estimate.money_at(prediction.p10).usd_per_second}
        found |= {"usd p90": estimate.money_at(prediction.p90).usd_per_second}
    return found


def figures_of_page(answer: dict) -> dict[str, float]:
    found = {name: answer[name] for name in ("p10", "p50", "p90", "tokens", "limit")}
    found |= {f"memory {name}": answer["memory"][name] for name in ("weights", "activations", "resident", "peak")}
    for stage, seconds in answer["stages"].items():
        found |= {f"{stage} {name}": value for name, value in seconds.items()}
    money = answer["money"]
    if money is not None:
        found |= {f"usd {name}": value for name, value in money["items"].items()}
        found |= {"usd_per_clip": money["usd_per_clip"], "usd_per_second": money["usd_per_second"]}
        found |= {"wh": money["wh"] or 0.0, "usd p10": answer["money10"]["usd_per_second"]}
        found |= {"usd p90": answer["money90"]["usd_per_second"]}
    return found


def assert_equal(asks: list[Ask], page: str, folder: Path) -> None:
    answers = answers_to([asdict(ask) for ask in asks], page, folder)["answers"]
    for ask, answer in zip(asks, answers, strict=True):
        assert "refused" not in answer, (ask, answer)
        expected, found = figures(estimate_of(ask)), figures_of_page(answer)
        assert found.keys() == expected.keys(), ask
        # A class that is hidden behind the others is the difference of two large sums: absolute, against the clip.
        for name, value in expected.items():
            slack = 1e-12 * expected["p50"] if " overhead" in name or " offload" in name else 0.0
            assert found[name] == pytest.approx(value, rel=TOLERANCE, abs=slack), (name, ask)
        for name in ("p10", "p50", "p90", "usd_per_clip", "usd_per_second"):
            if name in expected:
                assert f"{found[name]:.4g}" == f"{expected[name]:.4g}", (name, ask)


@browser
def test_twenty_random_settings_equal_the_estimate(page: str, tmp_path: Path) -> None:
    random_ = random.Random(4)
    assert_equal([random_ask(random_) for _ in range(20)], page, tmp_path)


@browser
def test_every_model_and_every_gpu_equal_the_estimate(page: str, tmp_path: Path) -> None:
    names, kinds = model_names(), list(gpus())
    count = max(len(names), len(kinds))
    assert_equal([Ask(names[i % len(names)], gpu=kinds[i % len(kinds)]) for i in range(count)], page, tmp_path)


@browser
def test_the_page_refuses_in_the_same_sentence(page: str, tmp_path: Path) -> None:
    wan = "wan2.1-t2v-14b"
    asks = [
        Ask(wan, num_frames=0),
        Ask(wan, num_frames=80),
        Ask(wan, width=1000),
        Ask(wan, height=8),
        Ask(wan, width=20_000),
        Ask(wan, num_inference_steps=0),
        Ask(wan, seconds=0),
        Ask(wan, seconds=5, num_frames=81),
        Ask(wan, fps=0),
        Ask(wan, guidance_scale=-1),
        Ask(wan, gpu_count=0),
        Ask(wan, step_reuse=1.0),
        Ask(wan, price=-2.5),
        Ask(wan, assumptions={"utilisation": 0.0}),
        Ask(wan, assumptions={"clips_per_start": 0.5}),
        Ask(wan, precision="int3"),
        Ask(wan, engine="nothing"),
        Ask(wan, attention="none"),
        Ask("cogvideox1.5-5b", width=1360, height=100),
    ]
    answers = answers_to([asdict(ask) for ask in asks], page, tmp_path)["answers"]
    for ask, answer in zip(asks, answers, strict=True):
        with pytest.raises(InvalidRequest) as refusal:
            estimate_of(ask)
        assert answer.get("refused") == str(refusal.value)


@browser
def test_the_address_keeps_the_state_and_the_page_shows_its_numbers(page: str, tmp_path: Path) -> None:
    state = "#model=wan2.2-ti2v-5b&gpu=rtx-4090&seconds=3&price=0.45&utilisation=0.8&guidance=false"
    dom = dom_of(page, tmp_path, state)
    assumptions = {"utilisation": 0.8}
    ask = Ask("wan2.2-ti2v-5b", gpu="rtx-4090", seconds=3, price=0.45, guidance_scale=1, assumptions=assumptions)
    shown = re.search(r'id="usd-per-second">\$([\d.,]+)<', dom)[1]
    assert float(shown.replace(",", "")) == float(f"{estimate_of(ask).money.usd_per_second:.4g}")
    assert f'href="{state.replace("&", "&amp;")}"' in dom
    assert dom.count('<g class="gpu') > 10
    assert re.search(r'<p id="refusal" role="alert" hidden="">', dom)


@browser
def test_a_bad_state_is_answered_with_a_sentence(page: str, tmp_path: Path) -> None:
    dom = dom_of(page, tmp_path, "#model=wan2.1-t2v-14b&num_frames=0")
    assert '<p id="refusal" role="alert">frames = 0 is out of range; use 1 to 100000</p>' in dom


@browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page: str, tmp_path: Path, width: int) -> None:
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    dom = dom_of(FRAME.replace("WIDTH", str(width)), tmp_path, name="frame.html")
    scroll, client = map(int, re.search(r'<pre id="widths">(\d+) (\d+)<', dom).groups())
    assert scroll <= client <= width


def test_the_page_is_one_small_file_that_loads_nothing(page: str) -> None:
    assert len(page.encode()) < 400_000
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|img|link|iframe)[^>]*\b(src|href)=", page)
    assert not re.search(r"\b(fetch|XMLHttpRequest|import)\s*\(|@import|url\(", page)


def test_withdrawn_prices_are_left_out(page: str) -> None:
    offered = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["api_prices"]
    later = json.loads(re.search(r'id="data">(.*?)</script>', explore_page("2025-01-01"), re.DOTALL)[1])["api_prices"]
    assert 0 < len(offered) < len(later)


def test_the_command_writes_the_page_and_offers_own_models(tmp_path: Path) -> None:
    card = tmp_path / "mine.toml"
    folder = Path(__file__).parents[2] / "python/sora_runtime/cost/catalogue/models"
    card.write_text((folder / "wan2.1-t2v-1.3b.toml").read_text().replace('"wan2.1-t2v-1.3b"', '"mine"', 1))
    app = typer.Typer()
    app.command()(explore)
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["--out", str(out), "--model", str(card)])
    assert result.exit_code == 0, result.output
    assert '"mine":{"title":"' in out.read_text()
    assert str(out) in result.output.replace("\n", "")
