"""The trunk: which of the blocks of a network are those of the part that reduces the image step by step."""

from __future__ import annotations

from .blocks import Block, Blocks, around, find_blocks, rows_of
from .errors import NoTrunkError
from .families import EMBEDDINGS, TRUNKS
from .geometry import Geometry
from .residuals import count_residuals
from .trace import Trace, Value


def find_trunk_blocks(model: str, trace: Trace, geometry: Geometry | None) -> list[Block]:
    """The blocks of the trunk in the order of execution; of a module that is called several times the first call.

    The trunk are the residual blocks that convolve and what stands beside them, in the same containers or of the same
    class; in a network without shortcuts the modules of several convolution units, or else the units themselves; and
    of these what leads to the lowest resolution: neither decoders nor the top-down part of a pyramid do.

    Args:
        model: what to call the model in an error.

    Raises:
        NoTrunkError: there are none.
    """
    found = find_blocks(trace, geometry) if geometry is not None else Blocks([], [], [])
    trunks = _children(trace, TRUNKS)
    found = found.those(lambda block: all(block.name.startswith(trunks[m]) for m in trunks if block.name.startswith(m)))
    if any(_convolves(block) for block in found.residual):
        blocks = found.residual + _beside(found.residual, found.composite, trace)
    else:
        blocks = _without_shortcuts(model, found, trace)
    if not blocks:
        raise NoTrunkError(
            f"no convolutional trunk in {model}: its forward pass has neither residual blocks nor convolution units on "
            "feature maps, which is what DropBlock drops parts of. For a transformer use drop path (stochastic depth)"
        )
    return _leading_down(sorted(blocks, key=lambda block: block.place))


def _without_shortcuts(model: str, found: Blocks, trace: Trace) -> list[Block]:
    """The trunk of a network that has no residual block that convolves."""
    embeddings = tuple(name for names in _children(trace, EMBEDDINGS).values() for name in names)
    if embeddings:
        return [block for block in found.single if block.name.startswith(embeddings)]
    blocks = found.composite or [block for block in found.single if not block.units[0].cuts_patches]
    # What neither norm nor activation follows is linear: an embedding of positions, a change of resolution.
    units = [unit for block in blocks for unit in block.units if unit.tail(block.scope) is not unit.convolved]
    joins = count_residuals(trace)
    if joins > len(units):
        raise NoTrunkError(
            f"no convolutional trunk in {model}: it has {joins} residual joins, and none of them adds what "
            "convolutions made of a feature map to that map; its convolutions only cut patches, embed positions or "
            "change the resolution. That is a transformer or an MLP: use drop path (stochastic depth) for it"
        )
    return blocks


def _children(trace: Trace, table: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Of the modules that ran and that a table of families knows: the prefix of each, and those of its children."""
    known = {}
    for call in trace.calls:
        if type(call.module).__name__ in table:
            prefix = f"{call.name}.".lstrip(".")
            known[prefix] = tuple(f"{prefix}{child}." for child in table[type(call.module).__name__])
    return known


def _convolves(block: Block) -> bool:
    return any(op.kind == "convolution" for residual in block.residuals for op in residual.branch_ops)


def _beside(residual: list[Block], others: list[Block], trace: Trace) -> list[Block]:
    """Of the blocks without a shortcut those like residual ones, or in a row with them: neither stem nor head."""
    kinds = {type(block.scope.module) for block in residual if block.name}
    rows = {row for block in residual for row in rows_of(block.name, trace)}
    return [
        block
        for block in others
        if any(type(call.module) in kinds for call in around(block.scope))
        or not rows.isdisjoint(rows_of(block.name, trace))
    ]


def _leading_down(blocks: list[Block]) -> list[Block]:
    """Those that reach the lowest resolution, and those that these are computed from."""
    lowest = max(block.map.level for block in blocks)
    pending = [block.output[1] for block in blocks if block.map.level == lowest]
    seen: set[Value] = set(pending)
    while pending:
        op = pending.pop().producer
        if op is not None:
            new = [value for value in op.inputs if value not in seen]
            seen.update(new)
            pending += new
    return [block for block in blocks if block.output[1] in seen or block.map.level == lowest]
