"""The pages: their Python runs, their commands parse, their tables, numbers, links and file names are right."""

from __future__ import annotations

import argparse
import inspect
import re
import runpy
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetune
import kept_share
import pytest
import timm
import torch
import torchvision
from zoo import table
from zoo.catalog import Model, all_models

import dropblock_inject
from dropblock_inject import (
    KeepProbSchedule,
    dropblock_sites,
    find_stages,
    inject_dropblock,
    plan_dropblock,
)
from dropblock_inject.command.arguments import parser

ROOT = Path(__file__).parents[1]
LONGEST = {
    "README.md": 220,
    "CHANGELOG.md": 200,
    "CONTRIBUTING.md": 200,
    "dropblock_inject/README.md": 200,
    "examples/README.md": 200,
    "examples/faq.md": 200,
    "examples/layer.md": 200,
    "examples/peers.md": 200,
    "examples/sites.md": 200,
    "examples/study/README.md": 200,
    "tests/README.md": 200,
    "tests/benchmarks/README.md": 200,
}
PAGES = {page: (ROOT / page).read_text() for page in LONGEST}
README, EXAMPLES = PAGES["README.md"], PAGES["examples/README.md"]
PROJECT = (ROOT / "pyproject.toml").read_text()


def blocks(page: str, kind: str = "") -> list[str]:
    """The fenced blocks of a page that are of one kind."""
    return [text for found, text in re.findall(r"```(\w*)\n(.*?)```", PAGES[page], flags=re.DOTALL) if found == kind]


def spans(page: str) -> list[str]:
    """The pieces of code within the lines of a page."""
    prose = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    return re.findall(r"`([^`]+)`", prose)


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short(page: str) -> None:
    assert len(PAGES[page].splitlines()) <= LONGEST[page]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    files = {"net.py", "train.py", "references/classification/train.py", "resnet_model.py"}  # the reader's and others'
    files |= {str(file.relative_to(ROOT)) for file in ROOT.rglob("*.py") if ".venv" not in file.parts}
    for span in spans(page):
        if re.fullmatch(r"[\w/.]+\.py", span):
            assert any(f"/{file}".endswith(f"/{span}") for file in files), span


def test_every_page_is_linked_from_the_readme() -> None:
    assert set(PAGES) - {"README.md"} <= set(re.findall(r"\]\(([^)#]+)", README))


def test_every_script_and_every_module_has_its_line() -> None:
    for script in (ROOT / "examples").glob("*.py"):
        assert f"| `{script.name}` |" in EXAMPLES, script.name
    table_of_modules = PAGES["CONTRIBUTING.md"].split("## Where things are")[1].split("\n## ")[0]
    for file in (ROOT / "dropblock_inject").rglob("*.py"):
        if not file.name.startswith("__"):
            assert f"`{file.name}`" in table_of_modules, file
        if file.parent.parent == ROOT / "dropblock_inject":
            assert f"| `{file.parent.name}/` |" in table_of_modules, file.parent


# Python


def test_the_first_lines_run_and_print_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("README.md", "python")
    (printed,) = (text for text in blocks("README.md") if text.startswith("DropBlock in ResNet"))
    names: dict[str, Any] = {}
    exec(code, names)
    assert capsys.readouterr().out == printed
    assert {site.keep_prob for site in dropblock_sites(names["model"])} == {0.975, 0.9}


@pytest.mark.filterwarnings("ignore")  # those of the trainers
@pytest.mark.parametrize("code", blocks("examples/README.md", "python"), ids=lambda code: code.split("\n")[0])
def test_the_lines_of_the_examples_page_run(code: str, tmp_path: Path) -> None:
    model = torchvision.models.resnet18()
    names: dict[str, Any] = {
        "__name__": "page",
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "data_loader": [0, 1],
        "args": SimpleNamespace(epochs=2, start_epoch=1),
        **{"num_epochs": 2, "updates_per_epoch": 2, "start_epoch": 1},
    }
    if "transformers" in code:
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        names["arguments"] = transformers.TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
        names["data"] = [{"pixel_values": torch.empty(3, 224, 224), "labels": 0}]
    if "lightning" in code:
        lightning = pytest.importorskip("lightning")
        module = lightning.LightningModule()
        module.network = model
    exec(code, names)
    if "lightning" in code:
        for callback in names["trainer"].callbacks:
            callback.setup(names["trainer"], module, "fit")
    if "Trainer" in code or "# before the line" in code:
        assert len(dropblock_sites(model)) == 12
    if "# before the line" in code:
        assert names["schedule"].last_step == 2
        names["optimizer"].step()
        assert names["schedule"].last_step == 3


