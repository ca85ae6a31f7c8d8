"""The analysis: formulas written again, planted truths, and the same bytes from every form of an export."""

import csv
import dataclasses as dc
import io
import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from study_made import TEXT

from pellucid._checks import ConfigError, DataError
from pellucid.study.analysis import analyse, to_facts
from pellucid.study.clusters import multiway_sd, two_way_interval, wilson
from pellucid.study.design import parse_study
from pellucid.study.export import FORMATS, read_export, write_export
from pellucid.study.frozen import Frozen, load_frozen
from pellucid.study.observers import Observer, attentive, by_metric, picture_lover, random_clicker
from pellucid.study.papers import latex_table, markdown_table
from pellucid.study.power import expected, simulate_records, synthetic_items
from pellucid.study.records import Event, Records
from pellucid.study.shares import contrast_table, guessing_p, match_table, share_table, target_shares
from pellucid.study.verdicts import register_claims, study_claims

SEER: list[Observer] = [by_metric("l2", noise=0.1)] * 8
CROWD = [*SEER, random_clicker(), picture_lover()]


def test_A18_wilson_of_the_published_example() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 15 of 148, 0 of 20, 1 of 29, method 3."""
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    with pytest.raises(DataError, match="a share needs answers"):
        wilson(0, 0)


def test_multiway_variance_twin() -> None:
    """V = V(people) + V(items) - V(answers), each against its expansion: sum over clusters of (sum of residuals)^2 / n^2."""
    draw = np.random.default_rng(0)
    people, items = np.repeat(np.arange(30), 10), np.tile(np.arange(50), 6)
    right = (draw.random(300) < 0.5 + 0.3 * draw.standard_normal(30)[people]).astype(float)
    residual = right - right.mean()

    def variance(groups: np.ndarray) -> float:
        total = 0.0
        for group in set(groups.tolist()):
            inside = 0.0
            for k in range(300):
                if groups[k] == group:
                    inside += residual[k]
            total += inside**2
        return total / 300**2

    parts = variance(people), variance(items), variance(np.arange(300))
    expected_sd = math.sqrt(max(parts[0] + parts[1] - parts[2], parts[0], parts[1]))
    assert multiway_sd(right, people, items, draws=6000) == pytest.approx(expected_sd, rel=0.05)


def test_intervals_hold_the_share_and_do_not_depend_on_the_order() -> None:
    draw = np.random.default_rng(1)
    people, items = draw.integers(12, size=200), draw.integers(20, size=200)
    right = (draw.random(200) < 0.8).astype(float)
    found = two_way_interval(right, people, items, draws=400)
    order = draw.permutation(200)
    shuffled = two_way_interval(right[order], people[order], items[order], draws=400)
    assert found.low <= found.value <= found.high
    assert (shuffled.low, shuffled.high) == pytest.approx((found.low, found.high), abs=1e-12)
    low, high = wilson(int(right.sum()), 200)
    assert found.low <= low and found.high >= high
    certain = two_way_interval(np.ones(200), people, items)
    assert certain.high == 1.0 and certain.low == pytest.approx(wilson(12, 12)[0])


def test_guessing_p_twin() -> None:
    """Every sequence of four guessed trials, written out."""
    weights = {0: 2, 1: 3, 3: 1}
    chance: Counter[int] = Counter()
    for rows in itertools.product(weights, repeat=4):
        chance[sum(rows)] += math.prod(weights[r] for r in rows)
    for right, n in chance.items():
        assert guessing_p(right, 4) == pytest.approx(sum(m for m in chance.values() if m <= n) / 6**4)


def test_planted_people(frozen: Frozen) -> None:
    """People who see by pixels: the robust condition is theirs, the plain one is not; others are left out."""
    result = analyse(frozen, simulate_records(frozen.study, frozen.items, CROWD, seed=2))
    share = {row.cell: row for row in result.after.shares}
    assert share["robust"].low > 0.8 and share["plain"].high < 0.2
    assert result.after.people == 8 and result.before.people == 10
    assert result.before.shares[0].share > share["plain"].share + 0.05, "careless people blur the result"
    metric = next(m for m in result.after.metrics if m.cell == "all cells")
    assert metric.spearman > 0.6 and metric.score > 0.9 and metric.own_share == 0.5
    outcome = {name: verdict.outcome for name, verdict in result.verdicts.items()}
    assert outcome == {"plain": "refuted", "robust": "supported", "plain > robust": "refuted"}
    assert result.after.contrasts[0].high < -0.5
    assert {row.ac1 > 0.5 for row in result.after.agreement} == {True}


def test_shares_twin(frozen: Frozen) -> None:
    records = simulate_records(frozen.study, frozen.items, [attentive(share=0.6)] * 6, seed=3)
    for row in share_table(records, draws=200):
        given = [a for a in records.answers if a.cell == row.cell and not a.catch]
        assert (
            row.share
            == sum(a.chosen == a.target_side for a in given) / len(given)
            == sum(a.correct for a in given) / row.answers
        )
        assert row.people == len({a.participant for a in given}) and row.targets == len(
            {a.targets[0] for a in given}
        )
    first, second = ([a for a in records.answers if a.cell == c and not a.catch] for c in ("plain", "robust"))
    one, other = target_shares(first), target_shares(second)
    both = one.keys() & other.keys()
    contrast = contrast_table(records, draws=200)[0]
    assert contrast.difference == pytest.approx(
        sum(one[t] - other[t] for t in both) / len(both)
    ) and contrast.targets == len(both)


def test_match_trials() -> None:
    study = parse_study(
        TEXT.replace("afc = 24", "afc = 0\nmatch = 6").replace(
            "catches = 6\ncatches_right = 5", "catches = 0\ncatches_right = 0"
        )
    )
    items = synthetic_items(24, ["a"])
    good = match_table(simulate_records(study, items, [attentive(share=1, lapse=0)] * 10, seed=1), draws=200)[
        0
    ]
    assert good.share == 1 and good.all_right == good.trials == 60 and good.p < 1e-6
    guess = match_table(simulate_records(study, items, [random_clicker()] * 40, seed=1), draws=200)[0]
    assert guess.low < 1 / 3 < guess.high and guess.p > 0.01
    assert guess.none_right + guess.one_right + guess.all_right == guess.trials


@pytest.mark.slow
def test_A19_export_import_analysis_byte_for_byte(copied: Path, tmp_path: Path) -> None:
    """Directly, and from CSV, JSONL and parquet: the same records, the same analysis, the same page and tables."""
    from pellucid.jobs.study_analyse import analyse_study, write_analysis

    frozen = load_frozen(copied / "frozen")
    cells = sorted({i.cell for i in frozen.items})
    register_claims(study_claims(frozen.study, cells, version=frozen.sha256), frozen.path / "claims.jsonl")
    records = simulate_records(frozen.study, frozen.items, CROWD, seed=2)
    odd = dc.replace(
        records.answers[0],
        rt_ms=1234.5678901234567,
        flags=("resized", "resumed"),
        viewport="390x844",
        pixel_ratio=1.25,
    )
    records = Records(
        (dc.replace(records.participants[0], device='A "b", c\n', external="x"), *records.participants[1:]),
        (odd, *records.answers[1:]),
        (Event("p00000", "2026-01-01T00:00:00Z", "focus", '{"a": 1}'),),
    )
    write_export(frozen, records, tmp_path / "export")
    for form in FORMATS:
        assert read_export(tmp_path / "export", form=form).records == records.ordered(), form
    analyse_study(tmp_path / "export", tmp_path / "csv", form="csv")
    write_analysis(analyse(frozen, records, ledger=frozen.path / "claims.jsonl"), tmp_path / "direct")
    files = sorted(f.relative_to(tmp_path / "csv") for f in (tmp_path / "csv").rglob("*") if f.is_file())
    assert len(files) > 20
    for file in files:
        assert (tmp_path / "csv" / file).read_bytes() == (tmp_path / "direct" / file).read_bytes(), file
    facts = json.loads((tmp_path / "csv/analysis.json").read_text())
    assert {v["label"] for v in facts["verdicts"].values()} == {"confirmatory"}


def test_exports_refuse(frozen: Frozen, tmp_path: Path) -> None:
    records = simulate_records(frozen.study, frozen.items, SEER[:2], seed=1)
    write_export(frozen, records, tmp_path / "x")
    with pytest.raises(ConfigError, match="not empty"):
        write_export(frozen, records, tmp_path / "x")
    tested = dc.replace(
        records, participants=(dc.replace(records.participants[0], test=True), records.participants[1])
    )
    with pytest.raises(DataError, match="test participants are kept out"):
        write_export(frozen, tested, tmp_path / "y")
    file = tmp_path / "x/answers.csv"
    file.write_bytes(file.read_bytes().replace(b"left", b"right", 1))
    with pytest.raises(DataError, match="was changed since the export"):
        read_export(tmp_path / "x", form="csv")
    assert read_export(tmp_path / "x").records == records
    with pytest.raises(ConfigError, match="is no export"):
        read_export(tmp_path)


def test_jspsych_columns(frozen: Frozen, tmp_path: Path) -> None:
    records = simulate_records(frozen.study, frozen.items, SEER[:1], seed=1)
    write_export(frozen, records, tmp_path / "x")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "x/jspsych.csv").read_text())))
    for row, answer in zip(rows, records.answers, strict=True):
        assert row["trial_type"] == "html-button-response" and row["response"] == str(
            ("left", "right").index(answer.chosen)
        )
        assert (row["correct"] == "true") == bool(answer.correct) and float(row["rt"]) == answer.rt_ms
        assert (tmp_path / "x/study" / row["stimulus"]).is_file()
    listed = {
        (r["file"], r["column"])
        for r in csv.DictReader(io.StringIO((tmp_path / "x/dictionary.csv").read_text()))
    }
    for name in ("answers", "participants", "events", "jspsych"):
        header = next(csv.reader(io.StringIO((tmp_path / f"x/{name}.csv").read_text())))
        assert {(name, column) for column in header} <= listed


def test_answers_to_another_study_are_refused(frozen: Frozen) -> None:
    records = simulate_records(frozen.study, frozen.items, SEER[:1], seed=1)
    strange = dc.replace(records, answers=tuple(dc.replace(a, items=("elsewhere",)) for a in records.answers))
    with pytest.raises(DataError, match="items that this study does not have"):
        analyse(frozen, strange)


def test_nobody_and_one_answer(frozen: Frozen) -> None:
    empty = analyse(frozen, Records((), ()))
    assert empty.after.shares == () and empty.verdicts == {}
    facts = to_facts(empty)
    json.dumps(facts, allow_nan=False)
    from pellucid.report.study_page import study_page

    assert "Nobody" in study_page(facts)


def test_tables_of_a_paper(frozen: Frozen) -> None:
    result = analyse(frozen, simulate_records(frozen.study, frozen.items, CROWD, seed=2))
    tex, markdown = latex_table(result), markdown_table(result)
    assert tex.count(r"\\") == 3 and r"\%" in tex and "8 of 10 participants" in tex
    assert len([line for line in markdown.splitlines() if line.startswith("|")]) == 4


def test_more_people_buy_narrower_intervals() -> None:
    study, items = parse_study(TEXT), synthetic_items(26, ["a", "b"])
    few, many = (expected(study, items, n, studies=2, seed=1) for n in (6, 24))
    assert many.half_width < few.half_width and many.answers_per_item == pytest.approx(
        4 * few.answers_per_item
    )
    with pytest.raises(ConfigError, match="pass careless="):
        expected(study, items, 6, careless_share=0.5)


def test_simulation_does_not_depend_on_who_comes_with_whom() -> None:
    study, items = parse_study(TEXT), synthetic_items(26, ["a", "b"])
    alone = simulate_records(study, items, [attentive()], seed=4)
    together = simulate_records(study, items, [attentive(), random_clicker()], seed=4)
    assert alone.answers == tuple(a for a in together.answers if a.participant == "p00000")
