"""Residual blocks written in ways of their own: all come out right, shown by effect.

Each block can compute its branch alone. With everything dropped on the shortcut the block must put out just that: the
mask is on the shortcut, and the branch has not seen it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from dropblock_inject import (
    DropBlock,
    dropblock_disabled,
    find_stages,
    inject_dropblock,
    plan_dropblock,
    remove_dropblock,
)
from dropblock_inject.placement.branch_end import CorrectOutput

WIDTH = 8
IMAGE = torch.empty(1, 3, 16, 16)


def unit(width: int = WIDTH, activation: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU() if activation is None else activation
    )


class Block(nn.Module):
    """Two units and a sum; the others change one thing each."""

    sites = ("branch", "branch", "skip")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = unit(), unit(activation=nn.Identity())

    def branch(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class TorchAdd(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.branch(x), x)


class InPlaceOnBranch(Block):
    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out += x
        return out


class InPlaceOnShortcut(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x += self.branch(x)
        return x


class InPlaceOnInput(Block):
    """Writes into the tensor it is given, and hands that on."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.branch(x)
        return x


class Functional(Block):
    def __init__(self) -> None:
        super().__init__()
        self.sum = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.sum.add(x, self.branch(x))


class SharedActivation(Block):
    """One in-place ReLU, called twice within the block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH)
        self.conv2, self.bn2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.act = nn.ReLU(inplace=True)
        del self.first, self.second

    def branch(self, x: Tensor) -> Tensor:
        return self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))


class FunctionalActivation(SharedActivation):
    """SiLU, which does not commute with the scale of a mask, and no module to hook behind it but the next reader."""

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.silu(self.bn1(self.conv1(x)))))


class GoesThroughItsChildren(nn.Module):
    """Runs whatever is registered on it."""

    sites = ("branch", "branch", "skip")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = unit(), unit(activation=nn.Identity())

    def branch(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class ResidualSequence(nn.Sequential):
    sites = ("branch", "branch", "skip")

    def __init__(self) -> None:
        super().__init__(*unit(), *unit(activation=nn.Identity()))

    def branch(self, x: Tensor) -> Tensor:
        return nn.Sequential.forward(self, x)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Keywords(Block):
    def forward(self, *, features: Tensor, scale: float = 1.0) -> Tensor:
        return features + self.branch(features) * scale


class CallsWithKeywords(nn.Module):
    sites = ("branch", "branch", "skip")

    def __init__(self) -> None:
        super().__init__()
        self.block = Keywords()

    def branch(self, x: Tensor) -> Tensor:
        return self.block.branch(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(features=x)


class SecondArgument(Block):
    """The shortcut comes from the parent, as the second argument."""

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return self.branch(x) + shortcut


class GivesTheShortcut(nn.Module):
    sites = ("branch", "branch", "skip")

    def __init__(self) -> None:
        super().__init__()
        self.block = SecondArgument()

    def branch(self, x: Tensor) -> Tensor:
        return self.block.branch(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, x)


class Checkpointed(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + checkpoint(self.branch, x, use_reentrant=False)


class Lambda(Block):
    def __init__(self) -> None:
        super().__init__()
        self.join = lambda x, out: x + out

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.branch(x))


class StochasticDepthOn(Block):
    def __init__(self) -> None:
        super().__init__()
        self.drop_path = StochasticDepth(1e-12, "row")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.branch(x))


class IdentityShortcutModule(Block):
    def __init__(self) -> None:
        super().__init__()
        self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


class Projected(Block):
    def __init__(self) -> None:
        super().__init__()
        self.projection, self.norm = nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.norm(self.projection(x))


class PreActivated(nn.Module):
    """The fork is behind the first norm and activation."""

    sites = ("branch", "branch", "skip")

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.act1 = nn.BatchNorm2d(WIDTH), nn.ReLU()
        self.conv1, self.norm2, self.act2 = nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.ReLU()
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.projection = nn.Conv2d(WIDTH, WIDTH, 1)

    def branch(self, x: Tensor) -> Tensor:
        return self.conv2(self.act2(self.norm2(self.conv1(self.act1(self.norm1(x))))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(x))
        return self.conv2(self.act2(self.norm2(self.conv1(x)))) + self.projection(x)


class ChannelsLast(nn.Module):
    """Linear layers over the channels of a map whose channels come last."""

    sites = ("branch", "branch", "branch", "skip")

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH)
        self.norm, self.grow, self.act = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.GELU()
        self.shrink = nn.Linear(3 * WIDTH, WIDTH)

    def branch(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.shrink(self.act(self.grow(x))).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Gated(Block):
    """Squeeze-excite at the end of the branch: a site of its own, none on its 1x1 maps."""

    sites = ("branch", "branch", "branch", "skip")

    class SqueezeExcite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reduce, self.expand = nn.Conv2d(WIDTH, 2, 1), nn.Conv2d(2, WIDTH, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()

    def __init__(self) -> None:
        super().__init__()
        self.gate = self.SqueezeExcite()

    def branch(self, x: Tensor) -> Tensor:
        return self.gate(super().branch(x))


class AddModule(Block):
    """The sum is in a module of its own, which is given both operands."""

    class Add(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left + right

    def __init__(self) -> None:
        super().__init__()
        self.add = self.Add()

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.branch(x), x)


class GivesAProjection(nn.Module):
    """The block is given its shortcut, projected by the module around it."""

    sites = ("branch", "branch", "skip")

    def __init__(self) -> None:
        super().__init__()
        self.projection, self.block = nn.Conv2d(WIDTH, WIDTH, 1), SecondArgument()

    def branch(self, x: Tensor) -> Tensor:
        return self.block.branch(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.projection(x))


class ReadsItself(Block):
    """The code of the block reads the shortcut, and not only its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.drop_path = nn.Identity()

    def branch(self, x: Tensor) -> Tensor:
        return self.drop_path(self.second(torch.cat((x, self.first(x)), 1)))