def test_the_own_network_trains_stops_and_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(next(code for code in blocks("examples/README.md", "python") if "# net.py" in code), names)
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(10, (4,))) for _ in range(8)]
    trace: list[float] = []
    step = KeepProbSchedule.step
    monkeypatch.setattr(
        KeepProbSchedule, "step", lambda self: (step(self), trace.extend(self.get_last_keep_prob()[:1]))
    )

    class Interrupted(list):
        def __getitem__(self, part: slice) -> Iterator:
            yield from list(self)[part][:3]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        names["train"](Interrupted(batches))
    assert len(trace) == 3
    net = names["train"](batches)
    assert trace == pytest.approx([1 - 0.1 * done / 8 for done in range(1, 9)])
    assert dropblock_sites(net) == []
    assert plan_dropblock(net, -1, example_input=torch.empty(1, 3, 32, 32))


def test_the_patterns_mean_what_their_comments_say() -> None:
    code = next(code for code in blocks("examples/sites.md", "python") if "layer4.*.conv2" in code)
    plans: list[list[str]] = []
    names = {"plan_dropblock": lambda model, **asked: plans.append([s.host for s in plan_dropblock(model, **asked)])}
    exec(code.replace("from dropblock_inject import plan_dropblock", ""), names)
    assert plans == [
        ["layer4.0.bn2", "layer4.1.bn2", "layer4.2.bn2"],
        ["layer4.1.bn2", "layer4.1.bn3", "layer4.1"],
        [f"layer{stage}.0.{host}" for stage in (3, 4) for host in ("bn1", "bn2", "bn3", "downsample")],
        [f"layer4.0.{host}" for host in ("bn1", "bn2", "bn3", "downsample")]
        + ["layer4.2.bn1", "layer4.2.bn2", "layer4.2.bn3", "layer4.2"],
        [f"layer{stage}.{block}.bn3" for stage, count in ((3, 6), (4, 3)) for block in range(count)],
    ]


def test_the_snippets_on_sites_follow_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for code in blocks("examples/sites.md", "python"):
        exec(code, names)
    assert "backbone.fpn.layer_blocks.0.0" in capsys.readouterr().out
    prediction = names["prediction"]
    assert prediction.mean.shape == (2, 1000)
    assert prediction.entropy.shape == (2,)
    assert not names["model"].training
    plan = plan_dropblock(
        names["segmenter"], stages=None, include=["classifier.*", "*.layer4.*"], keep_prob={None: 0.8, 4: 0.9}
    )
    assert {(site.part, site.keep_prob) for site in plan} == {("head", 0.8), ("trunk", 0.9)}


def test_the_snippets_of_the_questions_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("examples/faq.md", "python")
    names: dict[str, Any] = {}
    exec(code, names)
    assert torch.load("weights.pt", weights_only=True).keys() == torchvision.models.resnet18().state_dict().keys()
    assert dropblock_sites(names["model"]) == []


def test_the_layer_by_hand() -> None:
    names: dict[str, Any] = {}
    by_hand, other_range, function = blocks("examples/layer.md", "python")
    exec(by_hand, names)
    assert names["schedule"].get_last_keep_prob() == [0.9, 0.8]
    assert names["prediction"].mean.shape == (4, 10)
    assert names["prediction"].mutual_information.max() > 0
    exec(other_range, names)
    assert [names["schedule"].value_at(step) for step in (0, 10, 55, 100)] == pytest.approx([0.95, 0.95, 0.9, 0.85])
    exec(function, names)
    block, x = names["Block"](8), torch.rand(2, 8, 16, 16)
    assert torch.equal(block.eval()(x), block(x))
    assert not torch.equal(block.train()(x), block(x))


def test_the_options_of_the_layer() -> None:
    shown = re.findall(r"^\| `(\w+)=([^`]+)` \|", PAGES["examples/layer.md"], flags=re.MULTILINE)
    defaults = {name: eval(default) for name, default in shown}
    for function in (dropblock_inject.DropBlock, dropblock_inject.drop_block):
        parameters = inspect.signature(function).parameters.values()
        assert defaults == {p.name: p.default for p in parameters if p.name not in ("input", "training")}


