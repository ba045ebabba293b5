"""The API page: it is made without a warning, and has the public names, in order, with their examples."""

from __future__ import annotations

import html
import re

import api_page
import pytest

from dropblock_inject import errors, plot, public_names


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    for library in ("pdoc", "lightning", "matplotlib", "transformers"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("api")
    api_page.main([str(folder)])
    return {
        ".".join(file.relative_to(folder).with_suffix("").parts): file.read_text() for file in folder.rglob("*.html")
    }


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', page)


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def test_there_is_a_page_for_each_public_module(pages: dict[str, str]) -> None:
    assert pages.keys() == {"index", *api_page.MODULES}


def test_a_page_has_the_public_names_in_order_and_no_others(pages: dict[str, str]) -> None:
    assert sections(pages["dropblock_inject"]) == public_names.__all__
    assert sections(pages["dropblock_inject.plot"]) == plot.__all__
    assert sections(pages["dropblock_inject.presets"]) == ["PAPER", "SMALL_IMAGES", "FINE_TUNING"]
    assert set(sections(pages["dropblock_inject.errors"])) == {name for name in vars(errors) if name[0] in "ACDNST"}
    for trainer in ("lightning", "transformers"):
        assert sections(pages[f"dropblock_inject.integrations.{trainer}"]) == ["DropBlockCallback"]


def test_members_have_docstrings_of_their_own(pages: dict[str, str]) -> None:
    members = re.findall(r'<div id="([\w.]+)" class="classattr">', "".join(pages.values()))
    wanted = {"KeepProbSchedule.__init__", "KeepProbSchedule.attach", "InjectionPlan.apply", "InjectionPlan.as_dict"}
    assert wanted | {"InjectionReport.summary", "DropBlock.keep_prob", "Site.names"} <= set(members)
    assert not [name for name in members if re.search(r"\._(?!_init__)|extra_repr|on_save_checkpoint|monitor", name)]
    assert "InjectionPlan.__init__" not in members
    assert "Initialize internal Module state" not in pages["dropblock_inject"]


def test_docstrings_are_rendered(pages: dict[str, str]) -> None:
    page = text_of(pages["dropblock_inject"])
    rule = "-----  --------------------  ------  --------  --------  ---  -----  ---------\n    4  layer4.0.drop_output"
    assert rule in page  # a table in an example stays a table
    assert "<strong>keep_prob:</strong>" in pages["dropblock_inject"]  # an argument
    assert '<a href="#find_stages">find_stages()</a>' in pages["dropblock_inject"]
    for text in map(text_of, pages.values()):
        assert not re.search(r":(func|class|meth):|<BLANKLINE>|May import|\bArgs:|``", text)
