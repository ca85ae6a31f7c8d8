"""The pages of a run: what they say is what the tables hold, nothing is unescaped, nothing comes from elsewhere."""

import csv
import dataclasses as dc
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pellucid.report import SECTIONS, read, write_report
from pellucid.report.contents import Contents, page_names
from pellucid.report.findings import activity_by_layer, selectivity_by_layer, worth_a_look
from pellucid.report.first import clearest
from pellucid.report.header import header
from pellucid.report.layer_page import layer_page
from pellucid.report.reasons import reasons
from pellucid.report.trust import checks
from pellucid.report.units import search_index
from pellucid.report.write import front_page, pages
from pellucid.store import Run
from synthetic_run import CLASSES, make_run

NASTY = '<script>alert("x")</script>'
NASTY_LAYERS = [f"block.{NASTY}", "a\"b'c & d", "", "deep/../../up", "Relu", "relu", "name#1"]
VOID = {"meta", "link", "br", "wbr", "input", "img", "hr"}


class Page(HTMLParser):
    """What a page holds: tags, ids, links, headings, text; fails on tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[int] = []
        self.unnamed: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"]] if given.get("id") else []
        self.links += [v for k in ("href", "src") if (v := given.get(k))]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if given.get("role") == "img" and not (given.get("aria-label") or given.get("title")):
            self.unnamed.append(str(attrs))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"closed twice: {tag}"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def front(run: Run) -> Page:
    return Page((run.path / "index.html").read_text())


def script(file: Path) -> dict:
    """The one variable that a script file assigns."""
    text = file.read_text()
    name, _, value = text.partition(" = ")
    assert re.fullmatch(r"window\.pellucid\w+", name)
    return json.loads(value.rstrip().removesuffix(";"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = make_run(tmp_path_factory.mktemp("report") / "run")
    epochs = np.arange(1, 6)
    made.save_table("history", {"epoch": epochs, "loss": 2.0 / epochs, "note": ["x"] * 5})
    assert write_report(made) == made.path / "index.html"
    return made


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Run:
    classes = [NASTY, "it's", 'say "hi"', "&amp;"]
    made = make_run(
        tmp_path_factory.mktemp("nasty") / "run",
        units=(6,) * 7,
        layer_names=NASTY_LAYERS,
        classes=classes,
        images=60,
    )
    data = made.facts("data")
    made.save("data", {**data, "name": NASTY, "skipped": [[NASTY, "<b>broken</b>"]] * 300})
    units = made.table("units")
    made.save_table(
        "units", {**units, "description": [f"{NASTY} {i}" for i in range(42)], "my_score": np.arange(42.0)}
    )
    write_report(made)
    return made


# -- every page ----------------------------------------------------------------------------------------------------


def every_page(run: Run) -> list[Path]:
    return [run.path / "index.html", *sorted((run.path / "pages").glob("*.html"))]


@pytest.mark.parametrize("which", ["run", "nasty"])
def test_pages_are_well_made(which: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(which)
    files = every_page(run)
    assert len(files) == 1 + len(run.table("layers")["layer"])
    for file in files:
        page = Page(file.read_text())
        assert page.headings[0] == 1
        assert page.headings.count(1) == 1
        assert all(b - a <= 1 for a, b in zip(page.headings, page.headings[1:], strict=False)), (
            "a heading level is skipped"
        )
        assert len(page.ids) == len(set(page.ids)), "an id is used twice"
        assert not page.unnamed, "an image without words"
        assert page.tags.count("script") == 3, "only the page's own scripts"
        assert "main" in page.ids


@pytest.mark.parametrize("which", ["run", "nasty"])
def test_links_lead_somewhere_in_the_folder(which: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(which)
    root = run.path.resolve()
    parsed = {file: Page(file.read_text()) for file in every_page(run)}
    for file, page in parsed.items():
        for link in set(page.links):
            target, _, anchor = link.partition("#")
            if link == "data:,":
                continue
            assert not re.match(r"[a-z]+:|//", link), f"{file.name} reaches out to {link}"
            place = Path(os.path.normpath(file.parent / target)) if target else file
            assert place.resolve().is_relative_to(root), f"{file.name} leaves the folder: {link}"
            assert place.is_file(), f"{file.name} links to {link}"
            if anchor and not anchor.startswith("unit-"):
                assert anchor in parsed[place].ids, f"{file.name}: no #{anchor}"


def test_nothing_comes_from_elsewhere(run: Run) -> None:
    for file in [*every_page(run), *(run.path / "pages" / "assets").iterdir()]:
        text = file.read_text()
        assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", text), file.name
        assert "fetch(" not in text, file.name
        assert "XMLHttpRequest" not in text, file.name


def test_text_is_escaped(nasty: Run) -> None:
    for file in every_page(nasty):
        text = file.read_text()
        assert "<script>alert" not in text
        assert "<b>broken" not in text
        Page(text)
    for file in (nasty.path / "pages").glob("*.js"):
        for card in script(file)["html"]:
            Page(card)
            assert "<script" not in card
    assert NASTY in front(nasty).text
    assert NASTY in script(nasty.path / "pages/assets/units.js")["layers"][0]["name"]
    rows = csv.DictReader((nasty.path / "pages/units.csv").read_text().splitlines())
    assert next(rows)["description"] == f"{NASTY} 0"


def test_file_names_are_safe_and_differ() -> None:
    names = page_names([*NASTY_LAYERS, "x" * 300, "x" * 301, ".", "index", "con v", "con_v"])
    assert len({n.lower() for n in names}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,110}", n) for n in names)
    assert "index" not in names
    assert page_names(["layer1.0.conv1", "Conv_2"]) == ["layer1.0.conv1", "Conv_2"]
    assert page_names(["a", "b"]) == page_names(["a", "b"])


def test_report_is_the_same_twice(run: Run) -> None:
    for name, text in pages(read(run)):
        assert (run.path / name).read_text(encoding="utf-8") == text


def test_no_torch_is_loaded(run: Run) -> None:
    code = (
        "import sys; from pellucid.store import Run; from pellucid.report import write_report;"
        "write_report(Run.open(sys.argv[1])); assert not {'torch', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True, timeout=60)


# -- what the front page says ---------------------------------------------------------------------------------------


def test_header(run: Run) -> None:
    text = front(run).text
    for said in ("SmallConvNet on digits", "61,706", "best.safetensors", "3f9a3f9a3f9a", "b07cb07cb07c", "0.485, 0.456, 0.406",
                 "200 units in 5 layers", "300 images of 10 classes", "91.3 % [88.1, 94.1]", "2 images skipped, and why",
                 "truncated file", "pellucid", "seed"):  # fmt: skip
        assert said in text, said
    assert "Untrained" not in text


def test_sections_in_order(run: Run) -> None:
    found = [i for i in front(run).ids if i in dict(SECTIONS)]
    assert found == [name for name, section in SECTIONS if section(read(run))]
    assert found == ["trust", "first", "layers", "figures", "units", "training", "notes", "files"]


def test_layer_strip_holds_the_numbers(run: Run) -> None:
    text = front(run).text
    table = run.table("layers")
    for si, low, high in zip(table["si_cf"], table["si_cf_lo"], table["si_cf_hi"], strict=True):
        assert f"{si:.3f} [{low:.3f}, {high:.3f}]" in text


def test_notes_say_what_must_be_said(run: Run) -> None:
    text = front(run).text
    assert "it does on their offset" in text
    assert "biased upwards in small samples" in text
    assert "not a measure of information" in text
    dead = int(run.table("units")["dead"].sum())
    assert f"{dead} of 200 units ({100 * dead / 200:.1f} %) answered to no image; left out of means" in text


def test_index_of_units(run: Run) -> None:
    data, units = script(run.path / "pages/assets/units.js"), run.table("units")
    assert data["unit"] == units["unit"].tolist()
    assert [data["layers"][i]["name"] for i in data["layer"]] == units["layer"].tolist()
    for key in ("si_cf", "si_cf_lo", "si_cf_hi", "si", "si_lo", "si_perm"):
        mine = np.array([np.nan if v is None else v for v in data["values"][key]])
        np.testing.assert_allclose(mine, units[key], atol=5.1e-4)
    words = data["values"]["top_class"]
    assert [words["words"][i] or None for i in words["rows"]] == units["top_class"].tolist()
    first = data["places"][data["images"][0][0]]
    top, examples = run.table("top"), run.table("examples")
    row = examples["index"].tolist().index(top["index"][0])
    assert first == [examples[k][row] for k in ("sheet", "x", "y", "w", "h")]


def test_added_columns_show_up(nasty: Run) -> None:
    data = script(nasty.path / "pages/assets/units.js")
    added = {c["key"]: c for c in data["columns"]}
    assert added["description"]["text"]
    assert added["my_score"]["digits"] == 1
    assert data["values"]["description"]["words"][3] == f"{NASTY} 3"
    cards = script(next(f for f in (nasty.path / "pages").glob("relu*.js")))["html"]
    assert all("my score" in card and "description" in card for card in cards)


def test_downloads(run: Run) -> None:
    rows = list(csv.DictReader((run.path / "pages/units.csv").read_text().splitlines()))
    units = run.table("units")
    assert len(rows) == 200
    assert float(rows[7]["si"]) == units["si"][7]
    dead = int(np.flatnonzero(units["dead"])[0])
    assert rows[dead]["si"] == rows[dead]["top_class"] == ""


def test_what_to_look_at_first(run: Run) -> None:
    contents = read(run)
    chosen = clearest(contents)
    units = run.table("units")
    assert len(chosen) == 6
    assert (units["si_lo"] > units["si_perm"])[chosen].all()
    layers = units["layer"][chosen].tolist()
    assert max(layers.count(name) for name in layers) == 2
    assert np.nanmax(units["si_cf"]) == units["si_cf"][chosen[0]]


def test_titles_state_the_finding(run: Run) -> None:
    contents = read(run)
    assert re.fullmatch(
        r"Selectivity rises from 0\.\d+ in the first layer to 0\.\d+ in the last",
        selectivity_by_layer(contents.layers),
    )
    backwards = selectivity_by_layer(contents.layers[::-1])
    assert backwards.startswith("Selectivity falls from")
    around = selectivity_by_layer([contents.layers[4], contents.layers[0], contents.layers[2]])
    assert (
        around.startswith("Selectivity is highest in features.4.relu (0.5")
        and "lowest in features.0.relu" in around
    )
    assert "hardly differs" in selectivity_by_layer([contents.layers[0]] * 3)
    assert activity_by_layer(contents.layers).startswith(
        "Responses are above 0 on most images in features.0.relu"
    )


# -- runs that lack something -------------------------------------------------------------------------------------


def test_untrained(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", units=(4, 4), trained=False)
    write_report(made)
    page = front(made).text.partition("Skip to content")[2]
    assert page.index("Untrained.") < page.index("SmallConvNet")
    assert any(c.state == "caution" and "Untrained" in c.title for c in checks(read(made)))
    layer = Page(next((made.path / "pages").glob("*.html")).read_text()).text
    assert "Untrained." in layer


def test_unlabelled_says_why(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", units=(8, 8), labelled=False)
    write_report(made)
    text = front(made).text
    assert (
        "Not shown: Selectivity, Raw, Permuted, Offset-free, d′, η², because the data has no labels" in text
    )
    assert "no labels" in text
    assert "classifies" not in text
    data = script(made.path / "pages/assets/units.js")
    assert [c["key"] for c in data["columns"]] == ["activity"]


def test_layers_without_an_index_say_why(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", units=(8, 8))
    layers, units = made.table("layers"), made.table("units")
    first = units["layer"] == layers["layer"][0]
    for key in ("si", "si_lo", "si_hi", "si_cf", "si_perm", "si_off"):
        units[key][first] = np.nan
        layers[key][0] = np.nan
    layers["si_cf_lo"][0] = layers["si_cf_hi"][0] = np.nan
    made.save_table("units", units)
    made.save_table("layers", {**layers, "why": ["class means below zero", ""]})
    write_report(made)
    assert front(made).text.count("class means below zero") >= 2
    assert "1 of 2: class means below zero." in front(made).text


def without_index(path: Path, *columns: str, **layer_columns: list) -> Contents:
    """A run of two layers, the first without an index: `columns` are missing for it."""
    made = make_run(path, units=(8, 8))
    layers, units = made.table("layers"), made.table("units")
    first = units["layer"] == layers["layer"][0]
    for key in columns:
        layers[key][0] = np.nan
        if key in units:
            units[key][first] = np.nan
    made.save_table("units", units)
    made.save_table("layers", {**layers, **layer_columns})
    write_report(made)
    return read(made)


CROSS = ("si_cf", "si_cf_lo", "si_cf_hi")


def test_a_long_reason_is_short_in_cells_and_whole_in_trust(tmp_path: Path) -> None:
    sentence = (
        "selectivity is defined for class means >= 0, but 3 of 8 units have negative ones (the first is unit 2): "
        "name what to do with them: negative=rectify, negative=absolute or negative=shift_min"
    )
    contents = without_index(tmp_path / "run", *CROSS, "si", why=[sentence, ""])
    found = {c.title: c.text for c in checks(contents)}["Layers without an index"]
    assert found.startswith("1 of 2: negative class means. In features.0.relu: selectivity is defined")
    assert found.endswith("--negative rectify, --negative abs or --negative shift-min.")
    text = (contents.run.path / "index.html").read_text()
    assert re.search(r'title="selectivity is defined[^"]*--negative[^"]*">negative class means</span>', text)
    data = script(contents.run.path / "pages/assets/units.js")
    assert data["layers"][0]["why"] == "negative class means"
    assert "why" not in data["layers"][1]
    cards = script(contents.run.path / "pages/features.0.relu.js")["html"]
    assert any("negative class means" in card for card in cards)


def test_an_index_that_is_missing_without_a_reason_gets_one(tmp_path: Path) -> None:
    few = without_index(tmp_path / "few", *CROSS)
    assert reasons(few)["features.0.relu"].short == "too few images a class"
    assert "too few images a class" in (few.run.path / "pages/features.0.relu.html").read_text()
    dead = without_index(tmp_path / "dead", *CROSS, "si", dead=[8, 0])
    assert reasons(dead)["features.0.relu"].short == "every unit is dead"
    one = dc.replace(without_index(tmp_path / "one", *CROSS, "si"), classes=("only",))
    assert {why.short for why in reasons(one).values()} == {"needs at least 2 classes"}


def test_a_sample_says_what_it_was_drawn_from(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", units=(4, 4))
    made.save("data", {**made.facts("data"), "limit": 300, "total": 10_000})
    text = str(header(read(made)))
    assert "recorded on 300 of 10,000 images of 10 classes, drawn at random." in text
    assert "<dd>300 of 10,000, drawn at random</dd>" in text
    for facts in ({"limit": None, "total": 300}, {"limit": 300, "total": 300}, {}):
        made.save("data", {**made.facts("data"), "limit": None, **facts})
        assert "drawn at random" not in str(header(read(made)))


def test_one_is_not_many(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", units=(1,), images=1)
    lede = str(header(dc.replace(read(made), classes=("only",))))
    assert "1 unit in 1 layer, recorded on 1 image of 1 class." in lede


def test_accuracy_that_is_missing_says_why(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", units=(4, 4))
    (made.path / "facts" / "accuracy.json").unlink()
    made.save("data", {**made.facts("data"), "accuracy_why": "the model has 5 outputs, the data 10 classes"})
    contents = read(made)
    assert "Accuracy was not computed: the model has 5 outputs, the data 10 classes." in str(header(contents))
    found = {c.title: c.text for c in checks(contents)}
    assert found["Accuracy not computed"] == "The model has 5 outputs, the data 10 classes."


def test_negative_responses_are_not_called_answers(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", units=(8,))
    units, layers = made.table("units"), made.table("layers")
    units["dead"][:] = 0
    units["activity"][:3] = 0.0
    made.save_table("units", units)
    made.save_table("layers", {**layers, "dead": [0], "dead_fraction": [0.0]})
    found = {c.title: c.text for c in checks(read(made))}
    assert found["Dead units"] == "None of 8 units. 3 more with activity 0 responded, but never above 0."


def test_cards_and_table_give_the_interval_of_the_index(run: Run) -> None:
    units, contents = run.table("units"), read(run)
    row = clearest(contents)[0]
    said = "{:.3f} [{:.3f}, {:.3f}]".format(*(units[key][row] for key in CROSS))
    assert said in front(run).text
    assert said in script(run.path / f"pages/{units['layer'][row]}.js")["html"][0]
    columns = {c["key"]: c for c in script(run.path / "pages/assets/units.js")["columns"]}
    assert (columns["si_cf"]["low"], columns["si_cf"]["high"]) == ("si_cf_lo", "si_cf_hi")


def test_findings_do_not_claim_too_much(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", units=(8, 8, 8))
    layers = made.table("layers")
    layers["si_cf"] = np.array([0.1, 0.4, 0.55])
    layers["si_cf_lo"] = np.array([0.05, -0.1, 0.5])
    layers["dead_fraction"] = np.array([0.25, 0.25, 0.0])
    made.save_table("layers", layers)
    said = {why.partition(":")[0]: layer.name for why, layer in worth_a_look(read(made))}
    assert said["along with features.1.relu has the largest share of dead units"] == "features.0.relu"
    assert said["adds most selectivity"] == "features.2.relu", (
        "the larger step ends in a layer that may be at chance"
    )


def test_the_activity_range_is_no_interval(run: Run) -> None:
    text = (run.path / "index.html").read_text()
    assert "activity: dot, mean; line, middle half of the units" in text
    mark = re.search(r'<svg class="strip"[^>]*middle half of the units[^>]*>(.*?)</svg>', text)
    assert mark
    assert 'class="extent"' in mark[1]
    assert 'class="ci"' not in mark[1]


def test_a_run_with_nothing_in_it(tmp_path: Path) -> None:
    made = Run.create(tmp_path / "run")
    write_report(made)
    page = front(made)
    assert "A network on its data" in page.text
    assert not list((made.path / "pages").glob("*.html"))


def test_data_other_than_images(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", units=(4,))
    for table in ("examples",):
        (made.path / "tables" / f"{table}.parquet").unlink()
    for image in made.image_files("thumbs"):
        image.unlink()
    write_report(made)
    assert "no images kept" in Page((made.path / "pages/features.0.relu.html").read_text()).text


def test_many_classes(tmp_path: Path) -> None:
    classes = [f"class number {i}" for i in range(300)]
    made = make_run(tmp_path / "run", units=(12,), classes=classes, images=900)
    write_report(made)
    text = (made.path / "pages/features.0.relu.html").read_text()
    assert "the 24 largest of 300" in text
    assert "Number of units of each layer that prefer a class" not in (made.path / "index.html").read_text()


def test_checks_name_what_is_wrong(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", units=(40, 40), images=100)
    layers = made.table("layers")
    layers["si_cf_lo"][1] = -0.1
    layers["dead"][:], layers["dead_fraction"][:] = 8, 0.2
    made.save_table("layers", layers)
    made.save("model", {**made.facts("model"), "upcast": True})
    made.save("accuracy", {"accuracy": 0.1, "lo": 0.05, "hi": 0.2, "n": 100})
    found = {c.title: (c.state, c.text) for c in checks(read(made))}
    assert found["Accuracy at chance"][0] == "caution"
    assert found["Few images a class"][0] == "caution"
    assert "In features.1.relu." in found["Selectivity not above chance"][1]
    assert found["Dead units"] == (
        "caution",
        "16 of 80 units (20.0 %) answered to no image; left out of means.",
    )
    assert "features.0.relu (2.50)" in found["Dimension limited by the sample"][1]
    assert found["Half precision upcast"][0] == "note"


# -- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_units_stay_small(tmp_path: Path) -> None:
    made = make_run(
        tmp_path / "run",
        units=(500,) * 20,
        images=2000,
        layer_names=[f"stage{i}.block.2.relu" for i in range(20)],
    )
    units = made.table("units")
    made.save_table(
        "units", {**units, "description": [f"a striped thing number {i} on the left" for i in range(10_000)]}
    )
    contents = read(made)
    assert len(search_index(contents)) < 2_000_000
    assert len(front_page(contents)) < 400_000
    page, script_file = layer_page(contents, 0)
    assert len(page) < 400_000
    assert len(script_file) < 3_000_000


def test_the_classes_of_the_fixture_are_the_runs(run: Run) -> None:
    assert read(run).classes == CLASSES
