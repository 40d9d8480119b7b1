"""A record is read as it was written; what is no record is told with its file, its line and its field."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resist_hvd.json_record import Record, RecordError
from resist_hvd.records import (
    MOST_BLOCKS,
    Evaluation,
    EvaluationRecord,
    ExtraTestRecord,
    RoundRecord,
    StartRecord,
    Summary,
    round_of,
)

from .report_runs import round_line, summary

KINDS = (EvaluationRecord, ExtraTestRecord, StartRecord, Summary, RoundRecord)
ROUND = round_line(0, "resist", 4)


COUNT, AMOUNT = st.integers(0, 2**63 - 1), st.floats(0, allow_infinity=False)


@given(
    st.builds(Evaluation, accuracy=AMOUNT, loss=AMOUNT, images=COUNT)
    | st.builds(
        EvaluationRecord,
        round=COUNT,
        epoch=AMOUNT,
        samples=COUNT,
        seconds=AMOUNT,
        bytes_sent=COUNT,
        accuracy=AMOUNT,
        loss=AMOUNT,
    )
)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert type(record).from_json(json.loads(record.as_line())) == record


V2 = Evaluation(accuracy=1.0, loss=2.0, images=3)


@pytest.mark.parametrize(
    "record",
    [
        ROUND,
        replace(ROUND, ranks=None),
        replace(ROUND, seconds_hidden=0.5),
        summary(),
        summary(seconds_hidden=0.5),
        summary(
            accuracy=50.0,
            broken_files={"a.png": "cut short"},
            extra_tests={"v2": V2},
        ),
    ],
)
def test_what_is_nested_is_read_too(record: Record) -> None:
    text = record.as_line()
    assert text.endswith("}\n")
    read = type(record).from_json(json.loads(text))
    assert read == record
    assert read.as_line() == text


def test_fields_stand_in_their_order_and_are_left_out_where_they_may_be() -> None:
    assert list(ROUND.as_json())[-2:] == ["partition", "ranks"]
    assert "seconds_hidden" not in ROUND.as_json()
    assert "ranks" not in replace(ROUND, ranks=None).as_json()
    written = summary().as_json()
    assert written["accuracy"] is None
    assert written["broken_files"] == {}
    left_out = {"extra_tests", "seconds_hidden", "mean_average_precision", "best_mean_average_precision"}
    assert list(written) == [name for name in asdict(summary()) if name not in left_out]


def test_other_versions_are_read() -> None:
    newer = {**ROUND.as_json(), "temperature": 3}
    assert RoundRecord.from_json(newer) == ROUND
    older = summary(broken_files={"a.png": "cut short"}).as_json()
    del older["broken_files"]
    assert Summary.from_json(older) == summary()


WRONG: list[tuple[Any, str]] = [
    ({"loss": None}, "loss is null"),
    ({"loss": float("nan")}, "loss is NaN"),
    ({"loss": True}, "loss is true"),
    ({"seconds_sync": -1.0}, "seconds_sync is -1.0"),
    ({"bytes_sent": 1.5}, "bytes_sent is 1.5"),
    ({"bytes_sent": 10**400}, "bytes_sent is 1000"),
    ({"seconds_data": 10**400}, "seconds_data is 1000"),
    ({"iterations": 0}, "no iteration"),
    ({"partition": []}, "no worker"),
    ({"partition": [[0], 1, [2], [3]]}, "partition is [[0], 1, [2], [3]]"),
    ({"partition": [[MOST_BLOCKS], [1], [2], [3]]}, "block"),
    ({"partition": [[0], [1]]}, "ranks are not the 2"),
    ({"ranks": {"seconds_compute": [1.0] * 4}}, "in ranks there is no seconds_data"),
    ({"ranks": [1]}, "in ranks it is no JSON object"),
]


@pytest.mark.parametrize(("change", "told"), WRONG)
def test_a_line_that_is_no_record_is_told(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    wrong = json.dumps({**ROUND.as_json(), **change})
    path = tmp_path / "rounds.jsonl"
    path.write_text(f"{ROUND.as_line()}{wrong}\n{ROUND.as_line()}")
    records, (fault,) = RoundRecord.read_lines(path)
    assert records == [ROUND, ROUND]
    assert fault.startswith("rounds.jsonl, line 2: ")
    assert told in fault
    assert len(fault) < 120


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_that_is_missing_is_named(kind: type[Record], tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text("{}")
    with pytest.raises(RecordError) as caught:
        kind.read(path)
    assert str(caught.value) == f"some.json: there is no {next(iter(kind.__dataclass_fields__))}"


@pytest.mark.parametrize("text", ["", "{", "7", "[]", "\x00", "[" * 100_000, "\ud800"])
def test_what_is_no_object_is_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text(text, errors="surrogatepass")
    with pytest.raises(RecordError, match=r"^summary\.json: it is no JSON"):
        Summary.read(path)


def test_the_round_of_any_line() -> None:
    assert round_of(ROUND.as_line()) == 0
    assert round_of('{"round": 3}') == 3
    assert all(round_of(text) is None for text in ("", '{"round": 3', "7", "[]", '{"round": "3"}', "{}"))