class UsesDropPathTwice(ReadsItself):
    """The module at the end of the branch has been called before, on something else."""

    def branch(self, x: Tensor) -> Tensor:
        return self.drop_path(self.second(torch.cat((x, self.drop_path(self.first(x))), 1)))


class DualPath(Block):
    """Adds some of the channels, hands on others as they are, and appends new ones (as DPN does)."""

    def __init__(self) -> None:
        super().__init__()
        self.second = unit(activation=nn.Identity())
        self.narrow = nn.Conv2d(WIDTH, 6, 1)

    sites = ("branch", "branch", "branch", "skip")

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        out = self.narrow(super().branch(x))
        return x[:, :4], x[:, 4:6], out[:, :4], out[:, 4:]

    def branch(self, x: Tensor) -> Tensor:
        _, dense, added, appended = self.parts(x)
        return torch.cat((added, dense, appended), 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut, dense, added, appended = self.parts(x)
        return torch.cat((shortcut + added, dense, appended), 1)


class DualPathBySplit(DualPath):
    """Of which neither the channels that are added nor those they are added to come first."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, dense, shortcut = x.split((2, 2, 4), 1)
        appended, added = self.narrow(Block.branch(self, x)).split((2, 4), 1)
        return shortcut, dense, added, appended


class DualPathFromTheEnd(DualPath):
    """Slices that count from the end."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        out = self.narrow(Block.branch(self, x))
        return x.narrow(1, 3, 4), x[:, -1:].expand(-1, 2, -1, -1), out[:, -4:], out[:, :-4]


class DualPathChannelsLast(DualPath):
    """The same with the channels at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first = nn.LayerNorm(WIDTH), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.second, self.narrow = nn.GELU(), nn.Linear(WIDTH, 6)

    sites = ("branch", "branch", "skip")

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = x.permute(0, 2, 3, 1)
        out = self.narrow(self.second(self.first(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        return x[..., 1:5], x[..., 4:6], out[..., :4], out[..., 4:]

    def branch(self, x: Tensor) -> Tensor:
        _, dense, added, appended = self.parts(x)
        return torch.cat((added, dense, appended), -1).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        shortcut, dense, added, appended = self.parts(x)
        return torch.cat((shortcut + added, dense, appended), -1).permute(0, 3, 1, 2)


class Tokens(nn.Module):
    """Flattens its input and goes on with tokens, twice: nobody is given the second shortcut as a map."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.mlp1 = nn.LayerNorm(WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.norm2, self.mlp2 = nn.LayerNorm(WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.drop_path1, self.drop_path2 = nn.Identity(), nn.Identity()

    def mix(self, x: Tensor, norm: nn.Module, mlp: nn.Module, drop_path: nn.Module) -> Tensor:
        tokens = mlp(norm(x.flatten(2).transpose(1, 2)))
        return drop_path(tokens.transpose(1, 2).reshape(x.shape))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x, self.norm1, self.mlp1, self.drop_path1)
        return x + self.mix(x, self.norm2, self.mlp2, self.drop_path2)


