"""Layers that break one point of the contract each, with the checks they must fail and the message of the first."""

import dataclasses

import pytest
import torch
from good_layers import SIZES, Blur, Mean, Place, RunningSum
from torch import nn

import layerzoo as lz

WRONG = []


def wrong(message, *checks, **card):
    """Register a class that must fail `checks` alone, the first of them with `message`."""

    def register(cls):
        cls.card = dataclasses.replace(cls.card, **card)
        WRONG.append(pytest.param(cls, checks, message, id=f"{checks[0]}-{cls.__name__}"))
        return cls

    return register


def wrong_card(message, *checks, name, base=Mean, **card):
    wrong(message, *checks, **card)(type(name, (base,), {}))


wrong_card("card: got title ''", "card", name="Untitled", title="")
wrong_card("paper of the card: got 'arXiv:1706.03762', expected an arXiv id", "card", name="Prefixed", paper="arXiv:1706.03762")
wrong_card("year of the card: got 2026, expected the year of arXiv 1706.03762", "card", name="Dated", paper="1706.03762")
wrong_card("year of the card: got 26, expected a year", "card", name="ShortYear", year=26)
wrong_card("cost of the card: got (1,), expected two exponents", "card", "cost", name="TimeAlone", cost=(1,))
wrong_card("symmetry of the card: got rotation", "card", "symmetry", name="Rotated", symmetry="rotation")
wrong_card("sizes of the card: got ['tiny', 'base', 'odd', 'huge']", "card", name="Huge", sizes=SIZES | {"huge": {"dim": 64}})
wrong_card("cannot of the card: got [], expected 'mask' exactly where mask=False", "card", "mask", name="NoReason", mask=False)
wrong_card("cannot of the card: got ['fly'], expected names of checks: card", "card", name="Wingless", cannot={"fly": "no wings"})
wrong_card("cannot of the card: got {'batch': ''}, expected a reason for each", "card", "batch", name="EmptyReason", cannot={"batch": ""})


wrong_card(
    "dim of the size odd: got no such key, expected that of the layer", "card", "shape", "batch", "mask", "padding", "state", "tokens",
    name="Dimless", sizes=SIZES | {"odd": {}})


@wrong("dim of the size tiny: got 8, expected that of the layer", "card", "constructor")
class OtherDim(Mean):
    def __init__(self, dim: int):
        super().__init__(dim + 1)


@wrong("first argument: got channels, expected dim", "constructor")
class Channels(Mean):
    def __init__(self, channels: int = 8, *, dim: int):
        super().__init__(dim)


@wrong("options: got bias: bool = True, expected keyword-only ones", "constructor")
class Positional(Mean):
    def __init__(self, dim: int, bias: bool = True):
        super().__init__(dim)


@wrong("options: got **options, expected keyword-only ones", "constructor")
class Swallowing(Mean):
    def __init__(self, dim: int, **options):
        super().__init__(dim)


@wrong("options: got 9, expected at most 8", "constructor")
class NineOptions(Mean):
    def __init__(self, dim: int, *, a=0, b=0, c=0, d=0, e=0, f=0, g=0, h=0, i=0):
        super().__init__(dim)


@wrong("dim=0: got no error, expected ValueError", "constructor")
class AnyDim(Mean):
    def __init__(self, dim: int):
        super().__init__(dim or 1)


@wrong("map of (7, 13), size tiny: got (2, 8, 7, 14), expected (2, 8, 7, 13)", "shape")
class Padded(Blur):
    def mix(self, x):
        return self.conv(nn.functional.pad(x, (0, 1)) if x.shape[-1] == 13 else x)


@wrong("63 tokens, size tiny: got (2, 64, 8), expected (2, 63, 8)", "shape", "padding")  # 63 tokens are also the small map of the padding check
class PaddedTokens(Mean):
    def forward(self, x, mask=None, grid=None):
        return super().forward(nn.functional.pad(x, (0, 0, 0, 1)) if x.shape[1] == 63 and grid is None else x, mask, grid)


@wrong("a map with other channels than dim: got no error, expected ValueError", "shape")
class AnyChannels(Blur):
    def forward(self, x):
        return super().forward(x[:, : self.dim])


@wrong("format of a channels_last map: got strides", "format")
class AlwaysNCHW(Blur):
    def mix(self, x):
        return self.conv(x).contiguous()


@wrong("format of an NCHW map: got strides", "format")
class AlwaysChannelsLast(Blur):
    def mix(self, x):
        return self.conv(x).contiguous(memory_format=torch.channels_last)


def is_channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@wrong("channels_last against NCHW: got a difference of", "format")
class OtherValues(Blur):
    def mix(self, x):
        return self.conv(2 * x if is_channels_last(x) else x)


@wrong("dtype and device: got (torch.float64, device(type='cpu')), expected (torch.float32, device(type='cpu'))", "format")
class AlwaysDouble(Blur):
    def mix(self, x):
        return self.conv(x).double()


