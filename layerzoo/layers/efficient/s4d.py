"""S4D: each channel is a linear system with a diagonal state, run as a long convolution or token by token."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer, check_choice
from layerzoo.ops.linear_recurrence import full_precision, no_autocast
from layerzoo.ops.long_convolution import exponential_sums, long_convolution
from layerzoo.ops.sequence import real_first


class S4D(TokenLayer):
    """Diagonal state-space layer.

    **Paper**: On the Parameterization and Initialization of Diagonal State Space Models, arXiv 2206.11893.

    y = GLU(W_o GELU(u)), u_i = D x_i + sum_{j <= i} K_{i - j} x_j, K_l = 2 Re sum_n C_n (e^{dt A_n} - 1) / A_n e^{l dt A_n} by channel: the
    system s' = A s + x, u = 2 Re C s + D x, with x constant for a time dt (zero-order hold). At the start A_n = -1/2 + i pi n (S4D-Lin) or
    -1/2 + i (S / pi) (S / (2 n + 1) - 1), S = 2 state_dim (S4D-Inv). Unless causal, sum_{j > i} K'_{j - i - 1} x_j of a second C joins u_i.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N C log N + N C n + N C^2, n = state_dim; memory N C + sqrt(N) C n.

    **Args**:
        dim: channels C.
        state_dim: n, complex numbers in the state of a channel; 32, the paper's 64 in conjugate pairs.
        init: of A, "lin" or "inv"; lin, the paper's code's.
        dt_min: least step dt, drawn uniformly in its logarithm; 0.001, the paper's. A channel looks back some 1 / dt tokens.
        dt_max: largest step; 0.1, the paper's.
        causal: position i sees positions up to i, in row-major order.

    **Raises**: ValueError for a state_dim below 1, an unknown init, and steps that are not 0 < dt_min <= dt_max.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("s4d", dim=64, state_dim=8)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: B is ones, since only its product with C matters; no dropout. A and dt are trained at the rate of the other
    parameters (there at a lower one), and without weight decay, as there, since they are vectors here.
    """

    card = Card(
        title="S4D", paper="2206.11893", year=2022, cost=(1, 1), causal=True,
        sizes={"tiny": {"dim": 8, "state_dim": 4}, "base": {"dim": 64, "state_dim": 16}, "odd": {"dim": 5, "state_dim": 3, "init": "inv"}},
        differs="B is ones, since only its product with C matters; no dropout; A and dt are trained at the rate of the other parameters")

    def __init__(
        self, dim: int, *, state_dim: int = 32, init: str = "lin", dt_min: float = 0.001, dt_max: float = 0.1, causal: bool = False,
    ):
        super().__init__(dim)
        check_choice("init", init, ("lin", "inv"))
        if state_dim < 1:
            raise bad_value("state_dim", got=state_dim, expected="a whole number of complex numbers >= 1", do="The paper's is 32.")
        if not 0 < dt_min <= dt_max:
            got = f"{dt_min} and {dt_max}"
            raise bad_value("dt_min and dt_max", got=got, expected="0 < dt_min <= dt_max", do="The paper's are 0.001 and 0.1.")
        self.state_dim, self.causal = state_dim, causal
        n = torch.arange(state_dim)
        frequency = math.pi * n if init == "lin" else 2 * state_dim / math.pi * (2 * state_dim / (2 * n + 1) - 1)
        self.log_dt = nn.Parameter(torch.empty(dim).uniform_(math.log(dt_min), math.log(dt_max)))
        self.log_decay = nn.Parameter(torch.full((dim * state_dim,), math.log(0.5)))
        self.frequency = nn.Parameter(frequency.repeat(dim))
        self.readout = nn.Parameter(torch.randn(1 if causal else 2, dim, state_dim, 2) * 0.5**0.5)
        self.skip = nn.Parameter(torch.randn(dim))
        self.proj = nn.Linear(dim, 2 * dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(lambda packed, real: self.mix_packed(packed), tokens, mask)

    def mix_packed(self, tokens: Tensor) -> Tensor:
        """The formula, on tokens after the last real one of which there are only zeros."""
        (x,) = full_precision(tokens.mT)
        with no_autocast(tokens.device):
            weight, exponent = self.discrete()
            kernels = exponential_sums(weight, exponent, tokens.shape[1])
            u = long_convolution(x, kernels[0] if self.causal else torch.cat([kernels[0], kernels[1].flip(-1)], -1))
        return self.output((u + self.skip[:, None] * x).mT, tokens)

    def step(self, token: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One token (B, C) after those in `state` (B, C, n), complex; None before the first. Equals the causal form, token by token."""
        (x,) = full_precision(token)
        weight, exponent = self.discrete()
        state = x.unsqueeze(-1) if state is None else exponent.exp() * state + x.unsqueeze(-1)
        return self.output(2 * (weight[0] * state).sum(-1).real + self.skip * x, token), state

    def discrete(self) -> tuple[Tensor, Tensor]:
        """C (e^{dt A} - 1) / A of each direction (1 or 2, C, n), and dt A (C, n)."""
        log_dt, log_decay, frequency, readout = full_precision(self.log_dt, self.log_decay, self.frequency, self.readout)
        rate = torch.complex(-log_decay.exp(), frequency).unflatten(0, (-1, self.state_dim))
        exponent = log_dt.exp()[:, None] * rate
        return torch.complex(*readout.unbind(-1)) * (_expm1(exponent) / rate), exponent  # a model in channels_last has other strides

    def output(self, u: Tensor, like: Tensor) -> Tensor:
        return F.glu(self.proj(F.gelu(u).to(like.dtype)), -1)


def _expm1(z: Tensor) -> Tensor:
    """e^z - 1, without the loss of digits near 0."""
    return torch.complex(z.real.expm1() * z.imag.cos() - 2 * (z.imag / 2).sin().square(), z.real.exp() * z.imag.sin())
