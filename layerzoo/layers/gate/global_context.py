"""Global context: one attention-weighted mean of the map, the same for every position, is transformed and added to all of them."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import Layer, check_choice
from layerzoo.layers.gate.se import squeezed


class GlobalContext(Layer):
    """Global context block.

    **Paper**: GCNet, arXiv 1904.11492.

    y_i = x_i + W_2 relu(LN(W_1 s + b_1)) + b_2, s = sum_j softmax_j(w . x_j) x_j, W_1 from C channels to R and W_2 back. With fuse
    "scale" what is added multiplies instead: y_i = sigmoid(W_2 relu(LN(W_1 s + b_1)) + b_2) * x_i.

    W_2 and b_2 start as zeros, as in public code: what is added starts as nothing, and the scale as 1 / 2.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C; memory N C; 2 C R parameters.

    **Args**:
        dim: channels C.
        reduction: C / R; 16, the paper's. R is rounded to a multiple of 8, 8 at least.
        fuse: "add" or "scale"; add, the paper's best.

    **Raises**: ValueError for a reduction below 1 and an unknown fuse.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> x = torch.randn(2, 64, 7, 5)
        >>> torch.equal(lz.create_layer("global_context", dim=64)(x), x)
        True

    **Differs from the paper**: w has no bias, which the softmax would cancel; R is a multiple of 8.
    """

    card = Card(
        title="Global context block", paper="1904.11492", year=2019, cost=(1, 1), mask=False, needs_grid=True, symmetry="permutation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 15, "reduction": 1, "fuse": "scale"}},
        limit={"equals": "identity", "grid": (4, 6), "set": {"fc2.weight": "zeros", "fc2.bias": "zeros"}},
        differs="the attention's scores have no bias, which the softmax would cancel; the channels between are a multiple of 8",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, reduction: int = 16, fuse: str = "add"):
        super().__init__(dim)
        check_choice("fuse", fuse, ("add", "scale"))
        hidden = squeezed(dim, reduction)
        self.fuse = fuse
        self.score = nn.Conv2d(dim, 1, 1, bias=False)
        self.fc1 = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, dim)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def mix(self, x: Tensor) -> Tensor:
        weights = self.score(x).flatten(2).softmax(2)
        context = (x.flatten(2) @ weights.mT.to(x.dtype)).squeeze(2)
        change = self.fc2(F.relu(self.norm(self.fc1(context))))[:, :, None, None]
        return x + change if self.fuse == "add" else x * change.sigmoid()