def test_the_tables_of_arguments_and_calls() -> None:
    parameters = inspect.signature(inject_dropblock).parameters
    section = README.split("## The arguments")[1].split("\n## ")[0]
    shown = re.findall(r"^\| `(\w+)=([^`]*)`(?:, `(\w+)=`)? \|", section, flags=re.MULTILINE)
    for name, default, other in shown:
        assert parameters[name].default == (eval(default) if default else None)
        assert not other or parameters[other].default is None
    named = {name for name, _, _ in shown} | {other for _, _, other in shown} | set(re.findall(r"\w+", section))
    assert set(parameters) - {"model", "strict", "layer_options"} <= named
    public = set(dropblock_inject.__all__)
    called = {name for name in public if f"`{name}" in section}
    assert {name for name in public if not name.endswith("Error") and name[0] not in "IS"} <= called | {
        "inject_dropblock"
    }


def test_the_main_job_prints_what_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shape(text: str) -> list[str]:
        """The lines outside the table, with N for each number."""
        words = ("model ", "data ", "DropBlock in", "before ", "epoch ", "after ", "removed ", "plain ")
        return [re.sub(r"\d[\d.]*", "N", line) for line in text.splitlines() if line.startswith(words)]

    (shown,) = (text for text in blocks("README.md") if text.startswith("model "))
    monkeypatch.chdir(tmp_path)
    finetune.main(["--max-samples", "42", "--image-size", "64"])
    assert shape(capsys.readouterr().out) == shape(shown)


# Commands


class Parsed(BaseException):
    """A script has understood its command line."""


PROGRAMS = ("dropblock-inject", "mypy", "pip", "pytest", "python", "ruff", "torchrun")


def commands(page: str) -> list[str]:
    lines = [line for text in blocks(page) for line in text.splitlines()] + spans(page)
    found = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in found if re.match(rf"([A-Z_]+=\S+ )*({'|'.join(PROGRAMS)}) ", part)]


@pytest.mark.parametrize("command", sorted({command for page in PAGES for command in commands(page)}))
def test_a_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command.split(" > ")[0], comments=True)
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    program, *arguments = words
    if program == "dropblock-inject":
        parser().parse_args(arguments)
    elif program == "pip":
        extras = [extra for word in arguments for extra in ",".join(re.findall(r"\[(.*)\]", word)).split(",") if extra]
        assert all(re.search(rf"^{extra} = \[", PROJECT, flags=re.MULTILINE) for extra in extras)
    elif program == "pytest":
        for option, value in pairwise(arguments):
            if option == "-m":
                assert f'"{value}: ' in PROJECT
            if option == "--hypothesis-profile":
                assert f'"{value}"' in (ROOT / "tests" / "conftest.py").read_text()
        assert all((ROOT / word).is_file() for word in arguments if word.endswith(".py"))
    elif program in ("python", "torchrun"):
        script = next(word for word in arguments if word.endswith(".py"))
        if "benchmarks" in script:
            pytest.importorskip("dropblock")
        understood(ROOT / script, arguments[arguments.index(script) + 1 :], monkeypatch)


