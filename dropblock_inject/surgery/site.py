"""Site: one place in a model where a DropBlock goes, and how it is spliced in."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Where = Literal["branch", "skip", "output"]
Point = Literal["after", "before", "beside", "slot", "end"]
Channels = tuple[int, int]  # the channels from the first number up to, but not including, the second


@dataclass(frozen=True)
class Argument:
    """An argument of a module's call.

    Attributes:
        module: dotted name of the module.
        key: its position, or its name if it is passed by keyword.
        always: whether the module is called just once in its block, so that it always is this tensor that it reads.
    """

    module: str
    key: int | str
    always: bool


@dataclass(frozen=True)
class Sight:
    """Where a shortcut that the code of its block reads is seen, and how long before the end of the branch.

    Attributes:
        module: dotted name of the module that is given it, or that puts it out.
        key: which argument it is, or which entry of a tuple output (None: the output itself).
        output: whether it is an output.
        tokens: whether it is seen as tokens (N, H * W, C) of the feature map (N, C, H, W).
        channels: which channels of what is seen are the shortcut; None: all.
        calls: which call of the host after that is the end of the branch: 1 for the next.
        end_channels: which channels of that are the end of the branch; None: all.
    """

    module: str
    key: int | str | None
    output: bool
    tokens: bool
    channels: Channels | None
    calls: int
    end_channels: Channels | None


@dataclass(frozen=True)
class Splice:
    """Where exactly a DropBlock is hooked in, as names only, so that it can be pickled.

    Attributes:
        owner: the module the DropBlock is registered on, under `attribute`.
        point: ``"after"`` masks the output of `host`; ``"before"`` masks its argument `key`; ``"beside"`` masks, for
            all who read it later, the tensor that `host` is given as `key`, but not for `host` itself; ``"slot"`` puts
            the DropBlock in the place of `host`, an identity that waits there for it; ``"end"`` adds to the output of
            `host`, the end of a branch, what the mask changes in the shortcut, so that the sum is of the masked one.
        key: which argument (``"before"``) or which entry of a tuple output (``"after"``; None: all of it) is masked.
        unmasked: arguments that read the same tensor and must not see the mask: the branch beside a masked skip.
        sight: where the shortcut is seen, for ``"end"``.
    """

    owner: str
    attribute: str
    host: str
    point: Point
    key: int | str | None = None
    unmasked: tuple[Argument, ...] = ()
    sight: Sight | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of all modules it takes part of."""
        seen_at = (self.sight.module,) if self.sight else ()
        return self.owner, self.host, *(argument.module for argument in self.unmasked), *seen_at


@dataclass(frozen=True)
class Site:
    """One place for a DropBlock.

    Attributes:
        name: dotted name of the DropBlock once injected.
        host: dotted name of the module after which it stands; of the block itself for an identity skip.
        block: dotted name of the residual block, or of the convolution unit where there is none.
        stage: index of the stage, counted as :func:`find_stages` does.
        where: ``"branch"``, ``"skip"`` or ``"output"``.
        channels: channels of the feature map there.
        map_size: spatial size of the feature map there, in pixels, for the input the model was traced with.
        block_size: the block size in force there, in pixels per axis.
        keep_prob: the target keep_prob.
        channel_dim: axis of the channels: 1, or -1 where they come last.
    """

    name: str
    host: str
    block: str
    stage: int
    where: Where
    channels: int
    map_size: tuple[int, ...]
    block_size: tuple[int, ...]
    keep_prob: float
    channel_dim: int
    splice: Splice = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The same as a dict of plain values, for loggers and JSON; without the splice, which is the package's own."""
        plain = asdict(self)
        del plain["splice"]
        return plain
