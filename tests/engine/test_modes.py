import pytest
import torch
from torch import nn

from mim.engine.modes import recompute_activations


def block(recomputed: bool) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    if recomputed:
        recompute_activations([net])
    return net


@pytest.mark.parametrize("training", [True, False])
def test_recomputed_batch_normalisation_counts_each_batch_once(training):
    img, nets = torch.randn(4, 3, 8, 8), [block(recomputed).train(training) for recomputed in (False, True)]
    for net in nets:
        for _ in range(3):
            net(img).square().sum().backward()
    plain, recomputing = nets
    assert plain[1].num_batches_tracked.item() == (3 if training else 0)
    for (name, expected), buffer in zip(plain.named_buffers(), recomputing.buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    for expected, parameter in zip(plain.parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad)
    assert recomputing[4].momentum == 0.1


def test_recomputed_block_gives_its_gradient_in_each_backward_pass_through_one_graph():
    net, plain = block(recomputed=True), block(recomputed=False)
    img = torch.randn(4, 3, 8, 8)
    for each in (net, plain):
        loss = each(img).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
    assert torch.equal(net[0].weight.grad, plain[0].weight.grad)
    assert net[1].num_batches_tracked == 1


class Scale(nn.Module):
    """Multiplies by a number that is not among its inputs."""

    def __init__(self):
        super().__init__()
        self.weight, self.number = nn.Parameter(torch.ones(3)), 1.0
        self.reads = (self, "number")

    def forward(self, x):
        return (self.weight * self.number).square() * x


def test_recomputed_block_reads_what_it_read_the_first_time():
    scale = Scale()
    net = nn.Sequential(scale)
    recompute_activations([net])
    outputs = []
    for scale.number in (1.0, 2.0):
        outputs.append(net(torch.ones(3)).sum())
    scale.number = 3.0
    sum(outputs).backward()
    assert scale.weight.grad.tolist() == [10.0] * 3  # 2 x (1 + 4)
    assert scale.number == 3.0


class Branches(nn.Module):
    """Changes the list that it takes, as HRNet does."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, maps):
        maps[0] = self.norm(maps[0])
        return maps[0] + torch.cat(maps).square().mean()


@pytest.mark.parametrize("length", [1, 2])
def test_recomputed_block_takes_the_list_as_it_was(length):
    gradients = []
    for recomputed in (False, True):
        net, maps = Branches(), [torch.arange(12.0).view(4, 3).sqrt()] * length
        if recomputed:
            recompute_activations([net])
        output = net(maps)
        maps.append(output)  # as the caller of a layer of DenseNet does
        output.pow(3).sum().backward()
        gradients.append(net.norm.weight.grad)
    assert gradients[0].any()
    assert torch.equal(*gradients)
