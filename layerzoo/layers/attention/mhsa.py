"""Multi-head self-attention: every position attends to every position, by any of the scores and weights of exact attention."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.attention.base import ExactHeads, create_inner


class MHSA(ExactHeads):
    """Multi-head self-attention.

    **Paper**: Attention Is All You Need, arXiv 1706.03762. Scores: additive 1409.0473, general 1508.04025, cosine 2111.09883;
    weights: relu, relu_squared and none 2309.08586, sigmoid 2409.04431, entmax 1905.05702.

    y = W_o concat_h(f(s_h + b_h) v_h), with q, k, v linear in x and the score s of query i and key j one of

    - dot: q_i . k_j / sqrt(d),
    - general: q_i . W_h k_j / sqrt(d), W_h learned, at first the identity,
    - cosine: cos(q_i, k_j) / t_h, t_h >= 0.01 learned,
    - additive: u_h . tanh(q_i + k_j), u_h learned;

    f is softmax, entmax (alpha = 1.5) or, with n the number of keys that a query sees,

    - relu: relu(s) / n, relu_squared: relu(s)^2 / n, relu_sum: relu(s), none: s / n, or sigmoid: sigmoid(s - log n).

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N^2 C; memory N C for softmax (fused); N^2 h where weights are made, by another normalize or by talking heads;
    N^2 C for additive scores, and h N^2 for positions that add b.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in ViT.
        score: s, "dot", "cosine", "additive" or "general"; dot, the paper's.
        normalize: f, "softmax", "relu", "relu_squared", "relu_sum", "sigmoid", "entmax" or "none"; softmax, the paper's.
        include_self: position i sees itself; off (arXiv 2112.13492), a position that sees nothing mixes nothing: zeros before W_o.
        num_kv_heads: heads of k and v, each shared by h / num_kv_heads of q (arXiv 2305.13245; with 1, 1911.02150); None = h.
        talking_heads: a head's scores, and its weights, are learned sums of all heads', at first its own (arXiv 2003.02436); "biased"
            adds a learned number, at first 0, to all weights of a head, as CaiT does (arXiv 2103.17239).
        qk_norm: "rms" (arXiv 2302.05442) or "layer" norm of the channels of each head's q and k; "none", the paper's.
        num_registers: learned tokens beside the input, whose keys and values every query sees; 0.
        sink: one more key for each head, of a learned score and the value zero (arXiv 2508.10925); off. Softmax and entmax only.
        position: "none", or an encoding that turns q and k (rope2d) or adds b (relative_bias, quadratic, learned_offsets of d
            channels); none, since the paper adds its encoding to the input.
        grid: (H, W) the tables of relative_bias and learned_offsets are built for; only for these.
        causal: position i sees positions up to i, in row-major order.
        dropout: probability of dropping an attention weight (softmax only); 0, as in ViT.

    **Raises**: ValueError for an unknown choice, num_heads that do not divide dim or num_kv_heads num_heads, num_registers below 0,
    dropout or a sink with weights that have none, an absolute position, rope2d with additive scores, and tables without a grid.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("mhsa", dim=64, num_heads=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: q, k, v have biases, and positions may enter the scores instead of the input. Registers belong to
    this layer, are read and never updated; those of arXiv 2309.16588 are tokens of the model that attend too, layer after layer.
    """

    card = Card(
        title="Multi-head self-attention", paper="1706.03762", year=2017, cost=(2, 1), causal=True, symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "num_kv_heads": 1, "qk_norm": "rms", "num_registers": 2, "sink": True,
                       "position": "rope2d"}},
        limit={"equals": "mhsa", "options": {"position": "relative_bias", "grid": (4, 6)}, "grid": (4, 6),
               "set": {"relative_bias.table": "zeros"}},
        differs="q, k, v have biases; positions may enter the scores; registers are the layer's own and never updated, not a model's",
        cannot={"constructor": "it spans the variants of exact attention, options that combine as layers of their own would not"})

    def __init__(
        self, dim: int, *, num_heads: int | None = None, qkv_bias: bool = True, score: str = "dot", normalize: str = "softmax",
        include_self: bool = True, num_kv_heads: int | None = None, talking_heads: bool | str = False, qk_norm: str = "none",
        num_registers: int = 0, sink: bool = False, position: str = "none", grid: tuple[int, int] | None = None, causal: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__(
            dim, num_heads, qkv_bias, score, normalize, include_self, num_kv_heads, talking_heads, qk_norm, sink, causal, dropout)
        if num_registers < 0:
            raise bad_value("num_registers", got=num_registers, expected="a whole number >= 0 of learned tokens", do="Four are usual.")
        self.num_registers, self.position = num_registers, position
        self.registers = nn.Parameter(0.02 * torch.randn(1, num_registers, dim)) if num_registers else None
        if position != "none":
            encoding = create_inner(position, self.num_heads, self.head_dim, grid, score)
            self.add_module(position, encoding)
            self.grid = getattr(encoding, "grid", None)

    @property
    def needs_grid(self) -> bool:
        return self.position != "none"

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        (q, k, v), bias = self.split(tokens), None
        if self.position != "none":
            encoding = getattr(self, self.position)
            if encoding.kind == "rotary":
                q, k = encoding.rotate(q, grid), encoding.rotate(k, grid)
            else:
                bias = encoding.bias(grid)
        if self.registers is not None:
            k, v = (torch.cat([r.expand(len(t), -1, -1, -1), t], 2) for r, t in zip(self.split(self.registers)[1:], (k, v)))
            mask = mask if mask is None else F.pad(mask, (self.num_registers, 0), value=True)
            bias = bias if bias is None else F.pad(bias, (self.num_registers, 0))
        return self.attend(q, k, v, mask, bias, self.num_registers)
