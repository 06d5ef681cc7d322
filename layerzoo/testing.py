"""The conformance kit: every line of the contract of a layer, tested on any layer, your own included."""

from __future__ import annotations

import copy
import inspect
import re
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from layerzoo.card import Card
from layerzoo.errors import bad_value, unknown_name
from layerzoo.layers.base import Layer, TokenLayer
from layerzoo.ops.auxiliary import collect_auxiliary
from layerzoo.registry import FFNS, LAYERS
from layerzoo.testing_claims import Mismatch, build, close, cost, expect, limit, symmetry

GRIDS = ((1, 1), (7, 13), (32, 32))
TOKEN_GRIDS = ((1, 1), (7, 9), (32, 32))  # 1, 63 and 1024 tokens
MAX_OPTIONS = 8


class ConformanceError(Exception):
    """A layer breaks its contract; the message lists every failed check, `results` holds all of them."""

    def __init__(self, layer: str, results: list[CheckResult]):
        failed = [r for r in results if not r.ok]
        lines = (f"\n  {r.name}: {r.detail}" for r in failed)
        super().__init__(f"{layer} fails {len(failed)} of {len(results)} checks:{''.join(lines)}")
        self.results = results


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check.

    Fields:
        name: of the check, a key of `CHECKS`.
        ok: whether the layer passes.
        detail: what was got and what was expected, or what was proved.
        seconds: wall time.
    """

    name: str
    ok: bool
    detail: str
    seconds: float


def check_layer(layer: str | type[Layer], *, checks: Iterable[str] | None = None) -> list[CheckResult]:
    """Run the conformance checks on a layer or ffn.

    What the card says the method cannot do is proved to fail: no check is skipped.

    Args:
        layer: a name, or a class of your own with a `card`.
        checks: names of checks, in this order; None = all of `CHECKS`.
    Raises:
        ConformanceError: if a check fails; the message says for each what was got and what was expected.
        ValueError: for an unknown layer or check, or a class without a card.
    """
    cls, card = _find(layer)
    names = list(CHECKS) if checks is None else list(checks)
    for name in names:
        if name not in CHECKS:
            raise unknown_name("check", name, CHECKS, "list(layerzoo.testing.CHECKS)")
    results = [_run(name, cls, card) for name in names]
    if not all(r.ok for r in results):
        raise ConformanceError(cls.__name__, results)
    return results


def _find(layer: str | type[Layer]) -> tuple[type[Layer], Card]:
    if isinstance(layer, str):
        room = FFNS if layer in FFNS.names() else LAYERS
        return room.find(layer), room.card(layer)
    if not (isinstance(layer, type) and issubclass(layer, Layer) and isinstance(getattr(layer, "card", None), Card)):
        expected = "a name, or a subclass of Layer with a card"
        raise bad_value("layer", got=repr(layer), expected=expected, do="Derive it from layerzoo.Layer or TokenLayer.")
    return layer, layer.card


def _run(name: str, cls: type[Layer], card: Card) -> CheckResult:
    started, crashed = time.perf_counter(), False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            ok, detail = True, CHECKS[name](cls, card) or "holds"
        except Mismatch as failure:
            ok, detail = False, str(failure)
        except Exception as error:  # noqa: BLE001  a crash of the layer is a result too, told with its place
            place = traceback.extract_tb(error.__traceback__)[-1]
            message = " ".join(str(error).split())[:400]
            ok, detail = False, f"{type(error).__name__}: {message} ({place.filename}:{place.lineno})"
            crashed = not isinstance(error, ValueError) and name not in ("compile", "export")  # torch refuses with errors of its own
    if name in card.cannot and name != "mask" and not crashed:  # the mask check itself proves the refusal
        reason = card.cannot[name]
        detail = f"got success, expected failure, since the card says: {reason}" if ok else f"cannot: {reason} ({detail})"
        ok = not ok
    return CheckResult(name, ok, detail, time.perf_counter() - started)


def _map(layer: Layer, grid: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, layer.dim, *grid, dtype=torch.double)


def _on_tokens(layer: TokenLayer, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
    return layer(tokens, mask=mask, grid=grid) if layer.needs_grid else layer(tokens, mask=mask)


def _refused(what: str, call: Callable, *args, **options) -> None:
    """Expect a ValueError."""
    got = "no error"
    try:
        call(*args, **options)
    except ValueError:
        return
    except Exception as error:  # noqa: BLE001  any other error is what was got
        got = type(error).__name__
    expect(False, what, got, "ValueError")


def _card(cls: type[Layer], card: Card) -> None:
    expect(bool(card.title and card.differs), "card", f"title {card.title!r}, differs {card.differs!r}", "both filled in")
    dated = re.fullmatch(r"(\d\d)\d\d\.\d{4,5}", card.paper)
    expect(dated or card.paper == "", "paper of the card", repr(card.paper), "an arXiv id such as '1706.03762', or ''")
    expect(not dated or card.year == 2000 + int(dated[1]), "year of the card", card.year, f"the year of arXiv {card.paper}")
    expect(isinstance(card.year, int) and 1900 < card.year < 2100, "year of the card", card.year, "a year")
    expect(len(card.cost) == 2 and min(card.cost) >= 0, "cost of the card", card.cost, "two exponents >= 0, of time and memory")
    symmetries = ("permutation", "translation", "none")
    expect(card.symmetry in symmetries, "symmetry of the card", card.symmetry, f"one of {', '.join(symmetries)}")
    expect(set(card.sizes) == {"tiny", "base", "odd"}, "sizes of the card", list(card.sizes), "tiny, base and odd")
    expect(card.mask == ("mask" not in card.cannot), "cannot of the card", list(card.cannot), "'mask' exactly where mask=False")
    expect(card.cannot.keys() <= CHECKS.keys(), "cannot of the card", list(card.cannot), f"names of checks: {', '.join(CHECKS)}")
    expect(all(isinstance(r, str) and r.strip() for r in card.cannot.values()), "cannot of the card", card.cannot, "a reason for each")
    for size in card.sizes:
        dim = card.sizes[size].get("dim", "no such key")
        expect("dim" in card.sizes[size] and build(cls, card, size).dim == dim, f"dim of the size {size}", dim, "that of the layer")


def _constructor(cls: type[Layer], card: Card) -> None:
    first, *options = inspect.signature(cls).parameters.values()
    expect(first.name == "dim", "first argument", first.name, "dim")
    wrong = [str(o) for o in options if o.kind != o.KEYWORD_ONLY]
    expect(not wrong, "options", ", ".join(wrong), "keyword-only ones, without *args and **kwargs")
    expect(len(options) <= MAX_OPTIONS, "options", len(options), f"at most {MAX_OPTIONS}")
    rest = {k: v for k, v in card.sizes["tiny"].items() if k != "dim"}
    _refused("dim=0", cls, 0, **rest)


def _shape(cls: type[Layer], card: Card) -> None:
    for size in ("tiny", "odd"):
        layer = build(cls, card, size)
        for grid in GRIDS:
            x = _map(layer, grid)
            y = layer(x)
            expect(y.shape == x.shape, f"map of {grid}, size {size}", tuple(y.shape), tuple(x.shape))
        for grid in TOKEN_GRIDS if issubclass(cls, TokenLayer) else ():
            x = _map(layer, grid).flatten(2).mT
            y = _on_tokens(layer, x, grid)
            expect(y.shape == x.shape, f"{x.shape[1]} tokens, size {size}", tuple(y.shape), tuple(x.shape))
        wrong = torch.randn(2, layer.dim + 1, 4, 4, dtype=torch.double)
        _refused("a map with other channels than dim", layer, wrong)


def _format(cls: type[Layer], card: Card) -> None:
    layer = build(cls, card, "tiny")
    x = _map(layer, (7, 13))
    y, last = layer(x), copy.deepcopy(layer).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    expect(y.is_contiguous(), "format of an NCHW map", f"strides {y.stride()}", "NCHW")
    expect(last.is_contiguous(memory_format=torch.channels_last), "format of a channels_last map", f"strides {last.stride()}", "channels_last")
    close("channels_last against NCHW", last, y)
    for dtype in (torch.float32, torch.bfloat16):
        z = copy.deepcopy(layer).to(dtype)(x.to(dtype))
        expect((z.dtype, z.device) == (dtype, x.device), "dtype and device", (z.dtype, z.device), (dtype, x.device))


def _strides(cls: type[Layer], card: Card) -> None:
    layer = build(cls, card, "tiny")
    wide = torch.randn(4, layer.dim + 3, 9, 12, dtype=torch.double)
    dense = wide[:, : layer.dim]
    views = {"sliced": wide[::2, 2: layer.dim + 2, 1:8, ::3], "transposed": dense.mT, "expanded": dense[:1].expand(3, -1, -1, -1)}
    for name, x in views.items():
        close(f"{name} input against a contiguous copy", layer(x), layer(x.clone(memory_format=torch.contiguous_format)))


def _batch(cls: type[Layer], card: Card) -> None:
    for size in ("tiny", "odd"):
        layer = build(cls, card, size)
        x = _map(layer, (5, 6), batch=3)
        y = layer(x)
        for i in range(3):
            close(f"sample {i} of 3 against itself alone", y[i: i + 1], layer(x[i: i + 1]))


def _tokens(cls: type[Layer], card: Card) -> str | None:
    if not issubclass(cls, TokenLayer):
        _refused("tokens", build(cls, card, "tiny"), torch.randn(2, 12, card.sizes["tiny"]["dim"], dtype=torch.double))
        expect(card.needs_grid, "needs_grid of the card of a layer of maps", False, "True")
        return "a layer of maps refuses tokens"
    needs = build(cls, card, "tiny").needs_grid
    expect(needs == card.needs_grid, "needs_grid of the size tiny", needs, f"{card.needs_grid}, as the card says")
    for size in ("tiny", "odd"):
        layer = build(cls, card, size)
        x = _map(layer, (5, 6))
        tokens = x.flatten(2).mT
        close("tokens with grid against the map", layer(tokens, grid=(5, 6)), layer(x).flatten(2).mT)
        if layer.needs_grid:
            _refused("tokens without grid=, which the layer needs", layer, tokens)
            _refused("grid=(5, 5) for 30 tokens", layer, tokens, grid=(5, 5))
        else:
            close("tokens without grid against the map", layer(tokens), layer(x).flatten(2).mT)


def _view(cls: type[Layer], card: Card) -> str | None:
    if not issubclass(cls, TokenLayer):
        return "a layer of maps changes nothing"
    layer, seen = build(cls, card, "tiny"), []
    layer.mix = lambda tokens, grid, mask=None: seen.append(tokens) or tokens
    x = _map(layer, (5, 6)).to(memory_format=torch.channels_last)
    y = layer(x)
    expect(seen[0].data_ptr() == x.data_ptr(), "channels_last map to tokens", "a copy", "a view")
    expect(y.data_ptr() == x.data_ptr(), "tokens to channels_last map", "a copy", "a view")


def _inplace(cls: type[Layer], card: Card) -> None:
    layer = build(cls, card, "tiny").train()
    x = _map(layer, (5, 6))
    for given in (x, x.to(memory_format=torch.channels_last)):
        before = given.clone()
        layer(given)
        expect(torch.equal(given, before), "input after forward", "changed values", "the same values")


def _mask(cls: type[Layer], card: Card) -> str | None:
    if not issubclass(cls, TokenLayer):
        expect(not card.mask, "mask of the card of a layer of maps", True, "False")
        expect("mask" not in inspect.signature(cls.forward).parameters, "forward of a layer of maps", "mask=", "no such argument")
        return "a layer of maps takes no mask"
    grid, real = (3, 5), torch.tensor([[True] * 15, [True, False] * 7 + [True], [False] * 15, [False] + [True] * 6 + [False] * 8])
    for size in ("tiny", "odd"):
        for options in ({}, {"causal": True}) if card.causal is True else ({},):
            layer = build(cls, card, size, **options)
            tokens = torch.randn(4, 15, layer.dim, dtype=torch.double)
            if not card.mask:
                _refused("a mask, which the card says it cannot honour", layer, tokens, mask=real, grid=grid)
                continue
            _refused("a mask that is not bool", layer, tokens, mask=real.double(), grid=grid)
            y = layer(tokens, mask=real, grid=grid)
            close("nothing masked against no mask", y[:1], layer(tokens[:1], grid=grid))
            expect(not y[~real].any(), "output at masked tokens", f"{y[~real].abs().max():.2g}", "zeros")
            close("mask on a map", layer(tokens.mT.unflatten(2, grid), mask=real).flatten(2).mT, y)
            for poison in (float("nan"), 1e4):
                _poisoned(layer, tokens, grid, real, y, poison)


def _poisoned(layer: TokenLayer, tokens: Tensor, grid: tuple[int, int], real: Tensor, y: Tensor, poison: float) -> None:
    layer.zero_grad()
    spoilt = tokens.masked_fill(~real.unsqueeze(-1), poison).requires_grad_()
    z = layer(spoilt, mask=real, grid=grid)
    close(f"{poison} in masked tokens", z, y)
    z.square().sum().backward()
    if spoilt.grad is not None:
        expect(not spoilt.grad[~real].any(), "gradient at masked tokens", "not zero", "zero")
    grads = [p.grad for p in (spoilt, *layer.parameters()) if p.grad is not None]
    expect(all(g.isfinite().all() for g in grads), f"gradients with {poison} in masked tokens and a sample wholly masked", "not finite", "finite")


def _padding(cls: type[Layer], card: Card) -> str | None:
    if not (issubclass(cls, TokenLayer) and card.mask):
        return "takes no mask"
    for size in card.sizes:
        layer = build(cls, card, size)
        grids = (((3, 4), (5, 7)), ((7, 9), (8, 16)))
        for small, large in grids if layer.needs_grid else (((1, 9), (1, 12)), *grids):
            x = _map(layer, large)
            real = torch.zeros(large, dtype=torch.bool)
            real[: small[0], : small[1]] = True
            y = _on_tokens(layer, x.flatten(2).mT, large, real.flatten().expand(2, -1)).mT.unflatten(2, large)[..., : small[0], : small[1]]
            alone = _on_tokens(layer, x[..., : small[0], : small[1]].flatten(2).mT, small).mT.unflatten(2, small)
            close(f"{small} padded to {large} and masked, size {size}, against unpadded", y, alone)


def _causal(cls: type[Layer], card: Card) -> str | None:
    takes = "causal" in inspect.signature(cls).parameters
    expect(takes == (card.causal is True), "option causal", "taken" if takes else "not taken", f"causal={card.causal!r} as in the card")
    if not card.causal:
        return expect("causal" not in card.cannot, "option causal", "not taken", "taken") or "not causal"
    grid, length = (10, 13), 130  # beyond the 64 or 128 tokens that chunked forms take at once
    for size in ("tiny", "odd"):
        layer = build(cls, card, size, **({"causal": True} if takes else {}))
        tokens, here = torch.randn(1, length, layer.dim, dtype=torch.double), torch.arange(length)
        y, changed, later = layer(tokens, grid=grid), tokens.repeat(length, 1, 1), here > here[:, None]
        changed[here, here] += 1
        z = layer(changed, grid=grid)
        for t in range(length):
            close(f"outputs before token {t} when it changes", z[t, :t], y[0, :t])
        expect(not takes or not torch.equal(z[later], y.expand_as(z)[later]), "outputs after a token that changes", "the same", "others")
        state, steps = None, []
        for t in range(length) if hasattr(layer, "step") else ():
            out, state = layer.step(tokens[:, t], state)
            steps.append(out)
        if steps:
            close("step by step against parallel", torch.stack(steps, 1), y, 1e-5)


def _state(cls: type[Layer], card: Card) -> None:
    for size in ("tiny", "odd"):
        layer = build(cls, card, size)
        x = _map(layer, (5, 6))
        layer.train()(x)
        layer.eval()
        y, other = layer(x), build(cls, card, size)  # another draw of weights and buffers
        layer(_map(layer, (8, 3)))
        torch.rand(7)
        expect(torch.equal(layer(x), y), "the same input again, in eval", "another output", "the same output")
        other.load_state_dict(layer.state_dict(), strict=True)
        expect(torch.equal(other(x), y), "state_dict in a new layer", "another output", "the same output")
        twin = copy.deepcopy(layer)
        with torch.no_grad():
            for p in layer.parameters():
                p.zero_()
        expect(torch.equal(twin(x), y), "deepcopy", "another output", "the same output, sharing nothing")


def _gradcheck(cls: type[Layer], card: Card) -> None:
    layer = build(cls, card, "tiny")
    names, values = zip(*layer.named_parameters()) if list(layer.parameters()) else ((), ())
    x = _map(layer, (2, 3)).requires_grad_()
    torch.autograd.gradcheck(lambda x, *p: torch.func.functional_call(layer, dict(zip(names, p)), (x,)), (x, *values), fast_mode=True)


def _gradients(cls: type[Layer], card: Card) -> None:
    for grid in ((1, 1), (3, 5)):
        layer = build(cls, card, "tiny").train()
        x = _map(layer, grid).requires_grad_()
        with collect_auxiliary() as auxiliary:
            loss = layer(x).square().sum()
        (loss + auxiliary.loss()).backward()
        for name, p in (("input", x), *layer.named_parameters()):
            expect(p.grad is not None, f"gradient of {name}", None, "a tensor: no unused parameter")
            expect(p.grad.isfinite().all(), f"gradient of {name} on a map of {grid}", "not finite", "finite")


def _autocast(cls: type[Layer], card: Card) -> None:
    layer = build(cls, card, "base", noise=0).float()
    x = _map(layer, (6, 7)).float()
    for dtype, tol in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        with torch.autocast("cpu", dtype):
            near, far = layer(x), layer((10 * x).requires_grad_())
        error = ((near - layer(x)).norm() / layer(x).norm().clamp(min=1e-12)).item()
        expect(error <= tol, f"{dtype} against float32", f"a relative error of {error:.2g}", f"at most {tol}")
        far.float().mean().backward()
        grads = [p.grad for p in layer.parameters() if p.grad is not None]
        expect(all(t.isfinite().all() for t in (far, *grads)), f"{dtype} at 10x activations", "not finite", "finite")


def _compile(cls: type[Layer], card: Card) -> None:
    torch._dynamo.reset()
    layer = build(cls, card, "tiny")
    calls = [(_map(layer, (5, 6)), {})]
    if issubclass(cls, TokenLayer) and card.mask:
        calls.append((_map(layer, (5, 6)).flatten(2).mT, {"mask": torch.rand(2, 30) > 0.3, "grid": (5, 6)}))
    for x, options in calls:
        results = []
        for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
            leaf = x.clone().requires_grad_()
            y = run(leaf, **options)
            wanted = (leaf, *layer.parameters())
            results.append((y, *torch.autograd.grad(y.square().sum(), wanted, allow_unused=True, materialize_grads=True)))
        for eager, compiled in zip(*results):
            close("compiled against eager, forward and backward", compiled, eager)


def _export(cls: type[Layer], card: Card) -> None:
    layer = build(cls, card, "tiny")
    x = _map(layer, (5, 6))
    close("exported against eager", torch.export.export(layer, (x,)).module()(x), layer(x))


def _meta(cls: type[Layer], card: Card) -> None:
    with torch.device("meta"):
        born = cls(**card.sizes["tiny"]).double()
    for how, layer in (("built on", born), ("moved to", build(cls, card, "tiny").to("meta"))):
        x = _map(layer, (5, 6)).to("meta")
        y = layer(x)
        expect((y.shape, y.device) == (x.shape, x.device), f"{how} meta", (tuple(y.shape), str(y.device)), (tuple(x.shape), "meta"))


CHECKS: dict[str, Callable[[type[Layer], Card], str | None]] = {
    f.__name__.strip("_"): f
    for f in (
        _card, _constructor, _shape, _format, _strides, _batch, _tokens, _view, _inplace, _mask, _padding, _causal, _state, _gradcheck,
        _gradients, _autocast, _compile, _export, _meta, cost, symmetry, limit)
}
