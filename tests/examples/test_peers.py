"""The comparison with other implementations: each claim about a library that is installed here holds."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import PEERS, Claim, Peer, evaluate, main, names_for

PAGE = (Path(__file__).parents[2] / "examples" / "peers.md").read_text()
CLAIMS = [pytest.param(peer, claim, id=f"{peer.package} {claim.what}") for peer in PEERS for claim in peer.claims]
NUMBER = re.compile(r"\d+\.\d+")


@lru_cache
def names(package: str) -> dict[str, Any]:
    (peer,) = (peer for peer in PEERS if peer.package == package)
    return names_for(peer)


def alike(found: str, expected: str) -> bool:
    """The same text; fractions, which depend on random numbers, within 5 % or 0.01."""
    close = [
        abs(float(a) - float(b)) <= max(0.01, 0.05 * float(b))
        for a, b in zip(NUMBER.findall(found), NUMBER.findall(expected), strict=False)
    ]
    return NUMBER.sub("", found) == NUMBER.sub("", expected) and all(close)


# The test extra has timm and torchvision. The docstring of peers.py says how to install the others.
@pytest.mark.filterwarnings("ignore")  # those of the libraries when they are imported
@pytest.mark.parametrize(("peer", "claim"), CLAIMS)
def test_a_claim_holds(peer: Peer, claim: Claim) -> None:
    for source in peer.imports.values():
        pytest.importorskip(source.partition(":")[0], exc_type=ImportError)
    torch._logging.set_logs(dynamo=logging.CRITICAL)
    try:
        theirs, ours = (evaluate(expression, names(peer.package)) for expression in (claim.theirs, claim.ours))
    finally:
        torch._logging.set_logs()
    assert alike(theirs, claim.prints), theirs
    assert alike(ours, claim.here), ours
    assert not alike(claim.prints, claim.here)


def test_the_page_has_every_claim() -> None:
    claims = [claim for peer in PEERS for claim in peer.claims]
    rows = re.findall(r"^\| .* \| `.*` \| .* \| .* \|$", PAGE, flags=re.MULTILINE)
    assert rows == [f"| {claim.what} | `{claim.theirs}` | {claim.prints} | {claim.here} |" for claim in claims]
    assert re.findall(r"^## (\w+) [\d.]+$", PAGE, flags=re.MULTILINE) == [peer.package for peer in PEERS]


def test_an_expression_that_fails_shows_its_error() -> None:
    assert evaluate("1 / 0", {}) == "ZeroDivisionError"
    assert evaluate("{}.keys()", {}) == "nothing"
    assert evaluate("1 / 3", {}) == "0.333"


def test_numbers_are_alike_within_their_random_error_only() -> None:
    assert alike("0.905", "0.901")
    assert not alike("0.93", "0.864")
    assert not alike("36", "9")
    assert not alike("a ResNet", "TraceError")


@pytest.mark.parametrize("options", [[], ["--markdown"]])
def test_it_prints(options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (torchvision,) = (peer for peer in PEERS if peer.package == "torchvision")
    half = next(claim for claim in torchvision.claims if "half precision" in claim.what)
    missing = Peer("missing", {"drop": "not_installed:drop"}, (half,))
    monkeypatch.setattr("peers.PEERS", (missing, torchvision._replace(claims=(half,))))
    main(options)
    captured = capsys.readouterr()
    assert captured.err == "missing is left out: No module named 'not_installed'\n"
    row = f"| {half.what} | `{half.theirs}` | 0 | 1.11 |" if options else f"    {half.theirs}\n    -> 0\n"
    assert row in captured.out
    assert re.search(r"^(## )?torchvision 0\.\d+", captured.out, flags=re.MULTILINE)
    assert "MMDetection" in captured.out
