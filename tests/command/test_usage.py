"""The parser of the command: what it refuses, what it offers instead, and that it needs no torch for that."""

import re
import subprocess
import sys
from importlib import metadata
from inspect import signature

import pytest

import dropblock_inject
from dropblock_inject import KeepProbSchedule, drop_block, plan_dropblock
from dropblock_inject.command import arguments, bench
from dropblock_inject.command.main import main
from dropblock_inject.placement.selection import PLACES
from dropblock_inject.plot import plot_feature_maps
from dropblock_inject.training.modes import MODES


@pytest.mark.parametrize(
    "words",
    [
        *([], ["draw"], ["plan"], ["plan", "resnet18", "--where", "there"], ["plan", "x", "--k"]),
        *(["plan", "resnet18", "--stages", "3,4"], ["stages", "resnet18", "-o", "noext"], ["stages", "x", "-o", "."]),
        ["show", "a.png", "--model", "resnet18", "-o", "b.png", "--channels", "9999"],
        ["show", "a.png", "--model", "resnet18", "-o", "b.png", "--seed", "1" + "0" * 20],
        ["schedule", "--total-steps", "0", "-o", "b.png"],
        ["schedule", "--total-steps", "1" + "0" * 20, "-o", "b.png"],
        ["stages", "resnet18", "--image-size", "1" + "0" * 27],
        ["stages", "resnet18", "--image-size", "1" + "0" * 5000],
    ],
)
def test_wrong_usage_ends_with_2(capsys, words):
    assert "usage: dropblock-inject" in refusal(capsys, words)


def refusal(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    return printed.err


PLAN = r"usage: dropblock-inject plan MODEL \[options\]\ndropblock-inject plan: error: "
MAIN = r"usage: dropblock-inject stages\|plan\|show\|schedule\|bench \.\.\.\ndropblock-inject: error: "
MISSPELT = [
    ("plan x --keepprob 0.9", PLAN + "no option --keepprob; did you mean --keep-prob"),
    ("plan x --keep_prob=0.9", PLAN + "no option --keep_prob; did you mean --keep-prob"),
    ("plan --keepprob 0.9", PLAN + "no option --keepprob; did you mean --keep-prob"),  # and MODEL is missing
    ("plan x --stage 3", PLAN + r"no option --stage; did you mean --stages\?"),
    ("plan x -stages 3", PLAN + "no option -stages; did you mean --stages"),
    ("plan x --JSON", PLAN + "no option --JSON; did you mean --json"),
    ("plan x --qqq", PLAN + "no option --qqq; dropblock-inject plan --help lists the options"),
    ("plan x -q", PLAN + "no option -q; dropblock-inject plan --help lists the options"),
    ("plan x --total-steps 9", PLAN + "no option --total-steps here; it is an option of schedule"),
    ("plan x y", PLAN + "'y' is one word too many: dropblock-inject plan takes one MODEL and options"),
    ("plan --stages 3 x", PLAN + "argument --stages: 'x' is not an integer; if it is the model, put it before the opt"),
    ("plan x --keep-prob 0,9", PLAN + "argument --keep-prob: '0,9' is not a number; put spaces between several"),
    ("schedule --totalsteps 9", r"usage: dropblock-inject schedule --total-steps N \[.*did you mean --total-steps"),
    ("show a b --model x -o c.png", r"usage: .* show PICTURE --model .*takes one PICTURE and options"),
    ("bench x", r"usage: .* bench \[options\]\n.*takes options$"),
    ("plann x", MAIN + r"no command 'plann'; did you mean plan\?"),
    ("draw x", MAIN + "no command 'draw'; the commands are stages, plan, show, schedule and bench"),
    ("", MAIN + "a command is missing; the commands are stages, plan, show, schedule and bench"),
    ("--verson", MAIN + r"no option --verson; did you mean --version\?"),
    ("--stages 3 plan x", MAIN + "no option --stages here; it is an option of plan and schedule"),
]


@pytest.mark.parametrize(("words", "message"), MISSPELT, ids=lambda value: value if value[:5] != "usage" else "")
def test_a_misspelt_word_gets_the_right_one_and_the_usage_of_its_command(capsys, words, message):
    assert re.fullmatch(message + ".*\n", refusal(capsys, words.split()), re.S)


@pytest.mark.parametrize("words", ["plan x -o=a.png", "plan x -oa.png", "plan x --stages -2 -1"])
def test_other_forms_of_an_option_are_understood(words):
    parsed = arguments.parser().parse_args(words.split())
    assert parsed.stages == [-2, -1] if "-1" in words else parsed.output.name == "a.png"


SETS = [  # the function whose arguments a command sets, and the words that the command needs
    (plan_dropblock, "plan x"),
    (plot_feature_maps, "show x --model y -o a.png"),
    (KeepProbSchedule, "schedule --total-steps 9"),
    (plan_dropblock, "schedule --total-steps 9"),
    (drop_block, "bench"),
    (bench.bench, "bench"),
]


@pytest.mark.parametrize(("function", "words"), SETS)
def test_an_option_has_the_default_of_the_argument_and_says_it(capsys, function, words):
    parameters = signature(function).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    parsed = vars(arguments.parser().parse_args(words.split()))
    shared = parsed.keys() & defaults.keys()
    assert {name: parsed[name] for name in shared} == {name: defaults[name] for name in shared}
    assert len(shared) >= 1
    with pytest.raises(SystemExit):
        main([words.split()[0], "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for name in shared - {"depth_scaling", "include", "exclude"}:
        default = defaults[name] if isinstance(defaults[name], tuple) else (defaults[name],)
        entry = printed.split(f" --{name.replace('_', '-')} ")[1].split(" --")[0]
        assert f"({' '.join(map(str, default))})" in entry


def test_the_choices_are_those_of_the_functions():
    assert list(arguments.PLACES) == list(PLACES)
    assert list(arguments.MODES) == list(MODES)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    libraries = [f"{name} {metadata.version(name)}" for name in ("torch", "timm", "torchvision")]
    python = ".".join(map(str, sys.version_info[:3]))
    assert lines == [f"dropblock-inject {dropblock_inject.__version__}", *libraries, f"Python {python}"]


def test_the_version_says_what_is_missing(capsys, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert "timm is not installed\ntorchvision is not installed\n" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["--help", "--version", "plan --help", "plan x --keepprob 9", "plann", ""])
def test_help_and_misspelt_words_need_no_torch_and_little_time(words):
    code = (
        "import sys, time\n"
        "from dropblock_inject.command.main import main\n"
        f"try: main({words.split()})\n"
        "except SystemExit: pass\n"
        "print({'torch', 'timm', 'torchvision'} & set(sys.modules), time.process_time() < 0.3, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "set() True"