class ThreeOperands(Block):
    """Two branches and the shortcut in one sum."""

    sites = ("branch", "branch", "branch", "branch", "skip")

    def __init__(self) -> None:
        super().__init__()
        self.third, self.fourth = unit(), unit(activation=nn.Identity())

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x) + self.fourth(self.third(x))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().branch(x) + self.fourth(self.third(x))


class ActivationThenNorm(Block):
    """A unit in another order: one site, behind all of it."""

    sites = ("branch", "skip")

    def branch(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(WIDTH))


class CalledTwice(Block):
    """One convolution with a norm for each of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)

    def branch(self, x: Tensor) -> Tensor:
        return self.second(self.conv(F.relu(self.first(self.conv(x)))))


class InTuple(Block):
    """The shortcut comes in a tuple."""

    def forward(self, entries: tuple[Tensor, None]) -> Tensor:
        x, _ = entries
        return super().forward(x)


class GivesATuple(nn.Module):
    sites = ("branch", "branch", "skip")

    def __init__(self) -> None:
        super().__init__()
        self.block = InTuple()

    def branch(self, x: Tensor) -> Tensor:
        return self.block.branch(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.block((x, None))


BLOCKS = (
    Block,
    TorchAdd,
    InPlaceOnBranch,
    InPlaceOnShortcut,
    InPlaceOnInput,
    Functional,
    SharedActivation,
    FunctionalActivation,
    GoesThroughItsChildren,
    ResidualSequence,
    CallsWithKeywords,
    GivesTheShortcut,
    Checkpointed,
    Lambda,
    StochasticDepthOn,
    IdentityShortcutModule,
    Projected,
    PreActivated,
    ChannelsLast,
    Gated,
    AddModule,
    GivesAProjection,
    ReadsItself,
    UsesDropPathTwice,
    DualPath,
    DualPathBySplit,
    DualPathFromTheEnd,
    DualPathChannelsLast,
    ThreeOperands,
    ActivationThenNorm,
    CalledTwice,
    GivesATuple,
)


def network(block: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1), block(), block())


@pytest.mark.parametrize("block", BLOCKS)
def test_sites(block: type[nn.Module]) -> None:
    plan = plan_dropblock(network(block), 1, where=("paper", "output"), example_input=IMAGE)
    for index in "12":
        kinds = sorted(site.where for site in plan if site.block.split(".")[0] == index)
        assert kinds == sorted((*block.sites, "output"))
    assert {site.map_size for site in plan} == {(8, 8)}
    widths = {4, 6, WIDTH} if issubclass(block, DualPath) else {WIDTH, 3 * WIDTH}
    assert {site.channels for site in plan} <= widths


@pytest.mark.parametrize("block", BLOCKS)
def test_the_shortcut_is_masked_and_the_branch_does_not_see_it(block: type[nn.Module]) -> None:
    net = network(block)
    x = torch.randn(4, WIDTH, 8, 8)
    net.eval()
    expected = net[1].branch(x)
    assert not torch.allclose(expected, net[1](x.clone()))
    inject_dropblock(net, 1, where="skip", keep_prob=1e-9, block_size=8, example_input=IMAGE, include=r"re:1\b.*")
    drops = [module for module in net.modules() if isinstance(module, DropBlock)]
    assert len(drops) == 1
    drops[0].train()
    torch.testing.assert_close(net[1](x.clone()), expected)
    net.eval()
    assert not torch.allclose(net[1](x.clone()), expected)


@pytest.mark.parametrize("block", BLOCKS)
def test_each_site_runs_once_and_trains(block: type[nn.Module]) -> None:
    net = network(block).train()
    plan = inject_dropblock(net, 1, where=("paper", "output"), keep_prob=0.5, block_size=2, example_input=IMAGE)
    runs = dict.fromkeys((site.name for site in plan), 0)
    for name, module in net.named_modules():
        if isinstance(module, DropBlock):

            def count(module: nn.Module, args: tuple, output: Tensor, name: str = name) -> None:
                runs[name] += 1
                assert ((output == 0) & (args[0] != 0)).any(), f"{name} drops nothing"

            module.register_forward_hook(count)
    output = net(torch.randn(4, 3, 16, 16))
    assert set(runs.values()) == {1}
    output.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    assert remove_dropblock(net) == len(plan)


@pytest.mark.parametrize("block", [Block, InPlaceOnInput, InPlaceOnShortcut, InPlaceOnBranch])
def test_a_block_at_rest_reads_what_the_one_before_put_out(block: type[nn.Module]) -> None:
    net = network(block).eval()
    inject_dropblock(net, 1, where="skip", keep_prob=0.5, block_size=3, example_input=IMAGE)
    first, second = (module for module in net.modules() if isinstance(module, DropBlock))
    x = torch.randn(4, WIDTH, 8, 8)
    first.train()
    second.enabled = False
    torch.manual_seed(1)
    between = net[1](x.clone())
    expected = net[2](between.clone())
    torch.manual_seed(1)
    torch.testing.assert_close(net[2](net[1](x.clone())), expected)


def test_channels_that_others_read_as_well_are_no_end_of_a_branch() -> None:
    class Overlapping(DualPath):
        def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            out = self.narrow(Block.branch(self, x))
            return x[:, :4], x[:, 4:6], out[:, :4], out[:, 3:5]

    plan = plan_dropblock(network(Overlapping), 1, example_input=IMAGE)
    assert {site.where for site in plan} == {"branch"}
    assert "The shortcut of 1, 2 cannot be masked alone: no skip site there" in str(plan)


def test_a_shortcut_out_of_reach_is_left_alone_and_said() -> None:
    """It belongs to the module around it, which reads it too."""

    class OutOfReach(Block):
        def forward(self, entries: tuple[Tensor, None]) -> Tensor:
            x, _ = entries
            return x + 2 * self.branch(x)

    class LongSkip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.decode = nn.Conv2d(3, WIDTH, 3, 2, 1), OutOfReach(), nn.Conv2d(WIDTH, WIDTH, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return torch.cat((self.block((x, None)), self.decode(x)), 1)

    net = LongSkip().train()
    plan = inject_dropblock(net, 1, keep_prob=0.5, block_size=2, example_input=IMAGE)
    assert {site.where for site in plan} == {"branch"}
    assert "The shortcut of block cannot be masked alone: no skip site there" in str(plan)
    read = []
    net.decode.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    net(torch.randn(2, 3, 16, 16))
    assert (read[0] != 0).all()


@pytest.mark.parametrize(
    "example", [(torch.empty(1, WIDTH, 8, 8),), {"x": torch.empty(1, WIDTH, 8, 8)}], ids=["args", "kwargs"]
)
def test_a_model_may_be_called_otherwise_than_it_was_traced(example) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, *args, **kwargs) -> Tensor:
            return self.block(*args, **kwargs)

    net = Around().train()
    inject_dropblock(net, 1, where="paper", keep_prob=0.5, block_size=2, example_input=example)
    x = torch.randn(2, WIDTH, 8, 8)
    torch.manual_seed(1)
    by_position = net(x)
    torch.manual_seed(1)
    torch.testing.assert_close(net(x=x), by_position)


def test_reentrant_checkpointing_within_a_block_is_refused_where_it_would_give_wrong_gradients() -> None:
    class Reentrant(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + checkpoint(self.branch, x, use_reentrant=True)

    net = network(Reentrant).train()
    inject_dropblock(net, 1, where="skip", keep_prob=0.5, block_size=3, example_input=IMAGE)
    with pytest.raises(RuntimeError, match=r"called with another tensor .* use_reentrant=False"):
        net(torch.randn(2, 3, 16, 16)).sum().backward()
    remove_dropblock(net)
    inject_dropblock(net, 1, where="branch", keep_prob=0.5, block_size=3, example_input=IMAGE)
    net(torch.randn(2, 3, 16, 16)).sum().backward()


def test_a_block_that_runs_twice_is_one_block() -> None:
    shared = Block()
    net = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1), shared, shared)
    plan = inject_dropblock(net, 1, where="paper", keep_prob=0.5, example_input=IMAGE)
    assert sorted(site.where for site in plan) == ["branch", "branch", "skip"]
    runs = []
    for module in net.modules():
        if isinstance(module, DropBlock):
            module.register_forward_hook(lambda module, args, output: runs.append(module))
    net.train()(torch.randn(2, 3, 16, 16))
    assert len(runs) == 2 * len(plan)


def test_shortcuts_that_nobody_is_given_as_a_map() -> None:
    """Each of the two in turn: with all of it dropped the sum is what the branch alone puts out."""
    net = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1), Tokens(), Block()).eval()
    plan = inject_dropblock(
        net, 1, where="skip", keep_prob=1e-9, block_size=8, example_input=IMAGE, include=r"re:1\b.*"
    )
    assert [site.splice.hooks[0].kind for site in plan] == [CorrectOutput, CorrectOutput]
    x = torch.randn(4, WIDTH, 8, 8)
    block = net[1]
    first = block.mix(x, block.norm1, block.mlp1, nn.Identity())
    second = block.mix(x + first, block.norm2, block.mlp2, nn.Identity())
    drops = [net.get_submodule(site.name) for site in plan]
    drops[1].train()
    torch.testing.assert_close(block(x), second)
    drops[1].eval()
    drops[0].train()
    torch.testing.assert_close(block(x), first + block.mix(first, block.norm2, block.mlp2, nn.Identity()))


class Flat(nn.Module):
    """A residual network of which all the code stands in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, 2, 1)
        self.conv1, self.norm1 = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.BatchNorm2d(WIDTH)
        self.conv2, self.norm2 = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.BatchNorm2d(WIDTH)
        self.conv3, self.norm3 = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1), nn.BatchNorm2d(WIDTH)
        self.conv4, self.norm4 = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.BatchNorm2d(WIDTH)
        self.shortcut = nn.Conv2d(WIDTH, WIDTH, 1, 2)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu1(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return self.relu2(self.shortcut(x) + self.norm4(self.conv4(F.relu(self.norm3(self.conv3(x))))))


def test_joins_outside_any_block() -> None:
    net = Flat().train()
    assert [(stage.reduction, [block.name for block in stage.blocks]) for stage in find_stages(net, IMAGE)] == [
        (2, ["conv1"]),
        (4, ["conv3"]),
    ]
    plan = inject_dropblock(net, [1, 2], where=("paper", "output"), keep_prob=0.5, block_size=2, example_input=IMAGE)
    assert [(site.stage, site.where, site.host) for site in plan] == [
        (1, "branch", "norm1"),
        (1, "branch", "norm2"),
        (1, "skip", "stem"),
        (1, "output", "relu1"),
        (2, "branch", "norm3"),
        (2, "branch", "norm4"),
        (2, "skip", "shortcut"),
        (2, "output", "relu2"),
    ]
    drop = net.get_submodule(plan[2].name)
    net.eval()
    drop.train()
    drop.keep_prob = 1e-9
    x = torch.randn(2, 3, 16, 16)
    outputs = []
    net.relu1.register_forward_hook(lambda module, args, output: outputs.append(output))
    net(x)
    with dropblock_disabled(net):
        branch = net.norm2(net.conv2(F.relu(net.norm1(net.conv1(net.stem(x))))))
    torch.testing.assert_close(outputs[0], F.relu(branch))


def test_blocks_nested_in_blocks() -> None:
    class Outer(Block):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(unit(), Block())

    net = network(Outer)
    plan = plan_dropblock(net, 1, where=("paper", "output"), example_input=IMAGE)
    for outer in ("1", "2"):
        own = sorted(site.where for site in plan if site.block == outer)
        inner = sorted(site.where for site in plan if site.block == f"{outer}.first.1")
        assert own == ["branch", "branch", "output", "skip"]
        assert inner == ["branch", "branch", "output", "skip"]


def test_a_stage_in_one_flat_sequence() -> None:
    """Units, blocks and pooling side by side, as entries of one container."""
    net = nn.Sequential(
        *(nn.Conv2d(3, WIDTH, 3, 2, 1), nn.BatchNorm2d(WIDTH), nn.ReLU()),
        *(Block(), Block(), nn.MaxPool2d(2), Block()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10)),
    )
    assert [(stage.reduction, [block.name for block in stage.blocks]) for stage in find_stages(net, IMAGE)] == [
        (2, ["3", "4"]),
        (4, ["6"]),
    ]


def test_sums_that_are_no_shortcuts_are_no_joins() -> None:
    class Sums(nn.Module):
        """A linear sum of branches, a position encoding, and a sum of slices."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 1)
            self.position = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
            self.part = nn.Conv2d(WIDTH // 2, WIDTH // 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv1(x) + self.conv2(x))
            x = x + self.position(x)
            left, right = x.chunk(2, 1)
            return torch.cat((left, F.relu(self.part(left)) + right), 1)

    plan = plan_dropblock(network(Sums), 1, where=("branch", "output"), example_input=IMAGE)
    assert all(site.where != "skip" for site in plan)
    with pytest.raises(ValueError, match="without shortcuts has no 'skip'"):
        plan_dropblock(network(Sums), 1, where="skip", example_input=IMAGE)
