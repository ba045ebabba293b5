"""The trunk: which of the blocks of a network are those of the part that reduces the image step by step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch import nn

from ..errors import NoTrunkError
from ..tracing.operations import WEIGHTED
from ..tracing.trace import Call, Trace, Value, ancestors, first_convolution, original
from .blocks import Block, Blocks, enclosing_calls, enclosing_sequences, find_blocks, sequences_of_blocks
from .conv_norm_act import ConvNormAct
from .families import EMBEDDINGS, TRUNKS
from .feature_maps import Geometry
from .levels import blocks_by_level
from .off_trunk import OffTrunk, placed, puts_out_result, read_by_layers
from .residual_adds import count_residuals
from .timm_feature_info import strides_dilated_away
from .upsampling import raised_values, raising_ops, values_behind_grids


def find_trunk_levels(
    model: nn.Module, trace: Trace, geometry: Geometry | None
) -> tuple[dict[int, list[Block]], OffTrunk, list[ConvNormAct]]:
    """The blocks of the trunk, from the highest resolution to the lowest; what is off the trunk; and all units.

    A level is log2 of the reduction as it would be without dilation. The first call of a module that is called several
    times is its block.

    The trunk consists of the residual blocks that convolve and of the blocks beside them, in the same containers or of
    the same class. In a network without shortcuts it consists of the modules of several convolution units, or else of
    the units themselves; and of the blocks at its end, if that is where all of them are. The blocks of the trunk lead
    to the lowest resolution, on the way down: a decoder, the top-down part of a pyramid, and the path down again of a
    PAN neck are not parts of it. Where a module has all of the way down and puts out maps of several resolutions, as
    an encoder does, the trunk is in that module.

    Raises:
        NoTrunkError: there are none.
    """
    if geometry is None:
        raise NoTrunkError(
            f"no convolutional trunk in {type(model).__name__}: none of its convolutions was called on more than one "
            "pixel, and DropBlock drops parts of feature maps"
        )
    found = find_blocks(trace, geometry)
    every = list(found)
    raised = raised_values(
        trace, geometry, [(r.skip, r.branch_ops) for block in found.residual for r in block.residuals]
    )
    trunks = _children(trace, TRUNKS)
    found = found.filter(lambda block: all(_is_in(block, trunks[m]) for m in trunks if block.name.startswith(m)))
    found = found.filter(lambda block: not geometry.gates.issuperset(_results(block)))
    blocks = found.residual + _beside(found.residual, found.composite, trace)
    convolves = any(_convolves(block) and block.output[1] not in raised for block in found.residual)
    if not convolves or _is_in_a_plain_network(_on_the_way_down(blocks, raised), found, raised, geometry):
        blocks = _without_shortcuts(type(model).__name__, found, trace, geometry, raised)
    blocks = _before_neck(sorted(blocks, key=lambda block: block.order), raised)
    _refuse_a_decoder_alone(type(model).__name__, blocks, raised, trace, geometry)
    behind_raise = [block for block in every if block.output[1] in raised]
    levels = _leading_down(blocks_by_level(blocks, strides_dilated_away(model)), behind_raise)
    levels = _in_the_encoder(levels, trace, geometry)
    return levels, placed(every, list(levels.values()), raised, trace, geometry), found.units


def _on_the_way_down(blocks: list[Block], raised: set[Value]) -> list[Block]:
    """The blocks that lead to the lowest resolution: not those that a neck has beside each level."""
    levels: dict[int, list[Block]] = defaultdict(list)
    for block in blocks:
        if block.output[1] not in raised:
            levels[block.map.level].append(block)
    return [block for level in _leading_down(levels).values() for block in level]


def _is_in_a_plain_network(blocks: list[Block], found: Blocks, raised: set[Value], geometry: Geometry) -> bool:
    """Whether these blocks are at one resolution, and more convolutions lead down to it or further down, in steps."""
    if len({block.map.level for block in blocks}) > 1:
        return False
    start, level = min(block.order for block in blocks), blocks[0].map.level
    units = [
        unit
        for block in (*found.composite, *found.single)
        for unit in block.units
        if block not in blocks
        and (block.order < start or (block.map.level > level and block.output[1] not in raised))
        and unit.op.kind == "convolution"
        and (unit.is_activated(block.scope) or len(block.units) > 1)  # branches side by side have one activation
    ]
    levels = {feature_map.level for unit in units if (feature_map := geometry.map_of(unit.convolved))}
    inside = [unit for block in blocks for unit in block.units if unit.op.kind == "convolution"]
    return len(levels) > 1 and len(units) > len(inside)


def _without_shortcuts(model: str, found: Blocks, trace: Trace, geometry: Geometry, raised: set[Value]) -> list[Block]:
    """The trunk of a network in which residual blocks do not make up the trunk."""
    embeddings = tuple(name for names in _children(trace, EMBEDDINGS).values() for name in names)
    if embeddings:
        return [block for block in found.single if _is_in(block, embeddings)]
    context = values_behind_grids(trace, geometry)
    encoder = found.filter(lambda block: block.output[1] not in raised and block.output[1] not in context)
    read = read_by_layers(trace)
    singles = [
        block for block in encoder.single if not block.units[0].cuts_patches and not puts_out_result(block, read)
    ]
    blocks = [block for block in encoder.composite if not (_ends_in_bare_unit(block) and puts_out_result(block, read))]
    if not blocks or _is_in_a_plain_network(blocks, encoder, raised, geometry):
        blocks += singles
    else:
        blocks += _at_the_bottom(singles, blocks, trace, geometry)
    # What neither norm nor activation follows is linear: an embedding of positions, a change of resolution.
    units = [unit for block in blocks for unit in block.units if unit.tail(block.scope) is not unit.convolved]
    adds = count_residuals(trace)
    if adds > len(units):
        products = sum(op.kind in WEIGHTED and op.kind != "convolution" for op in trace.ops)
        reason = (
            "its convolutions only cut patches, embed positions or change the resolution. That is a transformer or an "
            "MLP: use drop path (stochastic depth) for it"
            if products >= adds
            else "its blocks are of none of the kinds that the walker knows, such as those whose maps have several "
            "resolutions at once"
        )
        raise NoTrunkError(
            f"no convolutional trunk in {model}: it has {adds} residual adds, and none of them adds what "
            f"convolutions made of a feature map to that map; {reason}"
        )
    blocks += (block for block in encoder.residual if block.units and _convolves(block))
    if not blocks:
        raise NoTrunkError(f"no convolutional trunk in {model}: {_reason(found, encoder)}")
    return blocks


def _ends_in_bare_unit(block: Block) -> bool:
    """Whether a block puts out what its last convolution does, without norm and activation."""
    return block.units[-1].convolved is original(block.output[1], block.scope)


def _at_the_bottom(singles: list[Block], others: list[Block], trace: Trace, geometry: Geometry) -> list[Block]:
    """The units at lower resolutions than all other blocks, from which the decoder of a U-Net raises the resolution."""
    lowest = max(block.map.level for block in others)
    before_raise = ancestors(value for op in raising_ops(trace, geometry) for value in op.inputs)
    return [block for block in singles if block.map.level > lowest and block.output[1] in before_raise]


def _reason(found: Blocks, encoder: Blocks) -> str:
    """The reason why there is no trunk, for a network without residual adds."""
    if not any(found):
        return "none of its convolutions puts out a feature map, with several channels and more than one pixel"
    if not any(encoder):
        return "it only raises the resolution, as a decoder or a generator does; a trunk leads to lower resolutions"
    return "its convolutions only cut patches or put out the result"


def _results(block: Block) -> list[Value]:
    """The sums of a residual block; of any other its output."""
    return [residual.add.outputs[0] for residual in block.residuals] or [block.output[1]]


def _is_in(block: Block, prefixes: tuple[str, ...]) -> bool:
    return f"{block.name}.".startswith(prefixes)


def _children(trace: Trace, table: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Of the modules that a table of families knows: the prefix of each, and those of its children."""
    found = {}
    for name, module in trace.modules.items():
        if type(module).__name__ in table:
            prefix = f"{name}.".lstrip(".")
            found[prefix] = tuple(f"{prefix}{child}." for child in table[type(module).__name__])
    return found


