import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import BLOCKS
from torch import Tensor, nn

from resrepro.configuration.schema import Model
from resrepro.networks import CifarNet, build, initialise, parameter_count
from resrepro.networks.blocks import ResidualBlock, ShortcutA

# Paper, section 4.2 and table 6: exact counts with affine BN.
PARAMETERS = {
    20: 269_722,
    32: 464_154,
    44: 658_586,
    56: 853_018,
    110: 1_727_962,
    1202: 19_421_274,
}


def on_meta(depth: int, option: str | None) -> CifarNet:
    with torch.device("meta"):
        return CifarNet(depth, block=BLOCKS[option])


def layers3x3(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


@pytest.mark.parametrize("option", [None, "A"])
@pytest.mark.parametrize(("depth", "count"), PARAMETERS.items())
def test_parameters_are_the_papers(depth: int, count: int, option: str | None) -> None:
    assert parameter_count(on_meta(depth, option)) == count


@pytest.mark.parametrize(("depth", "count"), PARAMETERS.items())
def test_option_b_adds_two_projections(depth: int, count: int) -> None:
    assert parameter_count(on_meta(depth, "B")) == count + 2_752


@pytest.mark.parametrize("option", [None, "A", "B"])
def test_bn_is_the_fields_usual_one(option: str | None) -> None:
    """docs/fidelity.md: momentum 0.1, epsilon 1e-5, affine."""
    norms = [m for m in on_meta(14, option).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 13 + 2 * (option == "B")
    assert {(n.momentum, n.eps, n.affine, n.track_running_stats) for n in norms} == {
        (0.1, 1e-5, True, True)
    }


@pytest.mark.parametrize("option", [None, "A", "B"])
@pytest.mark.parametrize("depth", [8, 14, *PARAMETERS])
def test_depth_is_the_number_of_weighted_layers(depth: int, option: str | None) -> None:
    network = on_meta(depth, option)
    connected = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert len(layers3x3(network)) + len(connected) == depth


@pytest.mark.parametrize("depth", [8, 20, 56, 110])
def test_a_residual_net_has_3n_shortcuts_and_a_plain_one_none(depth: int) -> None:
    n = (depth - 2) // 6

    def shortcuts(option: str | None) -> int:
        return sum(isinstance(block, ResidualBlock) for block in on_meta(depth, option).blocks())

    assert (shortcuts(None), shortcuts("A"), shortcuts("B")) == (0, 3 * n, 3 * n)


@pytest.mark.parametrize("option", [None, "A", "B"])
@pytest.mark.parametrize("n", [1, 3, 9])
def test_2n_layers_on_each_size_with_the_papers_filters(n: int, option: str | None) -> None:
    network = on_meta(6 * n + 2, option)
    shapes: list[tuple[int, ...]] = []
    for layer in layers3x3(network):
        layer.register_forward_hook(lambda _m, _x, y: shapes.append(tuple(y.shape[1:])))
    network(torch.empty(1, 3, 32, 32, device="meta"))
    first, *rest = shapes
    assert first == (16, 32, 32)
    assert rest == [(16, 32, 32)] * 2 * n + [(32, 16, 16)] * 2 * n + [(64, 8, 8)] * 2 * n


@pytest.mark.parametrize("n", [1, 3])
def test_only_the_first_layer_of_a_new_size_has_stride_2(n: int) -> None:
    strides = [layer.stride for layer in layers3x3(on_meta(6 * n + 2, "A"))]
    expected = [(1, 1)] * (6 * n + 1)
    expected[1 + 2 * n] = expected[1 + 4 * n] = (2, 2)
    assert strides == expected


def reference(network: CifarNet, x: Tensor, residual: bool) -> Tensor:
    """The paper's net from its list of layers, in evaluation mode: conv, BN, ReLU."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    layers = list(zip(layers3x3(network), norms, strict=True))

    def layer(number: int, x: Tensor, stride: int) -> Tensor:
        conv, bn = layers[number]
        y = F.conv2d(x, conv.weight, stride=stride, padding=1)
        mean, variance = (s.view(1, -1, 1, 1) for s in (bn.running_mean, bn.running_var))
        gain, bias = (s.view(1, -1, 1, 1) for s in (bn.weight, bn.bias))
        return (y - mean) / (variance + 1e-5).sqrt() * gain + bias

    n = (len(layers) - 1) // 6
    x = layer(0, x, 1).clamp(min=0)
    for pair in range(3 * n):
        stride = 2 if pair in (n, 2 * n) else 1
        y = layer(1 + 2 * pair, x, stride).clamp(min=0)
        y = layer(2 + 2 * pair, y, 1)
        if residual and stride == 1:
            y = y + x
        elif residual:
            every_second = x[:, :, ::2, ::2]
            y = y + torch.cat([every_second, torch.zeros_like(every_second)], dim=1)
        x = y.clamp(min=0)
    return x.flatten(2).mean(2) @ network.fc.weight.T + network.fc.bias


@pytest.mark.parametrize("option", [None, "A"])
@pytest.mark.parametrize("depth", [8, 20])
def test_the_net_computes_what_the_paper_says(depth: int, option: str | None) -> None:
    network = CifarNet(depth, block=BLOCKS[option])
    initialise(network, seed=3)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for m in network.modules():
            if isinstance(m, nn.BatchNorm2d):  # not 0 and 1, so that swapping them shows
                for values, low in ((m.running_mean, -1), (m.running_var, 0.5), (m.bias, -1)):
                    values.copy_(torch.rand(values.shape, generator=draws) + low)
        network.eval()
        x = torch.randn(2, 3, 32, 32, generator=draws)
        expected = reference(network, x, residual=option == "A")
        assert expected.std() > 0.01
        torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-3)


@given(
    channels=st.integers(1, 4),
    new=st.integers(0, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_shortcut_a_is_every_second_pixel_and_zero_channels(
    channels: int, new: int, height: int, width: int
) -> None:
    x = torch.arange(1.0, 1 + 2 * channels * height * width).view(2, channels, height, width)
    y = ShortcutA(channels, channels + new, stride=2)(x)
    assert y.shape == (2, channels + new, (height + 1) // 2, (width + 1) // 2)
    for image in range(2):
        for c in range(channels + new):
            for i in range(y.shape[2]):
                for j in range(y.shape[3]):
                    expected = x[image, c, 2 * i, 2 * j].item() if c < channels else 0
                    assert y[image, c, i, j].item() == expected


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_twins_of_one_seed_begin_with_the_same_weights(depth: int) -> None:
    plain, residual = CifarNet(depth), CifarNet(depth, block=BLOCKS["A"])
    initialise(plain, seed=5)
    initialise(residual, seed=5)
    here, there = plain.state_dict(), residual.state_dict()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)


@pytest.mark.parametrize("depth", [8, 20])
def test_a_net_of_option_b_begins_with_its_twins_weights(depth: int) -> None:
    """The projections are drawn last."""
    plain, residual = CifarNet(depth), CifarNet(depth, block=BLOCKS["B"])
    initialise(plain, seed=5)
    initialise(residual, seed=5)
    there = residual.state_dict()
    assert all(torch.equal(value, there[key]) for key, value in plain.state_dict().items())


def normalised_weights(network: CifarNet) -> list[Tensor]:
    """Each layer's weights over the deviation that He initialisation gives them."""
    layers = [*layers3x3(network), network.fc]
    return [layer.weight.flatten() * (layer.weight[0].numel() / 2) ** 0.5 for layer in layers]


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_have_he_variance_in_every_layer(seed: int) -> None:
    network = CifarNet(20, block=BLOCKS["A"])
    initialise(network, seed)
    layers = [weights.double() for weights in normalised_weights(network)]
    for weights in layers:  # within five deviations of what a normal distribution gives
        assert abs(weights.mean()) < 5 / len(weights) ** 0.5
        assert abs(weights.var() - 1) < 5 * (2 / len(weights)) ** 0.5
    every = torch.cat(layers)
    assert abs((every**4).mean() - 3) < 5 * (96 / len(every)) ** 0.5  # of a normal distribution


def test_biases_are_zero_and_bn_is_the_identity() -> None:
    network = CifarNet(14, block=BLOCKS["B"])
    assert network.fc.bias.any()
    initialise(network, seed=0)
    assert not network.fc.bias.any()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 13 + 2
    assert all((m.weight == 1).all() and not m.bias.any() for m in norms)


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    def weights(seed: int, global_seed: int) -> dict[str, Tensor]:
        torch.manual_seed(global_seed)
        network = CifarNet(8)
        before = torch.get_rng_state()
        initialise(network, seed)
        assert torch.equal(torch.get_rng_state(), before)
        return network.state_dict()

    first, again, other = weights(0, 1), weights(0, 2), weights(1, 1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    convs = [key for key in first if "conv" in key or key == "fc.weight"]
    assert len(convs) == 8
    assert not any(torch.equal(first[key], other[key]) for key in convs)
    assert not torch.equal(first["stage1.0.conv1.weight"], first["stage1.0.conv2.weight"])


def test_initial_weights_are_those_of_earlier_versions() -> None:
    network = CifarNet(8)
    initialise(network, seed=0)
    first = torch.tensor([0.043354735, -0.482872963, 0.361030817])
    last = torch.tensor([0.075334035, 0.131409094, -0.007565085])
    torch.testing.assert_close(network.conv.weight[0, 0, 0].detach(), first, rtol=0, atol=1e-7)
    torch.testing.assert_close(network.fc.weight[9, 61:].detach(), last, rtol=0, atol=1e-7)


@pytest.mark.parametrize("depth", [21, 9, 7, 2, 0, -4])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"{depth}.*6n\\+2"):
        CifarNet(depth)


@settings(max_examples=25)
@given(
    depth=st.sampled_from([8, 14]),
    option=st.sampled_from([None, "A", "B"]),
    width=st.integers(1, 9),
    channels=st.integers(1, 4),
    classes=st.integers(2, 100),
    height=st.integers(8, 40),
    side=st.integers(8, 40),
)
def test_any_width_channels_classes_and_image_size_go_through(
    depth: int, option: str | None, width: int, channels: int, classes: int, height: int, side: int
) -> None:
    model = Model("residual" if option else "plain", width, option)
    network = build(model, depth, classes, channels)
    logits = network(torch.ones(2, channels, height, side))
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()
    assert network.conv.out_channels == width
    assert network.fc.in_features == 4 * width


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("channels", "filters", "stride"), [(16, 32, 2), (16, 16, 1)])
def test_a_block_with_option_b_is_torchvisions(
    training: bool, channels: int, filters: int, stride: int
) -> None:
    resnet = pytest.importorskip("torchvision.models.resnet")
    ours = ResidualBlock(channels, filters, stride, "B")
    changes = channels != filters
    downsample = (
        nn.Sequential(resnet.conv1x1(channels, filters, stride), nn.BatchNorm2d(filters))
        if changes
        else None
    )
    theirs = resnet.BasicBlock(channels, filters, stride, downsample)
    names = {name: name.replace("shortcut", "downsample") for name in ours.state_dict()}
    theirs.load_state_dict({names[name]: value for name, value in ours.state_dict().items()})
    x = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours.train(training)(x), theirs.train(training)(x))


def test_recomputing_asks_for_no_generators_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's could not be saved within a captured step, and these nets draw nothing."""
    network = CifarNet(8)
    network.recompute = True
    monkeypatch.delattr("torch.get_rng_state")
    network(torch.zeros(2, 3, 8, 8)).sum().backward()
