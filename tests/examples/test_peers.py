"""The comparison with other implementations: each claim about a library that is installed here is so."""

from __future__ import annotations

from pathlib import Path

import pytest
from peers import PEERS, compare, evaluate, main

EXAMPLES = Path(__file__).parents[2] / "examples"

# Where the same line is a mistake, this library says so.
REFUSED = {"drop_block(torch.ones(1, 1, 9, 9), -0.5, 3)"}


def test_each_claim_is_so(capsys) -> None:
    found = list(compare())
    compared = {package for package, *_ in found}
    assert {"timm", "torchvision"} <= compared
    left_out = {peer.package for peer in PEERS} - compared
    assert all(f"{package} is left out" in capsys.readouterr().err for package in sorted(left_out)[:1])
    for package, claim, theirs, ours in found:
        assert theirs != ours, (package, claim.what)
        assert ours.endswith("Error") is (claim.ours in REFUSED), (package, claim.what, ours)
    shown = {(package, claim.what): (theirs, ours) for package, claim, theirs, ours in found}
    theirs, ours = map(float, shown["timm", "keeps 7 % where 90 % are asked for"])
    assert theirs == pytest.approx(0.07, abs=0.01)
    assert ours == pytest.approx(0.9, abs=0.005)
    assert shown["torchvision", "all zeros in half precision"] == ("0", "1.11")
    assert {ours for (_, what), (_, ours) in shown.items() if what.startswith("compiles anew")} == {"2"}
    assert shown["torchvision", "keeps for the backward pass as much again as its input"] == ("100.0%", "0.4%")


def test_an_expression_that_fails_shows_its_error() -> None:
    assert evaluate("1 / 0", {}) == "ZeroDivisionError"
    assert evaluate("{}.keys()", {}) == "nothing"
    assert evaluate("1 / 3", {}) == "0.333"


def test_the_page_has_every_claim() -> None:
    page = (EXAMPLES / "peers.md").read_text()
    for peer in PEERS:
        assert f"\n## {peer.package} " in page
        for claim in peer.claims:
            assert f"| {claim.what} | `{claim.theirs}` |" in page


def test_it_prints(capsys, monkeypatch) -> None:
    monkeypatch.setattr("peers.PEERS", PEERS[1:2])
    main([])
    printed = capsys.readouterr().out
    assert "torchvision 0." in printed
    assert "-> 0.642" in printed or "-> 0.64" in printed
    assert "MMDetection" in printed
