"""Norm, ReLU and pool in one kernel: as torch's layers. Without a GPU Triton's interpreter runs the kernels."""

import copy
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from gmlib import networks
from gmlib.runtime import generator
from gmlib.speed import forward, gradients, testing, training

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with torch for CUDA only")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def kernels():
    """The module, which needs Triton."""
    from gmlib.speed import kernels

    return kernels


@pytest.fixture(params=["nchw", "nhwc"])
def fused(kernels, monkeypatch, request):
    """The fused forward pass of a network, on a CPU too."""
    monkeypatch.setattr(forward, "FUSED", request.param)
    if DEVICE.type == "cuda":
        return forward.fused_forward
    return lambda network, x, dtype=None: forward._fused(network, forward._blocks(network, x)[0])


def relative_error(a, b):
    return ((a.cpu().double() - b.cpu().double()).norm() / b.cpu().double().norm()).item()


def network_and_images(width=4, depth=2, shape=(3, 16, 16), n=6):
    network = networks.build("convnet", shape, 3, generator=generator(0), width=width, depth=depth, device=DEVICE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator(1)).to(DEVICE)
    return network, torch.randn(n, *shape, generator=generator(2)).to(DEVICE)


LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


@pytest.mark.parametrize(
    "shape", [(3, 4, 8, 8), (2, 3, 28, 28), (2, 1, 6, 10), (1, 2, 2, 2), (2, 13, 4, 4), (1, 9, 34, 32)]
)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients_are_those_of_float64(kernels, shape, dtype, allowed, layout):
    rng = generator(0)
    z = (3 * torch.randn(shape, generator=rng) + 5).to(DEVICE, dtype, memory_format=LAYOUTS[layout])
    gamma, beta = (torch.randn(shape[1], generator=rng).to(DEVICE) for _ in range(2))
    dp = torch.randn(shape[0], shape[1], shape[2] // 2, shape[3] // 2, generator=rng).to(DEVICE, dtype)

    def plain(z, gamma, beta):
        return F.avg_pool2d(F.relu(F.group_norm(z, shape[1], gamma, beta, 1e-5)), 2)

    found = []
    for function, convert in (
        (plain, torch.Tensor.double),
        (lambda *x: kernels.norm_relu_pool(*x, 1e-5), lambda x: x),
    ):
        inputs = [convert(x.detach()).requires_grad_() for x in (z, gamma, beta)]
        y = function(*inputs)
        found.append([y, *torch.autograd.grad(y, inputs, convert(dp))])
    for name, exact, near in zip(("y", "dz", "dgamma", "dbeta"), *found, strict=True):
        assert relative_error(near.detach(), exact.detach()) < allowed, name
    assert found[1][0].is_contiguous(memory_format=LAYOUTS[layout])
    assert found[1][0].dtype == dtype and found[1][2].dtype == torch.float32


def test_a_map_of_one_value_has_zero_variance(kernels):
    z = torch.full((1, 1, 4, 4), 7.0, device=DEVICE)
    one, half = torch.ones(1, device=DEVICE), torch.full((1,), 0.5, device=DEVICE)
    assert torch.equal(kernels.norm_relu_pool(z, one, half, 1e-5), torch.full((1, 1, 2, 2), 0.5, device=DEVICE))


def test_there_is_no_second_derivative(kernels):
    z = torch.randn(1, 1, 4, 4, generator=generator(0)).to(DEVICE).requires_grad_()
    one = torch.ones(1, device=DEVICE)
    (dz,) = torch.autograd.grad(kernels.norm_relu_pool(z, one, one, 1e-5).square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|used in the graph"):
        torch.autograd.grad(dz.square().sum(), z)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pass_of_a_network_agrees_with_its_layers(fused, kernels, channels, monkeypatch):
    """Class gradients of real images, a step of theta, and the test."""
    layouts = []

    def watched(z, *parameters):
        layouts.append("nhwc" if z.stride(1) == 1 else "nchw")
        return plain_function(z, *parameters)

    plain_function = kernels.norm_relu_pool
    monkeypatch.setattr(kernels, "norm_relu_pool", watched)
    network, x = network_and_images(shape=(channels, 16, 16))
    plain = copy.deepcopy(network)
    y = torch.arange(6, device=DEVICE) % 3
    exact = gradients.class_gradients(plain, x.split(2), implementation="grouped")
    classes = testing.predict(plain, x)
    training.train_one_pass(plain, torch.optim.SGD(plain.parameters(), lr=0.1), x, y, 6, generator(3))
    for module in (gradients, testing, training):
        monkeypatch.setattr(module, "fast_forward", fused)
    monkeypatch.setattr(gradients, "fused_forward", fused)
    near = gradients.class_gradients(network, x.split(2), implementation="grouped")
    assert max(relative_error(a, b) for a, b in zip(near, exact, strict=True)) < 1e-5
    assert torch.equal(testing.predict(network, x), classes)
    training.train_one_pass(network, torch.optim.SGD(network.parameters(), lr=0.1), x, y, 6, generator(3))
    for a, b in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    assert set(layouts) == {forward.FUSED}, "from the first block on"


class OnCuda:
    """What is asked of images before a way is chosen."""

    def __init__(self, *shape, dtype=torch.float32):
        self.shape, self.dtype, self.device = torch.Size(shape), dtype, torch.device("cuda")


def test_the_kernels_are_for_some_networks_and_switched_off(monkeypatch):
    network, on_a_cpu = network_and_images()
    odd, _ = network_and_images(shape=(3, 18, 18))
    lenet = networks.build("lenet", (3, 32, 32), 3, generator=generator(0))
    monkeypatch.setattr(forward, "_fused", lambda network, blocks: len(blocks))
    assert forward.fast_forward(network, OnCuda(1, 3, 16, 16)) is network
    monkeypatch.setattr(forward, "FUSED", "nhwc")
    assert forward.fast_forward(network, OnCuda(1, 3, 16, 16)) == 2
    assert forward.fast_forward(network, OnCuda(1, 3, 16, 16, dtype=torch.float64)) is network
    assert forward.fast_forward(odd, OnCuda(1, 3, 18, 18)) is odd, "an odd side after the first pool"
    assert forward.fast_forward(lenet, OnCuda(1, 3, 32, 32)) is lenet
    assert forward.fused_forward(network, on_a_cpu.cpu()) is network


def test_a_convolution_whose_padding_is_a_word_is_left_alone(monkeypatch):
    network, _ = network_and_images()
    network[0] = torch.nn.Conv2d(3, 4, 3, padding="same")
    monkeypatch.setattr(forward, "FUSED", "nhwc")
    for images in (OnCuda(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)):
        assert forward.fast_forward(network, images) is network
