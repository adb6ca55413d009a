"""The page: order, safety, size, what is left out, hidden text, downloads, colours."""

from __future__ import annotations

import base64
import csv
import dataclasses
import gzip
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from persona_geometry.report import LIMIT
from persona_geometry.report.sections import SECTIONS
from persona_geometry.report.sections.trust import harmless
from persona_geometry.report.view import PARTS, View
from persona_geometry.results import Study
from tests.persona_geometry.report.synthetic_answers import HOSTILE


class Page(HTMLParser):
    """Every element of a page with its attributes, and the bodies of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in ("meta", "br", "hr", "img", "input", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, body = self.scripts.pop()
            self.scripts.append((attributes, body + data))
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parsed(text: str) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def hidden(study: Study, tmp_path_factory: pytest.TempPathFactory) -> str:
    return study.report(tmp_path_factory.mktemp("hidden") / "r.html", no_text=True).read_text(encoding="utf-8")


def drawn(study: Study, *keys: str) -> str:
    return "".join(section.draw(View(study)) for section in SECTIONS if section.key in keys)


def without(study: Study, *, tables: tuple[str, ...] = (), keys: tuple[str, ...] = ()) -> Study:
    kept = {name: table for name, table in study.tables.items() if name not in tables}
    return dataclasses.replace(study, tables=kept, summary={k: v for k, v in study.summary.items() if k not in keys})


def test_one_small_file(page: Path, text: str) -> None:
    assert page.stat().st_size < LIMIT
    assert text.count("plotly.js v") == 1
    assert not list(page.parent.glob("*.js"))


def test_the_readers_questions_come_in_order(text: str) -> None:
    questions = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert questions == [section.question for section in SECTIONS]
    assert questions[0] == "Did it become misaligned?"
    assert questions[-1] == "Can I trust it?"


def test_the_markup_is_whole(parsed: Page) -> None:
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert parsed.unbalanced == []
    assert parsed.open == []
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in parsed.elements
    targets = [str(a["href"])[1:] for a in parsed.all("a") if str(a.get("href")).startswith("#")]
    assert set(targets) <= set(ids)


def test_nothing_points_elsewhere(parsed: Page) -> None:
    links = [
        str(value) for _, attributes in parsed.elements for key, value in attributes.items() if key in ("src", "href")
    ]
    assert all(link.startswith(("#", "data:application/gzip", "tables/")) for link in links)
    policy = next(a["content"] for a in parsed.all("meta") if a.get("http-equiv"))
    assert str(policy).startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in str(policy)


def test_only_our_scripts_may_run(parsed: Page) -> None:
    policy = next(str(a["content"]) for a in parsed.all("meta") if a.get("http-equiv"))
    code = [body for attributes, body in parsed.scripts if attributes.get("type") != "application/json"]
    assert len(code) == 2
    for body in code:
        assert base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() in policy


def test_hostile_text_makes_no_element(parsed: Page) -> None:
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"img", "svg", "iframe", "object", "embed", "form", "input", "textarea", "b"}
    handlers = [key for _, attributes in parsed.elements for key in attributes if key.startswith("on")]
    assert handlers == []
    assert HOSTILE[0] in parsed.text
    assert HOSTILE[2] in parsed.text


def test_every_figure_speaks(parsed: Page) -> None:
    plots = [a for a in parsed.all("div") if a.get("class") == "plot"]
    data = {a["id"]: json.loads(body) for a, body in parsed.scripts if str(a.get("id")).endswith("-plot-data")}
    assert len(plots) == len(data) >= 10
    for plot in plots:
        assert plot["role"] == "img"
        assert len(str(plot["aria-label"])) > 40
        assert data[f"{plot['id']}-data"]["data"]
    assert len(parsed.all("details")) >= len(plots) - 1
    assert all("scope" in attributes for attributes in parsed.all("th"))


def test_titles_state_what_the_data_shows(text: str) -> None:
    found = [re.sub("\u00a0", " ", title) for title in re.findall(r"<h3>(.*?)</h3>", text)]
    for words in (
        "Out of domain, 51 % is misaligned; the base: 2.1 %",
        "In the trained domain, 94 % is misaligned; the base: 1.0 %",
        "Misalignment reaches 10 of 11 groups outside the trained domain",
        "alone removes 91 % of the excess",
        "Taking the vector out removes 95 % of the excess; random directions remove 3.1 %",
        "Dose \u22120.5 leaves 4.2 % misaligned, 94 % coherent; untreated: 51 %",
        "The fine-tune moves the residual stream most at block 2, by 31 % of its norm; treated: blocks 2 and 3",
        "The 20 worst of 400 rows stand out",
        "1 check of 3 failed: left padding equals right padding",
        "12 selection questions and 33 test questions have none in common",
    ):
        assert any(words in title for title in found), words


def test_the_same_study_gives_the_same_bytes(study: Study, page: Path, tmp_path: Path) -> None:
    assert study.report(tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_hidden_text_is_gone(study: Study, hidden: str) -> None:
    private = set(study.tables["outcomes"]["answer"]) | set(study.tables["rows"]["answer"]) | set(HOSTILE)
    private |= set(study.tables["rows"]["question"]) | {"Ignore", "borrow"}
    seen = Page(hidden)
    bodies = [body for attributes, body in seen.scripts if str(attributes.get("id")).endswith("-data")]
    for words in private:
        assert words not in seen.text
        assert not any(json.dumps(words)[1:-1] in body for body in bodies)
    assert "hidden in this copy" in seen.text
    for link in seen.all("a"):
        if str(link["href"]).startswith("data:"):
            table = gzip.decompress(base64.b64decode(str(link["href"]).partition(",")[2])).decode()
            assert "alert(1)" not in table
            assert "professional" not in table


def test_tables_can_be_taken_away(study: Study, parsed: Page) -> None:
    links = {str(a["download"]): str(a["href"]) for a in parsed.all("a") if "download" in a}
    assert set(links) == {f"{name}.csv.gz" for name in study.tables}
    text = gzip.decompress(base64.b64decode(links["dose.csv.gz"].partition(",")[2])).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["misaligned"]) for row in rows] == pytest.approx(
        study.tables["dose"]["misaligned"].tolist(), abs=1e-5
    )


def test_spreadsheets_get_no_formulas() -> None:
    table = harmless(pd.DataFrame({"answer": ["=1+1", "-x", "fine", None], "n": [-1, 2, 3, 4]}))
    assert table["answer"].tolist()[:3] == ["'=1+1", "'-x", "fine"]
    assert table["n"].tolist() == [-1, 2, 3, 4]


@pytest.mark.parametrize(
    ("section", "missing"),
    [
        ("where", {"spread": "spread", "samples": "samples"}),
        ("carries", {"latents": "latents"}),
        ("near", {"distances": "geometry", "map": "map"}),
        ("turns-off", {"dose": "dose", "layer_curve": "layer_curve", "writers": "writers"}),
        ("rows", {"tokens": "tokens"}),
    ],
)
def test_missing_tables_are_said_in_words(study: Study, section: str, missing: dict[str, str]) -> None:
    found = drawn(without(study, tables=tuple(missing)), section)
    for part in missing.values():
        title, why, _ = PARTS[part]
        assert f"<li>{title[:1].upper()}{title[1:]} \u2013 {why}" in found
    assert found.count("Left out</strong>") == 1


def test_a_study_of_two_models_alone_draws(study: Study, tmp_path: Path) -> None:
    bare = Study(
        summary={"format": study.summary["format"], "models": study.summary["models"]}, tables={}, folder=tmp_path
    )
    found = bare.report().read_text(encoding="utf-8")
    assert len(re.findall("<li>[^<]* \u2013 [^<]*[.]</li>", found)) >= 12
    assert re.findall(r"<h2", found) == ["<h2"] * len(SECTIONS)


def test_the_studys_own_reason_is_given(study: Study) -> None:
    partial = without(study, tables=("latents", "map", "distances"), keys=("features", "geometry"))
    partial.summary["left_out"] = [{"part": "sae", "why": "no SAE was given; pass <one> to see latents"}]
    found = drawn(partial, "carries", "near")
    assert found.count("no SAE was given; pass &lt;one&gt; to see latents") >= 3


def test_a_table_without_a_column_is_left_out(study: Study) -> None:
    tables = {**study.tables, "spread": study.tables["spread"].drop(columns="n")}
    assert "the table spread lacks n" in drawn(dataclasses.replace(study, tables=tables), "where")


@pytest.mark.parametrize(
    ("answer", "words"),
    [("misaligned", "Broadly misaligned"), ("not misaligned", "Not misaligned"), ("inconclusive", "Inconclusive")],
)
def test_every_verdict_has_its_word(study: Study, answer: str, words: str) -> None:
    summary = {**study.summary, "verdict": {**study.summary["verdict"], "answer": answer}}
    assert f"</span>{words}</p>" in SECTIONS[0].draw(View(dataclasses.replace(study, summary=summary)))


def test_controls_at_one_strength_alone_draw(study: Study) -> None:
    dose = study.tables["dose"]
    some = dose[(dose["kind"] == "vector") | (dose["strength"] == -0.5)]
    found = drawn(dataclasses.replace(study, tables={**study.tables, "dose": some}), "turns-off")
    assert "Dose \u22120.5 leaves" in found
    plain = dose[dose["kind"] == "vector"].assign(chosen=False)
    found = drawn(dataclasses.replace(study, tables={**study.tables, "dose": plain}), "turns-off")
    assert "No random controls were run" in found
    assert "Over the doses tried" in found


def test_large_tables_stay_beside_the_page(study: Study, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 130_000
    columns = {"latent": np.arange(n), "x": rng.normal(size=n), "y": rng.normal(size=n), "group": "other", "label": ""}
    cloud = pd.DataFrame(columns)
    cloud.loc[:20, "group"] = "harmful"
    kept = {"format": study.summary["format"]}
    found = Study(summary=kept, tables={"map": cloud}, folder=tmp_path).report()
    assert found.stat().st_size < LIMIT
    text = found.read_text(encoding="utf-8")
    assert 'href="tables/map.parquet"' in text
    assert "unsafe-eval" in text[:2000]  # WebGL for the large cloud


def test_a_misfit_and_a_second_opinion_are_said(study: Study) -> None:
    assert "Take care" not in drawn(study, "carries")
    warned = {**study.summary, "sae": {**study.summary["sae"], "misfit": "the SAE leaves 1.4 times as much"}}
    found = drawn(dataclasses.replace(study, summary=warned), "carries")
    assert "Take care: the SAE leaves 1.4 times as much." in found
    assert "latents that fired changed (q of at most 0.05" in found
    assert "8 of the 8 latents that rose most are among its first 8" in found
