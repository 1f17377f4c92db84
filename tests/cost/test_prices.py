"""Prices: the catalogue reads, the default is a stated median, and what is not a price is refused in a sentence."""

from __future__ import annotations

import csv

import pytest

from sora_runtime.cost import prices
from sora_runtime.cost.check_catalogue import CATALOGUE, TABLES
from sora_runtime.cost.prices import NoPrice, api_prices, exchange_rate, find_gpu, gpu_prices, gpus, usd_per_hour
from sora_runtime.errors import InvalidRequest

# Every spelling of the published latencies.
SPELLINGS = {
    "H100": "h100-sxm",
    "H100 SXM": "h100-sxm",
    "H100 80GB": "h100-sxm",
    "NVIDIA H100 80GB HBM3".removeprefix("NVIDIA "): "h100-sxm",
    "H100/H800": "h100-sxm",
    "H100 NVL": "h100-nvl",
    "H800": "h800",
    "H200": "h200-sxm",
    "H200 SXM": "h200-sxm",
    "h200_nvl": "h200-nvl",
    "H20": "h20",
    "A100": "a100-80gb",
    "A100 80GB": "a100-80gb",
    "A100 SXM": "a100-80gb",
    "A100 40GB": "a100-40gb",
    "A100/A800": "a100-80gb",
    "A800": "a800",
    "L20": "l20",
    "RTX 3090": "rtx-3090",
    "RTX 4090": "rtx-4090",
    "RTX 4090D": "rtx-4090-d",
    "rtx5090": "rtx-5090",
    "RTX PRO 6000": "rtx-pro-6000",
    "RTX PRO 6000 Blackwell": "rtx-pro-6000",
    "B200": "b200",
    "B300": "b300",
    "GB200": "gb200",
}


@pytest.mark.parametrize("text", SPELLINGS)
def test_every_spelling_of_a_gpu(text: str) -> None:
    assert find_gpu(text).id == SPELLINGS[text]


def test_an_unknown_gpu_names_its_neighbours() -> None:
    with pytest.raises(InvalidRequest, match="h100"):
        find_gpu("h100-sxn")


def test_exports_keep_the_compute_of_their_twin() -> None:
    for twin, export in (("h100-sxm", "h800"), ("a100-80gb", "a800")):
        assert gpus()[export].rates == gpus()[twin].rates
        assert gpus()[export].link_bandwidth == 200e9 < gpus()[twin].link_bandwidth


def test_the_default_is_the_median_of_single_gpus_on_demand() -> None:
    chosen = usd_per_hour("H100")
    offers = [
        price
        for price in prices.newest([each for each in gpu_prices("h100-sxm") if each.commitment == "on-demand"])
        if price.gpu_count == 1
    ]
    values = sorted(price.usd_per_gpu_hour for price in offers)
    assert chosen.usd_per_hour == values[len(values) // 2]
    assert (chosen.low, chosen.high) == (values[0], values[-1])
    assert f"median of {len(values)} on-demand offers" in chosen.describe
    assert "2026" in chosen.date and len(chosen.sources) > 3 and "Lambda" in chosen.providers


def test_only_the_newest_price_of_a_provider_counts() -> None:
    nebius = [price for price in gpu_prices("h100-sxm") if price.provider == "Nebius"]
    assert {price.date for price in nebius if price.commitment == "on-demand"} == {"2026", "2026-09-25"}
    assert usd_per_hour("h100-sxm", "nebius").usd_per_hour == 3.85


@pytest.mark.parametrize(
    ("wanted", "usd", "what"),
    [
        ("2.5", 2.5, "as stated"),
        (2.5, 2.5, "as stated"),
        ("2.5 USD/h", 2.5, "as stated"),
        ("Nebius spot", 1.25, "spot, Nebius"),
        ("google cloud", 10.9791, "on-demand, Google Cloud a3-highgpu-1g"),
        ("AWS Capacity", 4.916, "reserved, AWS Capacity Blocks, rented by 8"),
    ],
)
def test_a_price_can_be_named(wanted: str | float, usd: float, what: str) -> None:
    chosen = usd_per_hour("h100-sxm", wanted)
    assert chosen.usd_per_hour == usd
    assert chosen.what == what


def test_a_commitment_is_its_own_median() -> None:
    spot = usd_per_hour("h100-sxm", "spot")
    assert 0.8 <= spot.usd_per_hour < usd_per_hour("h100-sxm").usd_per_hour
    assert "spot" in spot.what


def test_another_currency_is_converted_at_a_dated_rate() -> None:
    rate = exchange_rate("EUR")
    chosen = usd_per_hour("h100-sxm", "2.30 eur")
    assert chosen.usd_per_hour == pytest.approx(2.30 / rate.per_usd)
    assert chosen.date == rate.date and rate.source in chosen.sources
    assert f"{rate.per_usd:g} EUR per USD" in chosen.what


@pytest.mark.parametrize("wanted", ["0", "-1", "-0.5", "nan", "inf", "-inf", "1e400", "0 EUR", 0.0])
def test_a_price_that_is_not_above_zero_is_refused(wanted: str | float) -> None:
    with pytest.raises(InvalidRequest, match=r"^price = .* is not above 0 USD an hour; use one such as 2\.5$"):
        usd_per_hour("h100-sxm", wanted)


@pytest.mark.parametrize("wanted", ["cheap", "spot cheap", "cheap spot", "", "2.5 XYZ", "owner", "---", "- spot"])
def test_a_word_that_names_no_price_is_refused(wanted: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        usd_per_hour("h100-sxm", wanted)
    assert "\n" not in str(caught.value)


def test_a_gpu_without_prices_says_so() -> None:
    with pytest.raises(NoPrice, match=r"no price of h20; state one with --price"):
        usd_per_hour("h20")
    assert usd_per_hour("h20", "1.5").usd_per_hour == 1.5


def test_every_gpu_of_a_price_is_in_the_catalogue() -> None:
    assert {price.gpu for price in gpu_prices()} <= set(gpus())


def test_rates_by_day() -> None:
    assert exchange_rate("cny", "2024-10-31").per_usd == 7.116
    assert exchange_rate("CNY", "2025-06-01").date == "2024-10-31"
    assert exchange_rate("CNY", "2020-01-01").date == "2024-02-29"
    assert exchange_rate("CNY").date > "2026"
    assert exchange_rate("USD").per_usd == 1
    with pytest.raises(InvalidRequest, match="XYZ"):
        exchange_rate("XYZ")


def test_services_are_withdrawn() -> None:
    sora = [price for price in api_prices() if price.provider == "OpenAI" and price.model == "sora-2"]
    assert sora and all(price.offered("2026-09-23") and not price.offered("2026-09-24") for price in sora)


def test_the_catalogue_holds_figures_and_no_quotes() -> None:
    for name in TABLES:
        with (CATALOGUE / name).open(newline="") as file:
            reader = csv.DictReader(file)
            assert "quote" not in (reader.fieldnames or ())
            for row in reader:
                assert None not in row.values() and None not in row, row
                assert len(row.get("note", "")) <= 120, row


def test_the_shipped_tables_are_whole() -> None:
    assert len(gpus()) >= 30 and len(gpu_prices()) >= 170 and len(api_prices()) >= 220
    assert {price.task for price in api_prices()} == {"t2v", "i2v", "r2v", "v2v"}
    assert {price.kind for price in api_prices()} == {"list", "reseller", "plan", "measured", "secondary"}