def understood(script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a script up to where it has parsed its arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *given: Any) -> None:
        parse(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(Parsed):
        runpy.run_path(str(script), run_name="__main__")


def test_there_are_commands() -> None:
    count = Counter(re.sub(r"([A-Z_]+=\S+ )*", "", command).split()[0] for page in PAGES for command in commands(page))
    assert set(count) == set(PROGRAMS)
    assert count["python"] >= 10
    assert count["dropblock-inject"] >= 6


# Other tables and figures


def test_the_families() -> None:
    page = PAGES["tests/README.md"]
    header, rule, *_ = table.for_readme([]).splitlines()
    body = page.split(f"{header}\n{rule}\n")[1].split("\n\n")[0].splitlines()
    counts = {line.split(" | ")[0].strip("| "): int(line.split(" | ")[1]) for line in body}
    refused = re.search(r"Refused, having no convolutional trunk \((\d+) models\): (.*)\.", one_line(page))
    counts_refused = {name: int(n) for name, n in (entry.rsplit(" ", 1) for entry in refused[2].split(", "))}
    assert int(refused[1]) == sum(counts_refused.values())
    sums = f"{sum(counts.values())} passed, {sum(counts_refused.values())} refused"
    assert f"{sum(counts.values()) + sum(counts_refused.values())} models: {sums} as they should be, 0 failed" in page
    assert f"{sum(counts.values())} models passed, and {sum(counts_refused.values())} without" in one_line(README)
    if (timm.__version__, torchvision.__version__.split(".")[:2]) == ("1.0.31", ["0", "29"]):
        assert Counter(model.family for model in all_models()) == {**counts, **counts_refused}


@pytest.mark.parametrize(
    "name",
    ["timm:resnetv2_18", "timm:vgg11", "timm:test_convnext", "torchvision:efficientnet_b0", "torchvision:raft_small"],
)
def test_rows_of_the_families(name: str) -> None:
    model = Model(*name.split(":"))
    net, example = model.build("meta"), model.example_input("meta")
    stages = find_stages(net, example)
    plan = plan_dropblock(net, [stage.index for stage in stages], example_input=example)
    sites = {stage.index: Counter(site.where for site in plan if site.stage == stage.index) for stage in stages}
    record = {
        "model": name,
        "family": model.family,
        "parameters": 0,
        "stages": [
            (stage.index, stage.reduction, stage.channels, stage.map_size, len(stage.blocks)) for stage in stages
        ],
        "sites": {str(index): found for index, found in sites.items()},
    }
    row = table.for_readme([record]).splitlines()[2]
    assert re.sub(r"\| 1 \|", "| N |", row, count=1) in re.sub(
        r"^(\| [\w.]+ \|) \d+ \|", r"\1 N |", PAGES["tests/README.md"], flags=re.M
    )


def test_the_kept_shares(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kept_share, "BLOCKS", (7,))
    monkeypatch.setattr(kept_share, "KEEP_PROBS", (0.9, 0.5))
    monkeypatch.setattr(sys, "argv", ["kept_share.py", "--pixels", "1000000"])
    kept_share.main()
    header, *printed = capsys.readouterr().out.splitlines()
    page = next(text for text in blocks("tests/benchmarks/README.md") if "mean error" in text).splitlines()
    assert page[0] == header
    for line, shown in zip(printed, page[1:], strict=True):
        assert line[:18] == shown[:18]
        assert list(map(float, line.split()[-4:])) == pytest.approx(list(map(float, shown.split()[-4:])), abs=0.012)


def test_the_ratios_of_the_costs() -> None:
    page = PAGES["tests/benchmarks/README.md"]
    rows = [re.findall(r"([\d.]+) \(([\d.]+)x\)", line) for line in page.splitlines() if "x)" in line]
    assert len(rows) == 9
    for row in rows:
        for (milliseconds, ratio), (floor, _) in zip(row, rows[0], strict=True):
            exact = float(milliseconds) / float(floor)
            assert float(ratio) == pytest.approx(exact, abs=0.005 + 0.004 * exact)  # both are rounded


def test_the_figures_about_other_layers() -> None:
    section = one_line(README.split("## Why not")[1].split("\n## ")[0])
    peers, costs = PAGES["examples/peers.md"], PAGES["tests/benchmarks/README.md"]
    step = "| resnet50, step over that of 1756 ms without DropBlock | 1.034 | 1.031 | 1.029 | 1.483 | 1.540 |"
    for words, page, row in (
        (
            "keeps 0.0699 of a 7x7 map where 0.9 is",
            peers,
            "| keeps 7 % where 90 % are asked for | `kept(their_drop(torch.ones(2**16, 1, 7, 7), 0.1, 7))` | 0.0699 |",
        ),
        (
            "gives a ResNet-50 9 of the paper's 36 sites",
            peers,
            "| has 9 of the paper's 36 sites in a ResNet-50, none on a shortcut |",
        ),
        (
            "keeps 0.641 of a 14x14 map where 0.5",
            peers,
            "`kept(their_drop(torch.ones(2**16, 1, 14, 14), 0.5, 7))` | 0.641 |",
        ),
        (
            "1.029 times as long as without DropBlock, with torchvision's layer at the same places 1.483 times",
            costs,
            step,
        ),
    ):
        assert words in section
        assert row in page


def test_the_versions() -> None:
    section = one_line(README.split("## Install")[1].split("\n## ")[0])
    for words, requirement in (
        (r"Python ([\d.]+) or later", 'requires-python = ">={}"'),
        (r"torch ([\d.]+) or later", '"torch>={}"'),
        (r"timm ([\d.]+) ", '"timm>={}"'),
        (r"torchvision ([\d.]+) or later", '"torchvision>={}"'),
    ):
        found = re.search(words, section)
        assert found
        assert requirement.format(found[1]) in PROJECT