def _convolves(block: Block) -> bool:
    return any(op.kind == "convolution" for residual in block.residuals for op in residual.branch_ops)


def _beside(residual: list[Block], others: list[Block], trace: Trace) -> list[Block]:
    """The blocks without a shortcut that belong to the trunk.

    These are blocks of the same class as a residual block, blocks in the same sequence as one, and blocks that contain
    one of these. The stem is none of them.
    """
    kinds = {type(block.scope.module) for block in residual if block.name}
    beside = {block for block in others if any(type(call.module) in kinds for call in enclosing_calls(block.scope))}
    sequences = sequences_of_blocks([block.scope for block in (*residual, *beside)], trace)
    beside |= {block for block in others if not sequences.isdisjoint(enclosing_sequences(block.name, trace))}
    scopes = [block.scope for block in beside]
    return [block for block in others if block in beside or any(block.scope.encloses(scope) for scope in scopes)]


def _before_neck(blocks: list[Block], raised: set[Value]) -> list[Block]:
    """The blocks before the first upsampling, if the lowest resolution is reached before it.

    A decoder and a path that goes down again (PAN) come after it. A network that raises maps on its way down, as HRNet
    does, is all trunk.
    """
    lowest = max(block.map.level for block in blocks)
    first = next(block for block in blocks if block.map.level == lowest)
    return blocks if first.output[1] in raised else [block for block in blocks if block.output[1] not in raised]