@wrong("sliced input against a contiguous copy: got a difference of", "strides")
class ReadsStorage(Blur):
    def mix(self, x):
        dense = x.is_contiguous() or is_channels_last(x)
        return self.conv(x if dense else x.as_strided(x.shape, torch.empty(x.shape).stride()))


@wrong("sample 0 of 3 against itself alone: got a difference of", "batch")
class MixesSamples(Blur):
    def mix(self, x):
        return self.conv(x) + x.mean(0, keepdim=True)


@wrong("tokens with grid against the map: got a difference of", "tokens", "mask", "padding")
class TransposedGrid(Place):
    def _grid_of(self, x, grid):
        return super()._grid_of(x, grid)[:: 1 if x.ndim == 4 else -1]


@wrong("tokens without grid=, which the layer needs: got no error, expected ValueError", "tokens")
class GuessesGrid(Place):
    def _grid_of(self, x, grid):
        return super()._grid_of(x, (1, x.shape[1]) if grid is None else grid)


@wrong("grid=(5, 5) for 30 tokens: got RuntimeError, expected ValueError", "tokens")
class BelievesGrid(Place):
    def _grid_of(self, x, grid):
        return grid or super()._grid_of(x, grid)


wrong_card("tokens without grid against the map: got", "tokens", name="HidesNeed", base=Place, needs_grid=False)
wrong_card("needs_grid of the card of a layer of maps: got False, expected True", "tokens", name="NoNeed", base=Blur, needs_grid=False)


@wrong("needs_grid of the size tiny: got True, expected False, as the card says", "tokens")
class Needy(Mean):
    needs_grid = True


@wrong("tokens: got no error, expected ValueError", "tokens")
class MapOfTokens(Blur):
    def forward(self, x):
        return super().forward(x) if x.ndim == 4 else x


@wrong("channels_last map to tokens: got a copy, expected a view", "view")
class CopiesIn(Mean):
    def forward(self, x, mask=None, grid=None):
        return super().forward(x.clone(), mask, grid)


@wrong("tokens to channels_last map: got a copy, expected a view", "view")
class CopiesOut(Mean):
    def forward(self, x, mask=None, grid=None):
        return super().forward(x, mask, grid).clone()


@wrong("input after forward: got changed values, expected the same values", "inplace")
class WritesItsInput(Mean):
    def mix(self, tokens, grid, mask=None):
        if self.training:
            tokens.detach().add_(1)
        return super().mix(tokens, grid, mask)


class OwnMask(Mean):
    def forward(self, x, mask=None, grid=None):
        if mask is None:
            return super().forward(x, None, grid)
        tokens = x.flatten(2).mT if x.ndim == 4 else x
        self._check_mask(tokens, mask)
        y = self.masked(tokens, mask)
        return y if x.ndim == 3 else y.mT.unflatten(2, x.shape[2:])


@wrong("nan in masked tokens: got a difference of nan", "mask")
class MultipliesByMask(OwnMask):
    def masked(self, tokens, mask):
        return self.mix(tokens, None, mask) * mask.unsqueeze(-1)


@wrong("expected zeros", "mask")
class KeepsMasked(OwnMask):
    def masked(self, tokens, mask):
        return self.mix(tokens.masked_fill(~mask.unsqueeze(-1), 0), None, mask)


@wrong("mask on a map: got a difference of", "mask")
class MaskByColumns(OwnMask):
    def forward(self, x, mask=None, grid=None):
        return super().forward(x, mask.flip(1) if x.ndim == 4 and mask is not None else mask, grid)

    def masked(self, tokens, mask):
        return lz.TokenLayer.forward(self, tokens, mask)


@wrong("gradients with nan in masked tokens and a sample wholly masked: got not finite, expected finite", "mask")
class MeanOfNone(Mean):
    def mix(self, tokens, grid, mask=None):
        count = tokens.shape[1] if mask is None else mask.sum(1).view(-1, 1, 1)
        return self.proj(tokens + tokens.sum(1, keepdim=True) / count)


@wrong("nothing masked against no mask: got a difference of", "mask", "padding")
class MaskAdds(Mean):
    def mix(self, tokens, grid, mask=None):
        return super().mix(tokens, grid, mask) + (mask is not None)


@wrong("a mask that is not bool: got TypeError, expected ValueError", "mask")
class AnyMask(Mean):
    def _check_mask(self, tokens, mask):
        pass


MESSAGE = "a mask, which the card says it cannot honour: got no error, expected ValueError"
wrong_card(MESSAGE, "mask", name="IgnoresMask", base=AnyMask, mask=False, cannot={"mask": "none"})


@wrong("forward of a layer of maps: got mask=, expected no such argument", "mask")
class MaskedMap(Blur):
    def forward(self, x, mask=None):
        return super().forward(x)


wrong_card("mask of the card of a layer of maps: got True, expected False", "mask", name="ClaimsMask", base=Blur, mask=True, cannot={})

