"""Files of rows: each is answered or refused in its own place, whatever the file is made of."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest

from sora_runtime.cost.batch import ADDED, COLUMNS, DECISIVE, Answer, answers, as_csv, read_batch
from sora_runtime.cost.estimate import Ask, estimate_of
from sora_runtime.cost.predict import predict
from sora_runtime.cost.rates import fitted
from sora_runtime.cost.rows import case_of, published
from sora_runtime.errors import InvalidRequest

HEADER = "model,width,height,frames,steps,cfg,gpu,gpu_count,precision,engine,optimisations,scope"
GOOD = "wan2.1-t2v-14b,1280,720,81,50,1,h100-sxm,1,bf16,diffusers,FA2,end_to_end"
NAMES = HEADER.split(",")


def row(**cells: object) -> str:
    """The good row with some cells changed, as CSV."""
    values = dict(zip(NAMES, GOOD.split(","), strict=True)) | {name: str(value) for name, value in cells.items()}
    file = io.StringIO()
    csv.writer(file, lineterminator="").writerow(values.values())
    return file.getvalue()


def answered(path: Path, text: str | bytes) -> list[Answer]:
    path = path / "rows.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(answers(read_batch(path), fitted()))


def refusals(path: Path, *lines: str) -> list[str]:
    """Why each row under the usual header is refused; "" if it is answered."""
    found = answered(path, "\n".join([HEADER, *lines]) + "\n")
    for each in found:
        assert (each.prediction is None) == bool(each.refused)
        assert "\n" not in each.refused
    return [each.refused for each in found]


def test_a_row_is_answered_as_its_case_and_as_the_estimate(tmp_path: Path) -> None:
    (found,) = answered(tmp_path, f"{HEADER}\n{GOOD}\n")
    expected = estimate_of(Ask("wan2.1-t2v-14b", width=1280, height=720, num_frames=81, attention="fa2")).prediction
    assert found.prediction == expected
    assert (found.record.line, found.refused) == (2, "")
    assert float(found.added["predicted_p50"]) == pytest.approx(expected.p50, rel=1e-5)


def test_the_catalogue_s_own_rows(tmp_path: Path) -> None:
    """Every row that the fit was made from is answered, with what its case gives."""
    rows = published()
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    found = answered(tmp_path, file.getvalue())
    assert [each.record.cells["id"] for each in found] == [each["id"] for each in rows]
    assert sum(not each.refused for each in found) >= fitted().about["rows"]
    assert set(rows[0]) == set(COLUMNS)
    for each in random.Random(3).sample([each for each in found if each.prediction], 40):
        case = case_of(each.record.cells)
        at = predict(case.clip, case.gpu, case.setting, fitted(), scope=case.scope, assumed=case.assumed)
        assert each.prediction == at


def test_equal_rows_share_an_answer_and_no_others_do(tmp_path: Path) -> None:
    """Every column that decides anything is part of the key: a change of one cell is seen."""
    changes: dict[str, object] = {
        "model": "wan2.1-t2v-1.3b",
        "width": 640,
        "height": 640,
        "frames": 41,
        "steps": 20,
        "cfg": 0,
        "gpu": "h200-sxm",
        "gpu_count": 2,
        "precision": "fp8",
        "engine": "sglang",
        "optimisations": "SageAttention",
        "scope": "vae_decode",
    }
    assert set(changes) == set(DECISIVE) - {"task"}
    found = answered(tmp_path, "\n".join([HEADER, GOOD, GOOD, *(row(**{n: v}) for n, v in changes.items())]))
    first, second, *others = [each.prediction for each in found]
    assert first is second
    for name, other in zip(changes, others, strict=True):
        assert other is not None, name
        assert other.p50 != first.p50, name
    text = f"{HEADER},task\n{GOOD},t2v\n{GOOD},i2v\n"
    plain, pictured = answered(tmp_path, text)
    assert pictured.prediction.p50 > plain.prediction.p50


def test_bad_rows_are_reported_in_their_place(tmp_path: Path) -> None:
    found = refusals(tmp_path, GOOD, row(frames=0), GOOD, row(gpu="h10"), "x,y", GOOD)
    assert [bool(each) for each in found] == [False, True, False, True, True, False]
    assert found[1] == "frames = 0 is out of range; give 1 or more"
    assert "the nearest are h100-sxm" in found[3]
    assert found[4].startswith("the row has 2 fields and the header 12")


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ({"model": ""}, "model is empty"),
        ({"model": "wan2.1-t2v-14"}, "use wan2.1-t2v-14b"),
        ({"model": "a" * 300}, "is no path (File name too long)"),
        ({"model": "a" * 5000}, "is no name"),
        ({"model": "/dev/null"}, "cannot be read"),
        ({"gpu": "🚀 наш"}, "gpu = '🚀 наш' is not in the catalogue; the nearest are"),
        ({"gpu": "\0"}, "is no name"),
        ({"gpu": "x" * 100_000}, "is no name"),
        ({"gpu_count": "1e12"}, "gpu_count = 1e12 is out of range"),
        ({"gpu_count": "5000"}, "gpu_count = 5000 is out of range; use 1 to 4096"),
        ({"gpu_count": "0"}, "gpu_count = 0 is out of range; give 1 or more"),
        ({"gpu_count": "two"}, "gpu_count = 'two' is not a number"),
        ({"gpu_count": "1.5"}, "gpu_count = '1.5' is not a whole number"),
        ({"gpu_count": "3", "optimisations": "ulysses 4"}, "share a clip over 4 GPUs and gpu_count = 3"),
        ({"frames": "80"}, "num_frames = 80 is not 4k+1; use 77 or 81"),
        ({"frames": "nan"}, "frames = nan is out of range"),
        ({"frames": "1e400"}, "frames = 1e400 is out of range"),
        ({"frames": "9" * 5000}, "frames = 999999"),
        ({"width": "1281"}, "use 1280 or 1296"),
        ({"width": "1e308"}, "width = 1e308 is out of range"),
        ({"height": "-720"}, "height = -720 is out of range"),
        ({"steps": "1e9"}, "steps = 1000000000 is out of range; use 1 to 10000"),
        ({"cfg": "maybe"}, "cfg = 'maybe' is not a number"),
        ({"cfg": "-1"}, "cfg = -1 is out of range"),
        ({"precision": "int3"}, "precision = 'int3' is not known; use one of bf16"),
        ({"scope": "everything"}, "scope = 'everything' is not known"),
    ],
)
def test_what_a_row_is_refused_for(tmp_path: Path, cells: dict[str, str], sentence: str) -> None:
    before, refused, after = refusals(tmp_path, GOOD, row(**cells), GOOD)
    assert (before, after) == ("", "")
    assert sentence in refused
    assert len(refused) < 700


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon"])
def test_a_slip_in_a_figure_that_is_not_read(tmp_path: Path, seconds: str) -> None:
    first, second = answered(tmp_path, f"{HEADER},seconds\n{GOOD},{seconds}\n{GOOD},1676\n")
    assert first.refused.startswith(f"seconds = {seconds}" if seconds != "soon" else "seconds = 'soon'")
    assert second.refused == ""


def test_a_scope_is_a_part_of_the_clip(tmp_path: Path) -> None:
    whole, denoise, step, decode = (
        each.prediction.p50
        for each in answered(
            tmp_path,
            "\n".join(
                [HEADER, *(row(scope=scope) for scope in ("end_to_end", "denoise_only", "per_step", "vae_decode"))]
            ),
        )
    )
    assert denoise + decode < whole
    assert step == pytest.approx(denoise / 50)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\xff\xfem\x00o\x00", "is not text in UTF-8"),
        (b"width,height\n1,2\n", "has no column model and no column gpu"),
        (b"model,width\nwan,1\n", "has no column gpu"),
        (b"model,gpu,gpu\n", "names the column 'gpu' twice"),
        (b"model,gpu,,\n", "has no name for column 3"),
        (b'"model,gpu\n', "has no column"),
        (b"model;gpu\nwan;h100\n", "has no column"),
        (b"m" * 200_000, "has no column"),
    ],
)
def test_what_is_no_file_of_rows(tmp_path: Path, text: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        answered(tmp_path, text)


@pytest.mark.parametrize("path", ["", "absent.csv", "a" * 300, "\0", "x/y"])
def test_what_cannot_be_read(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidRequest, match="give a CSV file whose first line names columns"):
        read_batch(tmp_path / path)


def test_the_header_alone_is_an_empty_answer(tmp_path: Path) -> None:
    assert answered(tmp_path, HEADER) == []
    batch = read_batch(tmp_path / "rows.csv")
    assert as_csv(batch, []) == f"{HEADER},{','.join(ADDED)}\n"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_marks_of_spreadsheets(tmp_path: Path, end: str, mark: str, last: bool) -> None:
    text = mark + end.join([HEADER, GOOD, "", row(frames=5)]) + (end if last else "")
    found = answered(tmp_path, text)
    assert [(each.record.line, each.refused) for each in found] == [(2, ""), (4, "")]


def test_unknown_columns_stay_and_added_ones_are_replaced(tmp_path: Path) -> None:
    text = f'note,{HEADER},predicted_p50,refused_because\n"a, b",{GOOD},1,old\nπ,{GOOD.replace("81", "80")},,\n'
    found = answered(tmp_path, text)
    batch = read_batch(tmp_path / "rows.csv")
    assert batch.unknown == ("note",)
    rows = list(csv.DictReader(io.StringIO(as_csv(batch, found))))
    assert list(rows[0]) == ["note", *NAMES, *ADDED]
    assert [each["note"] for each in rows] == ["a, b", "π"]
    assert rows[0]["predicted_p50"] == f"{found[0].prediction.p50:.6g}"
    assert rows[0]["refused_because"] == ""
    assert rows[1]["predicted_p50"] == ""
    assert rows[1]["refused_because"].startswith("num_frames = 80")


def test_a_batch_s_own_answer_can_be_asked_again(tmp_path: Path) -> None:
    found = answered(tmp_path, f"{HEADER}\n{GOOD}\n{row(frames=80)}\n")
    text = as_csv(read_batch(tmp_path / "rows.csv"), found)
    again = answered(tmp_path, text)
    assert as_csv(read_batch(tmp_path / "rows.csv"), again) == text


def test_an_unclosed_quote_gives_up_one_line(tmp_path: Path) -> None:
    found = refusals(tmp_path, GOOD, f'"{GOOD}', GOOD, GOOD, f'{GOOD[:-10]}"end"x', GOOD, f'"{GOOD}')
    assert [bool(each) for each in found] == [False, True, False, False, True, False, True]
    assert found[1].startswith("the quotes of the row do not close")
    assert found[-1].startswith("the quotes of the row do not close")


def test_two_unclosed_quotes_do_not_swallow_the_rows_between(tmp_path: Path) -> None:
    found = answered(tmp_path, "\n".join([HEADER, GOOD, f'"{GOOD}', GOOD, f'{GOOD}"', GOOD, f'"{GOOD}', GOOD]))
    assert [each.record.line for each in found] == [2, 3, 4, 5, 6, 7, 8]
    good = [each.record.line for each in found if not each.refused]
    assert set(good) >= {2, 4, 6, 8}
    assert {3, 7} <= {each.record.line for each in found} - set(good)


def test_a_cell_may_hold_several_lines(tmp_path: Path) -> None:
    first, second = answered(tmp_path, f'{HEADER},note\n{GOOD},"one\ntwo\n\nthree"\n{GOOD},x\n')
    assert (first.record.line, second.record.line) == (2, 6)
    assert first.record.cells["note"] == "one\ntwo\n\nthree"
    assert first.prediction is second.prediction


def test_a_row_longer_than_the_reader_s_limit(tmp_path: Path) -> None:
    before, long, after = answered(tmp_path, f"{HEADER},note\n{GOOD},a\n{GOOD},{'x' * 200_000}\n{GOOD},b\n")
    assert before.refused == after.refused == ""
    assert long.refused == f"the row has {len(GOOD) + 200_001:,} characters; shorten it"


def damaged(random_: random.Random) -> tuple[bytes, int]:
    """A good file with some places damaged, and how many rows must be answered all the same."""
    kinds = [GOOD, row(frames=5), row(gpu="RTX 4090"), row(model="ltx-2", height=704)]
    lines = [HEADER, *random_.choices(kinds, k=8)]
    quotes, others = ['"', '""', '"\n'], [*",\n\r\0-'\t;\x85\u2028🚀", "1e999", "nan", "9" * 40]
    junk = random_.choice([others, [*others, *quotes]])
    touched = {random_.randrange(1, len(lines)) for _ in range(random_.randrange(6))}
    for at in touched:
        place = random_.randrange(len(lines[at]) + 1)
        lines[at] = lines[at][:place] + random_.choice(junk) + lines[at][place + random_.choice([0, 0, 1, 7]) :]
    # A quote may reach its neighbour's: then both rows are odd, and what lies between them.
    sure = 8 - len(touched) if junk is others else 1
    return random_.choice(["\n", "\r\n"]).join(lines).encode(), sure


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_answered_row_by_row(tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    refused = 0
    for _ in range(60):
        text, sure = damaged(random_)
        found = answered(tmp_path, text)
        batch = read_batch(tmp_path / "rows.csv")
        lines = [each.record.line for each in found]
        assert lines == sorted(set(lines))
        assert sum(bool(each.prediction) for each in found) >= sure
        for each in found:
            assert (each.prediction is None) == bool(each.refused)
            assert each.prediction is None or 0 < each.prediction.p10 < each.prediction.p50 < each.prediction.p90
        assert len(list(csv.reader(io.StringIO(as_csv(batch, found))))) == len(found) + 1
        refused += sum(bool(each.refused) for each in found)
    assert refused > 40


@pytest.mark.parametrize("seed", range(3))
def test_no_bytes_at_all_raise_anything_else(tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    for _ in range(100):
        text = bytes(random_.choices(b'model,gpu"\n\r\x00\xff 1aw', k=random_.randrange(200)))
        try:
            answered(tmp_path, random_.choice([b"", b"model,gpu\n"]) + text)
        except InvalidRequest as refusal:
            assert str(refusal)
