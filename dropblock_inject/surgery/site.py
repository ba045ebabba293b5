"""Site: one place in a model where a DropBlock goes, and how it is hooked in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Where = Literal["branch", "skip", "output", "end"]
Part = Literal["trunk", "stem", "transition", "neck", "decoder", "head"]


@dataclass(frozen=True)
class PlannedHook:
    """A forward hook that a site needs.

    Attributes:
        module: dotted name of the module it goes on.
        kind: the class of the hook, a subclass of :class:`surgery.hook.Hook`.
        arguments: what its constructor is given after the place.
    """

    module: str
    kind: type
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Splice:
    """How a site is hooked in: names only, so that a plan can be pickled and compared.

    Attributes:
        owner: dotted name of the module that the DropBlock is registered on.
        attribute: its name there.
        convolution: dotted name of the convolution that the DropBlock belongs to; None if it has none.
        hooks: the hooks, the one that masks first.
    """

    owner: str
    attribute: str
    convolution: str | None
    hooks: tuple[PlannedHook, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of all modules that take part."""
        return self.owner, *(hook.module for hook in self.hooks)


@dataclass(frozen=True)
class Site:
    """One place for a DropBlock, or for another layer.

    Attributes:
        name: dotted name of the DropBlock once injected, or of the other layer.
        host: dotted name of the module after which it stands; of the block itself for an identity shortcut.
        block: dotted name of the residual block, or of the convolution unit where there is none.
        stage: index of the stage, counted as :func:`find_stages` does; None off the trunk.
        part: the part of the network: ``"trunk"``, ``"stem"`` before it, ``"transition"`` between two of its blocks;
            behind it ``"neck"`` and ``"decoder"``, which join maps of several levels, and ``"head"``.
        where: ``"branch"``, ``"skip"``, ``"output"`` or ``"end"``.
        channels: channels of the feature map there.
        map_size: spatial size of the feature map there, in pixels, for the input the model was traced with.
        block_size: the block size in force there, in pixels per axis.
        keep_prob: the target keep_prob.
        channel_dim: axis of the channels: 1, or -1 where they come last.
        layers: dotted names of the convolution, the normalisation and the activation that it stands behind. Name
            patterns are matched against these, `name`, `host` and `block`.
    """

    name: str
    host: str
    block: str
    stage: int | None
    part: Part
    where: Where
    channels: int
    map_size: tuple[int, ...]
    block_size: tuple[int, ...]
    keep_prob: float
    channel_dim: int
    layers: tuple[str, ...]
    splice: Splice = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a pattern may match."""
        return tuple(dict.fromkeys((self.name, *self.layers, self.host, self.block)))

    @property
    def covers_map(self) -> bool:
        """Whether the block is as large as the map, so that whole channels are dropped."""
        return self.block_size == self.map_size

    def as_dict(self) -> dict[str, Any]:
        """The same as a dict of plain values, for loggers and JSON; without the splice, which is internal."""
        return {name: value for name, value in vars(self).items() if name != "splice"}