def _refuse_a_decoder_alone(
    model: str, blocks: list[Block], raised: set[Value], trace: Trace, geometry: Geometry
) -> None:
    """Raises if the lowest blocks are computed from maps of a still lower resolution, as behind a transformer."""
    first = max(blocks, key=lambda block: block.map.level)
    if first.output[1] not in raised:
        return
    before = ancestors([first.output[1]])
    sources = [op.inputs[0] for op in raising_ops(trace, geometry) if not before.isdisjoint(op.outputs)]
    if any((source := geometry.map_of(value)) and source.level > first.map.level for value in sources):
        raise NoTrunkError(
            f"no convolutional trunk in {model}: its convolutional blocks, such as {first.name}, come behind maps of a "
            "lower resolution, to which no convolutional block leads. They are the decoder of a transformer; use drop "
            "path (stochastic depth) for that"
        )


def _leading_down(levels: dict[int, list[Block]], behind_raise: Sequence[Block] = ()) -> dict[int, list[Block]]:
    """The blocks of the lowest resolution, and of the others those that these are computed from.

    Blocks of the lowest resolution without a shortcut are left out if they are in one part of the network with others
    that lead nowhere, or are behind an upsampling and not computed from them: a head or a lateral convolution of each
    level.

    Args:
        levels: the blocks by level.
        behind_raise: blocks behind an upsampling.
    """
    lowest = max(levels)
    before = ancestors(block.output[1] for block in levels[lowest])
    leading = {
        level: [b for b in blocks if level == lowest or b.output[1] in before] for level, blocks in levels.items()
    }
    aside = [b for level in levels for b in levels[level] if b not in leading[level]]
    aside = [block for block in (*aside, *behind_raise) if not block.residuals]
    shared = {part for level in levels if level < lowest for b in leading[level] for part in _parts_around(b)}
    trunk = [block for block in levels[lowest] if block.residuals or not _is_one_of_several(block, aside, shared)]
    if len(trunk) < len(levels[lowest]):
        rest = {**levels, lowest: trunk} if trunk else {k: v for k, v in levels.items() if k < lowest}
        return _leading_down(rest, behind_raise)
    return {level: blocks for level, blocks in leading.items() if blocks}


def _is_one_of_several(block: Block, others: list[Block], shared: set[str]) -> bool:
    """Whether a part of the network has this block and another that is not computed from it.

    Args:
        block: a block.
        others: those that it may be together with.
        shared: the names of the parts that do not count.
    """
    parts = _parts_around(block) - shared
    together = [other for other in others if other is not block and not parts.isdisjoint(_parts_around(other))]
    return any(block.output[1] not in ancestors([other.output[1]]) for other in together)


def _in_the_encoder(levels: dict[int, list[Block]], trace: Trace, geometry: Geometry) -> dict[int, list[Block]]:
    """The blocks of the encoder, if there is one; else all of them.

    It is the innermost module that contains the first convolution and blocks of every level, and puts out maps of
    several resolutions. What follows it at the lowest resolution is the beginning of a decoder.
    """
    first, lowest = first_convolution(trace), levels[max(levels)][0]
    producer = lowest.output[1].producer
    for call in enclosing_calls(producer.call if producer else None):
        maps = [feature_map for value in call.outputs.values() if (feature_map := geometry.map_of(value))]
        if call.parent is None or first is None or not call.contains(first) or len({m.level for m in maps}) < 2:
            continue
        inside = {level: [b for b in blocks if _computes(call, b)] for level, blocks in levels.items()}
        if all(inside.values()):
            return inside
    return levels


def _computes(call: Call, block: Block) -> bool:
    """Whether a call computes the output of a block."""
    producer = block.output[1].producer
    return producer is not None and call.contains(producer)


def _parts_around(block: Block) -> set[str]:
    """The names of the modules around a block, the model itself left out."""
    names = block.name.split(".")
    return {".".join(names[:count]) for count in range(1, len(names))}
