"""The commands, from two runs to the table of a paper, as a person types them."""

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pellucid._checks import ConfigError, PellucidError
from pellucid.cli import app
from pellucid.study.export import write_export
from pellucid.study.frozen import load_frozen
from pellucid.study.observers import Observer, by_metric, random_clicker
from pellucid.study.power import simulate_records


def run(*words: str) -> str:
    found = CliRunner().invoke(app, ["study", *words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


@pytest.mark.slow
def test_from_runs_to_a_table(copied: Path) -> None:
    design = copied / "likeness.toml"
    said = run(
        "create",
        str(copied / "plain"),
        str(copied / "robust"),
        "--out",
        str(design),
        "--title",
        "Wörter & <b>",
    )
    assert "52 items, 26 targets in 2 conditions (plain, robust)" in said
    text = design.read_text()
    assert 'runs = ["plain", "robust"]' in text and 'title = "Wörter & <b>"' in text and "afc = 22" in text
    design.write_text(text.replace("draws = 2000", "draws = 200"))
    frozen_says = run("freeze", str(design), "--out", str(copied / "study"))
    assert "44 items in 2 conditions, 30 trials for each of 10 participants" in frozen_says
    assert "as texts.contact and texts.ethics" in frozen_says, "nobody wrote whom participants can ask"
    frozen = load_frozen(copied / "study")
    events = [json.loads(line)["event"] for line in (copied / "study/claims.jsonl").read_text().splitlines()]
    assert events == ["registered"] * 3
    crowd: list[Observer] = [by_metric("l2", noise=0.1)] * 8 + [random_clicker()]
    write_export(frozen, simulate_records(frozen.study, frozen.items, crowd, seed=1), copied / "data")
    page = Path(run("analyse", str(copied / "data"), "--out", str(copied / "result")).strip())
    html = page.read_text()
    assert (
        "Wörter &amp; &lt;b&gt;" in html
        and "<b>" not in html
        and "http" not in html.replace("http://www.w3.org", "")
    )
    assert "supported (rung 3, confirmatory)" in html and "refuted" in html
    assert (copied / "result/table.tex").read_text().count(r"\\") == 3
    flow = {
        r["step"]: int(r["people"])
        for r in csv.DictReader(io.StringIO((copied / "result/tables/flow.csv").read_text()))
    }
    assert flow["enrolled"] == 9 and flow["analysed"] == 8 and flow["left out: catches"] == 1
    for link in (
        "table.md",
        "analysis.json",
        "verdicts/claim_0.html",
        "tables/after_shares.csv",
        "tables/before_items.csv",
    ):
        assert (copied / "result" / link).is_file()
    # The same again replaces it; another folder with something else in it is refused.
    before = page.read_bytes()
    run("analyse", str(copied / "data"), "--out", str(copied / "result"), "--form", "parquet")
    assert page.read_bytes() == before
    with pytest.raises(ConfigError, match="neither empty nor an analysis"):
        run("analyse", str(copied / "data"), "--out", str(copied / "plain"))


def test_power(made: Path) -> None:
    said = run(
        "power",
        str(made / "frozen"),
        "--participants",
        "4",
        "--participants",
        "8",
        "--studies",
        "1",
        "--careless",
        "0.25",
    )
    assert len(said.strip().splitlines()) == 3 and "half width" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("create", "plain", "--out", "frozen/study.json"), "is there already"),
        (("create", "frozen", "--out", "new.toml"), "is not a run folder"),
        (("analyse", "plain", "--out", "new"), "neither a frozen study"),
        (("analyse", "frozen", "--out", "new"), "nobody was served yet"),
        (("export", "plain", "--out", "new"), "is no frozen study"),
        (("freeze", "plain/run.json", "--out", "new"), "is no TOML"),
    ],
)  # fmt: skip
def test_what_cannot_be(
    made: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(made)
    with pytest.raises(PellucidError, match=message):
        run(*words)
    assert not (made / "new").exists() and not (made / "new.toml").exists()
