"""Operations: counts against formulas by hand; what cannot be counted is refused by the name of its module."""

import pytest
import torch
from torch import nn

from pyro_nas import Space
from pyro_nas.graph.costs import measure, total_cost
from pyro_nas.graph.operations import multiply_accumulates
from pyro_nas.graph.primitives import dense

N, T, D, H = 2, 5, 4, 6


class Function(nn.Module):
    """A module of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def attention_of(heads):
    return nn.MultiheadAttention(D, heads, batch_first=True)


# projections of q, k, v and of the output, then q·k and the weighted sum of v
ATTENTION = N * T * D * D * 4 + 2 * N * T * T * D
COUNTED = {
    "linear": (nn.Linear(D, H), [torch.ones(N, T, D)], N * T * D * H),
    "linear of a vector": (nn.Linear(D, H, bias=False), [torch.ones(D)], D * H),
    "linear of a vector with bias": (nn.Linear(D, H), [torch.ones(D)], D * H),
    "convolution": (nn.Conv2d(D, H, 3, padding=1, groups=2), [torch.ones(N, D, 7, 7)], N * 7 * 7 * H * D // 2 * 9),
    "transposed": (nn.ConvTranspose2d(D, H, 2, stride=2), [torch.ones(N, D, 3, 3)], N * 3 * 3 * D * H * 4),
    "bilinear": (nn.Bilinear(D, T, H), [torch.ones(N, D), torch.ones(N, T)], N * H * D * T + N * H * T),
    "rnn": (nn.RNN(D, H, batch_first=True), [torch.ones(N, T, D)], N * T * (D * H + H * H)),
    "gru": (nn.GRU(D, H, batch_first=True), [torch.ones(N, T, D)], 3 * N * T * (D * H + H * H)),
    "lstm": (nn.LSTM(D, H, 2, batch_first=True), [torch.ones(N, T, D)], 4 * N * T * (D * H + 3 * H * H)),
    "lstm cell": (nn.LSTMCell(D, H), [torch.ones(N, D)], 4 * N * (D * H + H * H)),
    "attention": (Function(lambda x: attention_of(2).eval()(x, x, x)[0]), [torch.ones(N, T, D)], ATTENTION),
    "transformer": (
        nn.TransformerEncoderLayer(D, 2, H, batch_first=True),
        [torch.ones(N, T, D)],
        ATTENTION + 2 * N * T * D * H,
    ),
    "matrix vector": (Function(lambda a, v: a @ v), [torch.ones(T, D), torch.ones(D)], T * D),
    "inner product": (Function(torch.dot), [torch.ones(D), torch.ones(D)], D),
    "vector matrix": (Function(lambda v, a: v @ a), [torch.ones(T), torch.ones(T, D)], T * D),
    "einsum": (Function(lambda a, b: torch.einsum("nij,njk->nik", a, b)), [torch.ones(N, T, D), torch.ones(N, D, H)],
               N * T * D * H),
    "sum of products": (Function(lambda a, b: torch.addbmm(torch.zeros(T, H), a, b)),
                        [torch.ones(N, T, D), torch.ones(N, D, H)], N * T * D * H),
    "distances": (Function(torch.cdist), [torch.ones(N, T, D), torch.ones(N, H, D)], N * T * H * D),
}  # fmt: skip
IMAGES = torch.rand(N, D, 8, 8)
FREE = [
    nn.Identity(), nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Softmax(1), nn.LogSoftmax(1), nn.Tanh(), nn.Hardswish(),
    nn.PReLU(), nn.Softplus(), nn.Mish(), nn.GLU(1), nn.BatchNorm2d(D), nn.GroupNorm(2, D), nn.InstanceNorm2d(D),
    nn.LayerNorm(8), nn.RMSNorm(8), nn.LocalResponseNorm(2), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.LPPool2d(2, 2),
    nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(3), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Dropout(),
    nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.PixelShuffle(2), nn.PixelUnshuffle(2),
    nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.CircularPad2d(1), nn.Unfold(2),
    nn.ChannelShuffle(2),
]  # fmt: skip
FREE += map(
    Function,
    [
        lambda x: x.mean((2, 3)) + x.amax((2, 3)) + x.sum((2, 3)) + x.logsumexp((2, 3)),
        lambda x: x.std() + x.var() + x.median() + x.norm() + x.norm(dim=1).prod(),
        lambda x: torch.cat([x, x.flip(-1), x.roll(1, 2), x * 0], 1).repeat(2, 1, 1, 1),
        lambda x: x.sort(-1)[0] + x.cumsum(1) + x.topk(8)[0] + x.argsort(1) + x.argmax(1, keepdim=True),
        lambda x: torch.where(x > 0, x[:, [0, 2, 1, 3]], x.new_zeros(8)).clamp(0, 1).tril(),
        lambda x: x + torch.arange(8) + torch.randn(8) + torch.stack([x, x]).unbind()[0],
        lambda x: nn.functional.one_hot((x > 0.5).long(), 2),
        lambda x: nn.functional.embedding((x > 0.5).long(), torch.ones(2, 3)),
        lambda x: nn.functional.grid_sample(x, torch.zeros(N, 2, 2, 2), align_corners=False),
        lambda x: x.unfold(2, 2, 1).amax(-1).gather(1, torch.zeros(N, 1, 7, 8, dtype=torch.long)),
        lambda x: x.masked_fill(x > 0.5, 0.0).index_select(1, torch.tensor([0])).expand(-1, 3, -1, -1).contiguous(),
    ],
)


@pytest.mark.parametrize("name", COUNTED)
def test_products_are_counted_as_by_hand(name):
    module, inputs, expected = COUNTED[name]
    assert multiply_accumulates(module.eval(), tuple(inputs)) == expected


@pytest.mark.parametrize("index", range(len(FREE)))
def test_what_is_no_product_counts_as_none(index):
    assert multiply_accumulates(FREE[index].eval(), (IMAGES,)) == 0


class Spectral(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x).abs()


class Solved(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, x):
        return torch.linalg.solve(self.weight, x.mT).mT


@pytest.mark.parametrize(("module", "operation"), [(Spectral, "fft"), (Solved, "linalg")])
def test_what_has_no_formula_is_refused_by_the_name_of_its_module(module, operation):
    edges = {"dense": dense(3, 3), "other": lambda: nn.Sequential(nn.Linear(3, 3), module())}
    space = Space({(0, 1): edges, (1, 2): {"readout": dense(2 if module is Spectral else 3, 2)}})
    if module is Spectral:
        space = Space({(0, 1): {"other": edges["other"]}})
    message = (
        rf"kind: expected operations whose multiply-accumulates are known, got aten.*{operation}.* in {module.__name__}"
    )
    with pytest.raises(ValueError, match=message):
        measure(space, torch.ones(2, 3), "multiply_accumulates")
    with pytest.raises(ValueError, match=message):
        total_cost(Space({(0, 1): {"other": edges["other"]}}), torch.ones(2, 3), "multiply_accumulates")


def test_an_operation_of_another_library_is_refused():
    @torch.library.custom_op("pyro_nas_tests::product", mutates_args=())
    def product(x: torch.Tensor) -> torch.Tensor:
        return x @ x.mT

    with pytest.raises(ValueError, match=r"got pyro_nas_tests\.product\.default in Function\."):
        multiply_accumulates(Function(product), (torch.ones(3, 3),))


def test_switches_of_torch_are_left_as_they_were():
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.is_available()
    with pytest.raises(ValueError, match="Spectral"):
        multiply_accumulates(Spectral(), (torch.ones(3),))
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.is_available()) == before
    assert not Spectral()._forward_hooks
