"""DropBlock under torch.vmap and what is built on it: per-sample gradients, ensembles, Jacobians, batched gradients.

The reference is a loop over the samples, with the seeds that torch draws for them, or nn.Dropout2d.
"""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, stack_module_state, vjp

from dropblock_inject import DropBlock, drop_block
from dropblock_inject.ops import operator
from dropblock_inject.ops.mask_spec import Options

SAMPLES = 5
RANDOMNESS = ["same", "different"]
OPTIONS = [
    {},
    {"rescale": "sample"},
    {"rescale": "expected", "per_channel": False},
    {"rescale": None, "calibrated": False},
    {"channel_dim": -1},
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch():
    return torch.randn(SAMPLES, 4, 3, 9, 9)


def loop(x, randomness, rescale="batch", per_channel=True, calibrated=True, channel_dim=1):
    """Each sample masked by itself, with a seed of its own or with the one seed of all."""
    torch.manual_seed(3)
    seeds = torch.randint(2**63 - 1, (SAMPLES,) if randomness == "different" else ()).expand(SAMPLES)
    options = Options((3, 3), per_channel, rescale, calibrated, channel_dim)
    return torch.stack([operator.drop(one, seed, 0.7, False, options) for one, seed in zip(x, seeds, strict=True)])


def vmapped(x, randomness, *, in_dim=0, out_dim=0, **options):
    torch.manual_seed(3)
    return torch.vmap(lambda one: drop_block(one, 0.7, 3, **options), in_dim, out_dim, randomness=randomness)(x)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("randomness", RANDOMNESS)
def test_the_output_is_that_of_a_loop_over_the_samples(randomness, options):
    x = batch()
    expected = loop(x, randomness, **options)
    assert expected.eq(0).any()
    assert torch.equal(vmapped(x, randomness, **options), expected)
    assert torch.equal(vmapped(x.clone(), randomness, inplace=True, **options), expected)
    assert torch.equal(vmapped(x.movedim(0, 2), randomness, in_dim=2, out_dim=-1, **options).movedim(-1, 0), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("randomness", RANDOMNESS)
@pytest.mark.parametrize("inplace", [False, True])
def test_an_empty_batch_stays_empty(randomness, options, inplace):
    x = torch.randn(4, 3, 0, 9, 9, requires_grad=True)
    output = vmapped(x * 1, randomness, in_dim=2, out_dim=2, inplace=inplace, **options)
    assert output.shape == x.shape
    assert torch.autograd.grad(output.sum(), x)[0].shape == x.shape
    gradients = torch.vmap(grad(lambda one: drop_block(one, 0.7, 3, **options).sum()), 2, randomness=randomness)(x)
    assert gradients.shape == (0, 4, 3, 9, 9)


def test_samples_share_their_mask_or_not_as_asked_for():
    same, different = (vmapped(torch.ones(50, 1, 4, 9, 9), randomness) != 0 for randomness in RANDOMNESS)
    assert (same == same[0]).all()
    assert len({mask.numpy().tobytes() for mask in different}) == 50
    assert different.float().mean().item() == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("layer", [nn.Dropout2d(0.3), DropBlock(0.7, 3), DropBlock(0.7, 3, generator=seeded())])
def test_without_a_choice_torch_raises_its_own_error_as_it_does_for_dropout(layer):
    with pytest.raises(RuntimeError, match="called random operation while in randomness error mode"):
        torch.vmap(layer)(batch())
    x = batch()
    assert torch.equal(torch.vmap(layer.eval())(x), x)


@pytest.mark.parametrize("randomness", RANDOMNESS)
def test_a_generator_is_the_source_of_the_random_numbers(randomness):
    x = torch.ones(SAMPLES, 2, 3, 9, 9)
    before = torch.get_rng_state()
    first, second = (vmapped(x, randomness, generator=generator) for generator in (seeded(1), seeded(1)))
    torch.set_rng_state(before)
    assert torch.equal(first, second)
    assert len({one.numpy().tobytes() for one in first}) == (1 if randomness == "same" else SAMPLES)


def test_one_tensor_for_all_samples_gets_a_mask_for_each():
    x = torch.ones(2, 3, 9, 9)
    outputs = torch.vmap(lambda _: drop_block(x, 0.7, 3), randomness="different")(torch.empty(SAMPLES))
    assert outputs.shape == (SAMPLES, *x.shape)
    assert len({one.numpy().tobytes() for one in outputs}) == SAMPLES
    for layer in (DropBlock(0.7, 3, inplace=True), nn.Dropout2d(0.3, inplace=True)):
        with pytest.raises(RuntimeError, match="vmap"):
            torch.vmap(lambda _, layer=layer: layer(x), randomness="different")(torch.empty(SAMPLES))
    assert torch.equal(x, torch.ones_like(x))


@pytest.mark.parametrize("outer", RANDOMNESS)
@pytest.mark.parametrize("inner", RANDOMNESS)
def test_nested_maps_draw_as_many_masks_as_asked_for(inner, outer):
    inside = torch.vmap(lambda x: drop_block(x, 0.7, 3), randomness=inner)
    outputs = torch.vmap(inside, randomness=outer)(torch.ones(4, SAMPLES, 2, 3, 9, 9))
    masks = {one.numpy().tobytes() for one in outputs.flatten(0, 1)}
    assert len(masks) == (4 if outer == "different" else 1) * (SAMPLES if inner == "different" else 1)


# --- gradients: on ones the gradient of a sum is the output ----------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("randomness", RANDOMNESS)
def test_the_gradient_of_a_sample_has_its_mask(randomness, options, inplace):
    def call(x):
        return drop_block(x * 1, 0.7, 3, inplace=inplace, **options)

    def output_and_gradient(x):
        output, backward = vjp(call, x)
        return output, backward(torch.ones_like(output))[0]

    x = torch.ones(SAMPLES, 4, 3, 9, 9)
    output, gradient = torch.vmap(output_and_gradient, randomness=randomness)(x)
    assert output.eq(0).any()
    assert torch.equal(gradient, output)
    x.requires_grad_()
    output = torch.vmap(call, randomness=randomness)(x)
    output.backward(torch.ones_like(output))
    assert torch.equal(x.grad, output)


def test_gradients_per_sample_are_those_of_a_loop():
    layer, masked = nn.Conv2d(3, 4, 3), DropBlock(0.7, 3)
    parameters, images = dict(layer.named_parameters()), torch.randn(SAMPLES, 3, 11, 11)

    def loss(parameters, image):
        return masked(functional_call(layer, parameters, image[None])).square().sum()

    torch.manual_seed(3)
    found = torch.vmap(grad(loss), (None, 0), randomness="different")(parameters, images)
    torch.manual_seed(3)
    seeds = iter(torch.randint(2**63 - 1, (SAMPLES,)))
    options = Options((3, 3), True, "batch", True, 1)
    for index, image in enumerate(images):
        output = operator.drop(layer(image[None]), next(seeds), 0.7, False, options)
        expected = torch.autograd.grad(output.square().sum(), layer.parameters())
        torch.testing.assert_close(tuple(one[index] for one in found.values()), expected)


def test_an_ensemble_has_a_mask_for_each_member():
    members = [nn.Sequential(nn.Conv2d(3, 4, 3), DropBlock(0.7, 3)) for _ in range(SAMPLES)]
    parameters = {name: torch.ones_like(value) for name, value in stack_module_state(members)[0].items()}
    skeleton = copy.deepcopy(members[0]).to("meta")
    outputs = torch.vmap(lambda own, x: functional_call(skeleton, own, (x,)), (0, None), randomness="different")(
        parameters, torch.ones(2, 3, 11, 11)
    )
    assert len({member.detach().numpy().tobytes() for member in outputs}) == SAMPLES
    torch.testing.assert_close(outputs.mean((1, 2, 3, 4)), torch.full((SAMPLES,), 28.0))


LAYOUTS = {
    "contiguous": lambda x: x,
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "keep_prob"), [((2, 3, 9, 9), 0.7), ((4, 16, 28, 28), 0.98)])  # the blocks are saved
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_batched_gradients_have_the_mask_of_the_forward_pass(options, inplace, shape, keep_prob, layout):
    x = torch.ones(shape, requires_grad=True)
    output = drop_block(x * 1, keep_prob, 3, inplace=inplace, **options)
    upstream = LAYOUTS[layout](torch.randn(SAMPLES, *shape)).detach().requires_grad_()
    arguments = {"is_grads_batched": True, "create_graph": True}
    (gradient,) = torch.autograd.grad(output, x, upstream, **arguments)
    assert torch.equal(gradient, upstream * output)
    (second,) = torch.autograd.grad(gradient.sum(), upstream)
    assert torch.equal(second, output.expand_as(second))


@pytest.mark.filterwarnings("ignore:.torch.jit")  # of forward mode itself
def test_jacobians_and_hessians_are_diagonal_with_the_mask():
    def call(x):
        return drop_block(x * 1, 0.7, 3, generator=seeded(3))

    def cubes(x):
        return call(x).pow(3).sum()

    x = torch.ones(1, 2, 4, 4)
    mask = call(x).flatten()
    jacobians = [
        jacrev(call)(x),
        jacfwd(call, randomness="same")(x),
        torch.autograd.functional.jacobian(call, x, vectorize=True),
    ]
    for jacobian in jacobians:
        assert torch.equal(jacobian.view(32, 32), torch.diag(mask))
    hessians = [
        jacrev(jacrev(cubes))(x),
        jacfwd(jacrev(cubes), randomness="same")(x),
        torch.autograd.functional.hessian(cubes, x, vectorize=True),
    ]
    for hessian in hessians:
        torch.testing.assert_close(hessian.view(32, 32), torch.diag(6 * mask**3))


@pytest.mark.parametrize("randomness", RANDOMNESS)
def test_a_compiled_map_draws_the_masks_too(randomness):
    torch._dynamo.reset()
    mapped = torch.vmap(lambda x: drop_block(x, 0.7, 3), randomness=randomness)
    outputs = torch.compile(mapped, backend="aot_eager", fullgraph=True)(torch.ones(SAMPLES, 4, 3, 9, 9))
    torch.testing.assert_close(outputs.mean((1, 2, 3, 4)), torch.ones(SAMPLES))
    assert len({one.numpy().tobytes() for one in outputs}) == (1 if randomness == "same" else SAMPLES)
