"""Clock: time that is known, since modules sleep for it."""

import time

import torch
from torch import nn

from pyro_nas.graph.clock import laps


class Sleep(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x


def test_laps_are_the_microseconds_of_each_module_within_the_whole():
    network = nn.Sequential(Sleep(0.02), Sleep(0.0), Sleep(0.01))
    first, second, third, whole = laps(network, [*network, network], (torch.ones(1),))
    assert 20_000 <= first < whole
    assert 10_000 <= third < whole
    assert 0 <= second < 10_000
    assert whole >= first + second + third
    assert not network._forward_hooks  # nothing stays
    assert not network[0]._forward_pre_hooks
