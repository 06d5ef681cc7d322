"""Agent attention: a few pooled queries gather from all positions, and every position asks them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer, as_map, check_odd, map_to_tokens
from layerzoo.ops.attention import attend


class Agent(HeadsLayer):
    """Softmax attention in two steps through agents.

    **Paper**: Agent Attention, arXiv 2312.08874.

    y = W_o (concat_h(softmax(q A^T / sqrt(d) + b_2) softmax(A k^T / sqrt(d) + b_1) v) + conv(v)): the agents A are the queries pooled
    to a s x s map, b_1 and b_2 are learned s^2 x s x s tables, resized to the map, and conv is depthwise over it.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C s^2 + N C^2; memory N C + h s^2 N for the biases.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        agent_size: s in agents; 7, the paper's, which makes 49.
        kernel_size: side of the depthwise convolution in positions; 3, the paper's.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for an agent_size below 1, an even kernel_size and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("agent", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the biases are those of the resized tables; the paper adds one for each row and column of a fixed map.
    An agent is the mean of the real positions of its cell.
    """

    card = Card(
        title="Agent attention", paper="2312.08874", year=2023, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "agent_size": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "agent_size": 3, "kernel_size": 5, "qkv_bias": False}},
        differs="biases are resized tables, without those for each row and column of a fixed map",
        cannot={"padding": "the cells of the agents divide the grid, and padding makes another grid"})

    def __init__(self, dim: int, *, num_heads: int | None = None, agent_size: int = 7, kernel_size: int = 3, qkv_bias: bool = True):
        super().__init__(dim, num_heads, qkv_bias)
        if agent_size < 1:
            raise bad_value("agent_size", got=agent_size, expected="a whole number >= 1", do="The paper's is 7.")
        check_odd("kernel_size", kernel_size)
        self.agent_size = agent_size
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        shape = self.num_heads, agent_size**2, agent_size, agent_size
        self.gather_bias, self.spread_bias = (nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02)) for _ in range(2))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(tokens)
        real = torch.ones_like(q[:, 0, :, 0]) if mask is None else mask.to(q.dtype)
        agents, used = self._agents(q * real[:, None, :, None], real, grid)
        gather, spread = (F.interpolate(b, size=grid, mode="bilinear", align_corners=False).flatten(2) for b in (self.gather_bias, self.spread_bias))
        v = v * real[:, None, :, None]
        values = attend(agents, k, v, mask, gather)
        y = attend(q, agents, values, None if mask is None else used, spread.transpose(1, 2))
        local = map_to_tokens(self.conv(as_map(v.transpose(1, 2).flatten(2), grid)))
        return self.proj(y.transpose(1, 2).flatten(2) + local)

    def _agents(self, q: Tensor, real: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Mean query of the real positions of each cell (B, h, s^2, d), and which cells have any (B, s^2)."""
        pooled = F.adaptive_avg_pool2d(q.transpose(2, 3).flatten(1, 2).unflatten(2, grid), self.agent_size).flatten(2)
        share = F.adaptive_avg_pool2d(real.unflatten(1, grid).unsqueeze(1), self.agent_size).flatten(2)
        agents = pooled / share.clamp(min=torch.finfo(share.dtype).tiny)
        return agents.unflatten(1, (self.num_heads, self.head_dim)).transpose(2, 3), share[:, 0] > 0
