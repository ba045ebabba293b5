"""One residual block in detail: its operations, its gates, its residual add, and the places of its sites."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby, takewhile
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from ..anatomy.blocks import Block, enclosing_calls
from ..anatomy.stages import Trunk
from ..placement.site_finder import SiteFinder
from ..tracing.operations import GATES, MOVES, NONLINEAR, NORMS, RESHAPES, SAME_VALUES, WEIGHTED
from ..tracing.trace import Op, Value, ancestors
from .canvas import COLORS, GREY, LARGE, LINE, MEDIUM, PAGE_WIDTH, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# All in inches.
_GAP, _SITE = 0.11, 0.2  # behind a step; for a site
_START, _END = 0.75, 0.3  # before the first step of a path; behind its last one
_SKIP, _BRANCH, _GATE = 0.72, 1.6, 2.25  # the heights of the paths, downwards

_HIDDEN = SAME_VALUES | MOVES | RESHAPES | {"expand"}  # the same numbers in another form


class Step(NamedTuple):
    """A box on a path: the label, and the names of the modules that it runs in.

    Attributes:
        gate: what computes the gate that the path is multiplied by in this step; empty if it is no such step.
    """

    label: str
    modules: frozenset[str]
    gate: str = ""

    @property
    def width(self) -> float:
        return _text_width(self.gate) + 0.4 if self.gate else _text_width(self.label) + 0.14


_FLAT = Step("\n\n", frozenset())  # three lines, for which there is room


class Path(NamedTuple):
    """The branch or the shortcut of a block.

    Attributes:
        behind: for each site the number of the step that it is right behind; None for the end of the path.
    """

    where: str
    steps: list[Step]
    behind: list[int | None]

    @property
    def width(self) -> float:
        return sum(step.width + _GAP for step in self.steps) + _SITE * len(self.behind)

    def stacked(self) -> Path:
        """The same with the steps between two sites in one box, one below the other."""
        boxes: list[list[Step]] = []
        number_of = {}
        for number, step in enumerate(self.steps):
            if not boxes or step.gate or boxes[-1][-1].gate or number - 1 in self.behind:
                boxes.append([])
            boxes[-1].append(step._replace(label=step.label.replace("\n", "")))
            number_of[number] = len(boxes) - 1
        steps = [
            box[0]._replace(
                label="\n".join(step.label for step in box),
                modules=frozenset().union(*(step.modules for step in box)),
            )
            for box in boxes
        ]
        return Path(self.where, steps, [None if number is None else number_of[number] for number in self.behind])


class Picture(NamedTuple):
    """A block up to its first residual add, and the activation behind it if that is the only one.

    Attributes:
        kinds: the kinds of its sites.
        adds: the number of its residual adds.
    """

    name: str
    branch: Path
    skip: Path
    after: list[Step]
    kinds: list[str]
    adds: int

    @property
    def right(self) -> float:
        """Where the sum is."""
        ends = _SITE * ("end" in self.kinds)
        return _START + max(self.branch.width + ends, self.skip.width) + _END

    @property
    def width(self) -> float:
        return self.right + 0.3 + sum(step.width + _GAP for step in self.after) + 0.5

    @property
    def height(self) -> float:
        lines = max((step.gate.count("\n") + 1 for step in self.branch.steps if step.gate), default=0)
        return (_GATE + 0.07 * lines if lines else _BRANCH + self.stretch + 0.2) + self.stretch + 0.45

    @property
    def stretch(self) -> float:
        """The room that boxes of many lines need above and below the branch."""
        return 0.07 * max(step.label.count("\n") - 2 for step in (*self.branch.steps, _FLAT))


def picture_of(block: Block, trunk: Trunk) -> Picture:
    """What is drawn of a block that has a residual add. Steps are stacked if the picture is wider than a page."""
    residual = block.residuals[0]
    own = ancestors([residual.skip], residual.call) - ancestors([residual.branch], residual.call)
    skip_ops = {value.producer for value in own if value.producer and residual.call.contains(value.producer)}
    alone = len(block.residuals) == 1
    first = replace(
        block,
        residuals=[residual],
        units=[unit for unit in block.units if alone or unit.op in residual.branch_ops],
    )
    sites = [
        site for site in SiteFinder(trunk.trace, trunk.geometry).sites(first, 0, 1) if alone or site.where != "output"
    ]

    def path(where: str, ops: Iterable[Op]) -> Path:
        steps = _steps(ops, block)
        return Path(where, steps, [_last_step(site.host, steps) for site in sites if site.where == where])

    kinds = {site.where for site in sites}
    picture = Picture(
        block.name,
        path("branch", residual.branch_ops),
        path("skip", skip_ops),
        _steps(_activation_behind(residual.add.outputs[0], block), block) if alone else [],
        [where for where in COLORS if where in kinds],
        len(block.residuals),
    )
    if picture.width <= PAGE_WIDTH:
        return picture
    return picture._replace(branch=picture.branch.stacked(), skip=picture.skip.stacked())


def draw_block(axis: Axes, picture: Picture, top: float) -> None:
    """Draws a block on a sheet: x on the left, the shortcut above, the branch below, a gate below that, their sum on
    the right."""
    first = f", the first of its {picture.adds} residual adds" if picture.adds > 1 else ""
    axis.text(0.15, top + 0.05, f"block {picture.name}{first}", fontsize=LARGE, va="center", weight="bold")
    gate = "; × is the product with a gate" if any(step.gate for step in picture.branch.steps) else ""
    summary = f"F(x) + S(x): the branch F below, the shortcut S{'' if picture.skip.steps else ', the identity,'} above"
    axis.text(0.15, top + 0.27, summary + gate, fontsize=SMALL, va="center", color=GREY)
    right, skip, branch = picture.right, top + _SKIP, top + _BRANCH + picture.stretch
    middle = (skip + branch) / 2
    for height, letter in ((skip, "S"), (branch, "F")):
        axis.plot([0.3, 0.6, right, right], [middle, height, height, middle], color=LINE, linewidth=1.2, zorder=1)
        axis.text(0.38, height, letter, ha="center", va="center", fontsize=MEDIUM, style="italic", color=GREY)
    _draw_path(axis, picture.skip, skip, right)
    _draw_path(axis, picture.branch, branch, right - _SITE * ("end" in picture.kinds))
    if "end" in picture.kinds:
        _diamond(axis, right - 0.2, branch, "end")
    axis.plot([right, picture.width - 0.15], [middle, middle], color=LINE, linewidth=1.2, zorder=1)
    left = right + 0.3
    for step in picture.after:
        _box(axis, left + step.width / 2, middle, step.label)
        left += step.width + _GAP
    if "output" in picture.kinds:
        _diamond(axis, left + 0.1, middle, "output")
    _circle(axis, 0.3, middle, "x")
    _circle(axis, right, middle, "+")


def _draw_path(axis: Axes, path: Path, height: float, right: float) -> None:
    """The steps of a path, each with the sites behind it, in the middle between x and the sum."""
    left = _START + max(right - _START - _END - path.width, 0) / 2
    for number, step in enumerate(path.steps):
        if step.gate:
            _draw_gate(axis, step, left, height, height + _GATE - _BRANCH)
        else:
            _box(axis, left + step.width / 2, height, step.label)
        left += step.width
        for _ in range(path.behind.count(number)):
            _diamond(axis, left + (_SITE + _GAP) / 2, height, path.where)
            left += _SITE
        left += _GAP
    for number in range(path.behind.count(None)):
        _diamond(axis, right - 0.2 - _SITE * number, height, path.where)


def _draw_gate(axis: Axes, step: Step, left: float, height: float, lane: float) -> None:
    """A gate: its operations below the path that they read and weigh."""
    begin, end = left, left + step.width - 0.1
    axis.plot([begin, begin, end, end], [height, lane, lane, height], color=LINE, linewidth=1.2, zorder=1)
    _box(axis, (begin + end) / 2, lane, step.gate, face="#fff7e0")
    _circle(axis, end, height, "×")


def _steps(ops: Iterable[Op], block: Block) -> list[Step]:
    """The steps of a path. The operations of one module are one step; a gate is one step, where it is multiplied."""
    computing = sorted((op for op in ops if op.kind not in _HIDDEN), key=lambda op: op.index)
    gates = _gates(computing, block)
    inside = {op for gate in gates.values() for op in gate}
    steps = []
    for label, group in groupby((op for op in computing if op not in inside), key=lambda op: _label(op, block)):
        for op in (all_ops := list(group)):
            if op in gates:
                steps.append(Step("×", _modules(op), _gate_text(gates[op], block)))
            elif op is all_ops[0]:
                steps.append(Step(label, _modules(op)))
    return steps


def _gates(ops: Sequence[Op], block: Block) -> dict[Op, list[Op]]:
    """Each product with a gate, and the operations that compute the gate alone."""
    inside, found = set(ops), {}
    for op in ops:
        if op.kind != "mul" or len(op.inputs) != 2:
            continue
        for factor, other in (op.inputs, op.inputs[::-1]):
            if _ends_in_gate(factor):
                around = {value.producer for value in ancestors([factor], block.scope)}
                around -= {value.producer for value in ancestors([other], block.scope)}
                found[op] = sorted((part for part in around & inside if part), key=lambda part: part.index)
                break
    return found


def _ends_in_gate(value: Value) -> bool:
    """Whether a tensor is a sigmoid or softmax, in whatever form, that is nothing but a factor."""
    while value.producer is not None and value.producer.kind in _HIDDEN:
        value = value.producer.inputs[0]
    return value.producer is not None and value.producer.kind in GATES


def _activation_behind(value: Value, block: Block) -> list[Op]:
    """The activation of a sum, if the block has one."""
    inner = [op for op in value.readers if block.scope.contains(op)]
    while len(inner) == 1 and inner[0].kind in SAME_VALUES:
        inner = [op for op in inner[0].outputs[0].readers if block.scope.contains(op)]
    return inner if len(inner) == 1 and inner[0].kind in NONLINEAR else []


def _modules(op: Op) -> frozenset[str]:
    return frozenset(call.name for call in enclosing_calls(op.call))


def _label(op: Op, block: Block) -> str:
    """The name of a layer in its block; for code outside of layers the operation."""
    is_layer = op.kind in WEIGHTED | NORMS or not op.call.module._modules
    if op.call is block.scope or not is_layer or not op.call.name.startswith(block.scope.name):
        is_scale = op.kind == "mul" and len(op.inputs) == 1
        return "scale" if is_scale else op.kind.removeprefix("native_").strip("_")
    name = op.call.name[len(block.scope.name) :].lstrip(".")
    return name if len(name) <= 8 else "\n.".join(name.rsplit(".", 1))


def _gate_text(ops: Sequence[Op], block: Block) -> str:
    """The layers of a gate under the name of the module that has all of them."""
    labels = [_label(op, block).replace("\n", "") for op in ops]
    modules = [label.split(".")[:-1] for label in labels if "." in label]
    same = takewhile(lambda level: len(set(level)) == 1, zip(*modules, strict=False))
    name = ".".join(level[0] for level in same)
    inner = list(dict.fromkeys(label.removeprefix(f"{name}.") for label in labels))
    return fill(f"gate{' ' + name if name else ''}: {', '.join(inner)}", 24)


def _last_step(host: str, steps: Sequence[Step]) -> int | None:
    """The number of the last step in the host of a site; None if no step is in it, or all steps are."""
    inside = [number for number, step in enumerate(steps) if host in step.modules]
    return inside[-1] if inside and len(inside) < len(steps) else None


def _text_width(text: str) -> float:
    return 0.068 * max(map(len, text.split("\n")))


def _box(axis: Axes, left: float, height: float, label: str, face: str = "white") -> None:
    style: dict[str, Any] = {"boxstyle": "round,pad=0.3", "facecolor": face, "edgecolor": LINE}
    axis.text(left, height, label, ha="center", va="center", fontsize=SMALL, bbox=style, zorder=2)


def _diamond(axis: Axes, left: float, height: float, where: str) -> None:
    axis.plot(left, height, "D", markersize=7, color=COLORS[where], zorder=4, gid=f"site {where}")


def _circle(axis: Axes, left: float, height: float, label: str) -> None:
    style: dict[str, Any] = {"boxstyle": "circle,pad=0.2", "facecolor": "#f2f5fa", "edgecolor": "#2e4057"}
    axis.text(left, height, label, ha="center", va="center", fontsize=LARGE, bbox=style, zorder=3)