@wrong("(1, 9) padded to (1, 12) and masked, size tiny, against unpadded: got a difference of", "padding")
class CountsPadding(Mean):
    def mix(self, tokens, grid, mask=None):
        return self.proj(tokens) + tokens.mean(1, keepdim=True)


@wrong("outputs before token 1 when it changes: got a difference of", "causal")
class SeesTheFuture(RunningSum):
    def mix(self, tokens, grid, mask=None):
        self.causal = False
        return super().mix(tokens, grid, mask)


@wrong("outputs after a token that changes: got the same, expected others", "causal")
class Forgets(RunningSum):
    def mix(self, tokens, grid, mask=None):
        return self.proj(tokens) if self.causal else super().mix(tokens, grid, mask)

    def step(self, token, state):
        return self.proj(token), None


@wrong("step by step against parallel: got a difference of", "causal")
class OtherStep(RunningSum):
    def step(self, token, state):
        y, state = super().step(token, state)
        return y, state / 2


wrong_card("option causal: got taken, expected causal=False as in the card", "causal", name="HidesCausal", base=RunningSum, causal=False)
wrong_card("option causal: got not taken, expected causal=True as in the card", "causal", "mask", name="ClaimsCausal", causal=True)

@wrong("the same input again, in eval: got another output, expected the same output", "state")
class RandomInEval(Blur):
    def mix(self, x):
        return self.conv(x) + 1e-12 * torch.rand(())


@wrong("state_dict in a new layer: got another output, expected the same output", "state")
class LosesItsDraw(Mean):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.register_buffer("draw", torch.randn(dim), persistent=False)

    def mix(self, tokens, grid, mask=None):
        return self.draw * super().mix(tokens, grid, mask)


@wrong("deepcopy: got another output, expected the same output, sharing nothing", "state")
class OnlyOne(Mean):
    def __deepcopy__(self, memo):
        return self


@wrong("GradcheckError: Jacobian", "gradcheck")
class StopsGradient(Blur):
    def mix(self, x):
        return self.conv(x) + x.detach()


@wrong("gradient of unused: got None, expected a tensor: no unused parameter", "gradients")
class Unused(Mean):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.unused = nn.Parameter(torch.zeros(dim))


@wrong("gradient of input on a map of (1, 1): got not finite, expected finite", "gradients")
class RootOfZero(Blur):
    def mix(self, x):
        return self.conv(x) + (x - x.mean((2, 3), keepdim=True)).square().sum((2, 3), keepdim=True).sqrt()


@wrong("torch.float16 at 10x activations: got not finite, expected finite", "autocast")
class Overflows(Blur):
    def mix(self, x):
        return self.conv(x) ** 7


@wrong("torch.bfloat16 against float32: got a relative error of", "autocast")
class Cancels(Blur):
    def mix(self, x):
        return self.conv(x) + 1000 - 1000


@wrong("Unsupported: ", "compile")
class BreaksTheGraph(Mean):
    def mix(self, tokens, grid, mask=None):
        torch._dynamo.graph_break()
        return super().mix(tokens, grid, mask)


@wrong("compiled against eager, forward and backward: got a difference of", "compile")
class CompilesOtherwise(Mean):
    def mix(self, tokens, grid, mask=None):
        y = super().mix(tokens, grid, mask)
        return 2 * y if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting() else y


@wrong("exported against eager: got a difference of", "export")
class ExportsOtherwise(Mean):
    def mix(self, tokens, grid, mask=None):
        y = super().mix(tokens, grid, mask)
        return 2 * y if torch.compiler.is_exporting() else y


@wrong("meta tensor", "meta")
class ReadsAtConstruction(Mean):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.decay = torch.linspace(0, 1, dim).tolist()


@wrong("meta", "meta", "cost")
class LeftBehind(Mean):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.offset = torch.zeros(dim)

    def mix(self, tokens, grid, mask=None):
        return super().mix(tokens, grid, mask) + self.offset.to(tokens.dtype)


wrong_card("time exponent in N: got 1.00, expected 2 within 0.15, as the card says", "cost", name="ClaimsSquare", cost=(2, 1))


@wrong("memory exponent in N: got 2.00, expected 1 within 0.15, as the card says", "cost", cost=(2, 1))
class MakesScores(Mean):
    def mix(self, tokens, grid, mask=None):
        return super().mix(tokens, grid, mask) + ((tokens / 32) @ tokens.mT) @ (tokens / 32)


wrong_card("symmetry: got permutation, expected none, as the card says", "symmetry", name="ModestMean", symmetry="none")
wrong_card("symmetry: got translation, expected permutation, as", "symmetry", name="ProudBlur", base=Blur, symmetry="permutation")


@wrong("symmetry: got none, expected translation, as the card says", "symmetry")
class Slope(Blur):
    def mix(self, x):
        return self.conv(x) * torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)


wrong_card("distance to identity: got ", "limit", name="NotIdentity", limit={"equals": "identity", "grid": (3, 4), "set": {"proj.bias": 0}})
wrong_card("got success, expected failure, since the card says: so it is said", "batch", name="Modest", cannot={"batch": "so it is said"})
