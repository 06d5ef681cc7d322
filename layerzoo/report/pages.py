"""Pages drawn from cards and docstrings: one per layer, and the tables that lead to them."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import torch

import layerzoo as lz
from layerzoo.card import Card
from layerzoo.models.port import PORTS
from layerzoo.models.presets import PRESETS, list_models
from layerzoo.registry import DOWNSAMPLES, FFNS, LAYERS, Room
from layerzoo.report.bench_downloads import PULLERS
from layerzoo.report.bench_faults import ENDS
from layerzoo.report.catalogue import markdown
from layerzoo.report.measured import ARENA, DOWNLOADS, EXACT, FAULTS, PEERS, RESUMED, crossover, exponents, read_rows, recorded

_MAPS = ((8, 8), (16, 16), (32, 32))


def room_table(room: Room, folder: str) -> str:
    """A Markdown table of a room with a link to each page."""
    rows = ["| name | family | paper | time | memory | mask | causal | needs grid |", "|---|---|---|---|---|---|---|---|"]
    for name in room.names():
        c = room.card(name)
        rows.append(
            f"| [{name}]({folder}/{name}.md) | {c.family or room.folder} | {paper_link(c)} | N^{c.cost[0]:g} | N^{c.cost[1]:g} "
            f"| {_yes(c.mask)} | {_yes(c.causal)} | {_yes(c.needs_grid)} |")
    return "\n".join(rows)


def models_page() -> str:
    """The Markdown page of the presets: what each is, how large, and which model of timm gives it weights."""
    rows = ["| preset | what | parameters | weights of timm's |", "|---|---|---:|---|"]
    for name in list_models():
        what, _, more = re.sub(r"arXiv ([\d.]+\d)", r"[arXiv \1](https://arxiv.org/abs/\1)", inspect.getdoc(PRESETS[name])).partition("\n")
        with torch.device("meta"):
            count = sum(p.numel() for p in lz.create_model(name, img_size=224).parameters())
        source = f"<code>{PORTS[name][0]}</code>".replace("|", "&#124;").replace("_", "&#95;") if name in PORTS else ""  # no Markdown
        rows.append(f"| `{name}` | {f'{what} {more.strip()}'.strip()} | {count:,} | {source} |")
    return _MODELS.format("\n".join(rows))


def page(room: Room, name: str, twins: Path) -> str:
    """The Markdown page of one module: its docstring, its card and, for layers and ffns, its measured cost."""
    card, cls = room.card(name), room.find(name)
    verified = (twins / f"{name}.py").exists() or room.folder in ("positions", "downsample")
    facts = {
        "family": card.family or room.folder, "paper": f"{paper_link(card)}, {card.year}", "cost": f"time N^{card.cost[0]:g}, memory N^{card.cost[1]:g}",
        "mask": _yes(card.mask), "causal": _yes(card.causal), "needs the map's height and width": _yes(card.needs_grid), "symmetry": card.symmetry,
        "equals another layer": _limit(card), "class in the survey 2009.06732": card.survey or "not in it",
        "differs from the paper": card.differs, **{f"cannot {k}": v for k, v in card.cannot.items()},
        "verified against a slow twin": _yes(verified)}
    table = "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items())])
    summary = inspect.getdoc(importlib.import_module(cls.__module__))
    signature = f"{cls.__name__}{inspect.signature(cls)}".replace("'", "").replace("(", "(\n    ", 1)
    signature = re.sub(r", (?=\*|\w+:)", ",\n    ", signature)
    parts = [f"# {name}", summary, _as_markdown(inspect.getdoc(cls)), f"```python\n{signature}\n```", "## Card", table]
    if room.folder in ("layers", "ffn"):
        parts += ["## Measured cost", cost_table(room, name)]
    return "\n\n".join(parts) + "\n"


def cost_table(room: Room, name: str) -> str:
    """A Markdown table of parameters, FLOPs and activation bytes of the base size on three maps."""
    rows = ["| map | parameters | MFLOP | activations, MiB |", "|---|---|---|---|"]
    for height, width in _MAPS:
        options = dict(room.card(name).sizes["base"])
        dim = options.pop("dim")
        c = lz.cost(room.create({"name": name, **options}, dim), (1, dim, height, width))
        rows.append(f"| {dim} x {height} x {width} | {c.params:,} | {c.flops / 1e6:.2f} | {c.activation_bytes / 2**20:.2f} |")
    return "\n".join(rows)


def efficient_page() -> str:
    """The Markdown page of the survey's table: every efficient method of the zoo, its claims, its measurements and its picture."""
    cards = [(room, room.card(name)) for room in (LAYERS, FFNS, DOWNSAMPLES) for name in room.names()]
    shown = sorted((c.year, c.name, room, c) for room, c in cards if c.survey or c.family == "efficient")
    rows = [
        "| model | year | class | declared | measured | decode | parameters | faster than exact from |", "|---|---|---|---|---|---|---|---|"]
    for _, name, room, c in shown:
        own = recorded().get(name, []) if room is LAYERS else []
        fits = ", ".join(f"N^{e:.2f}" for e in exponents(own)) if own else ""
        rows.append(
            f"| [{name}](reference/{room.folder}/{name}.md), {paper_link(c)} | {c.year} | {c.survey} | N^{c.cost[0]:g}, N^{c.cost[1]:g} | {fits} "
            f"| {_yes(c.causal)} | {f'{own[0].parameters:,}' if own else ''} | {crossover([m.length for m in own], [m.ratio for m in own]) if own else ''} |")
    efficient = [m for name, own in recorded().items() if name != EXACT and LAYERS.card(name).family == "efficient" for m in own]
    wins = [f"| {n:,} | {sum(m.ratio < 1 for m in efficient if m.length == n)} of {sum(m.length == n for m in efficient)} |"
            for n in sorted({m.length for m in efficient})]
    names = {name for _, name, *_ in shown}
    arena = [f"| {r['method']} | {r['accuracy'] or 'not trained'} | {r['steps/s']} | {int(r['MiB']):,} | {r['published']} |" for r in read_rows(ARENA)]
    pictures = [f"![{name}](images/patterns/{name}.png)" for _, name, room, c in shown if room is not FFNS]
    return "\n\n".join([
        _EFFICIENT, "\n".join(rows), _WHERE, "\n".join(["| positions | methods faster than exact attention |", "|---|---|", *wins]), _PEERS,
        peers_table(lambda layer: layer in names), _ARENA,
        "\n".join(["| method | accuracy | steps/s | MiB | published |", "|---|---|---|---|---|", *arena]), _PATTERNS, "\n".join(pictures)]) + "\n"


def peers_table(shown: Callable[[str], bool]) -> str:
    """Our time and memory over those of public implementations, for the layers that are `shown`."""
    return markdown([{
        "layer": p["layer"], "package": p["package"], "input": p["input"], "positions": f"{int(p['length']):,}",
        "time [quartiles]": f"{p['time']} [{p['q1']}, {p['q3']}]", "memory": p["memory"]} for p in read_rows(PEERS) if shown(p["layer"])])


def other_peers() -> str:
    """The section on public implementations of the layers that are not in the table of efficient methods."""

    def other(name: str) -> bool:
        return name in LAYERS.names() and LAYERS.card(name).family != "efficient" and not LAYERS.card(name).survey

    return f"{_PEERS}\n\n{peers_table(other)}"


def faults_page() -> str:
    """The page of what savers and downloads do under the same faults."""
    found, prices = read_rows(FAULTS), read_rows(FAULTS.with_name(f"{FAULTS.stem}-costs.csv"))
    savers = list(dict.fromkeys(row["saver"] for row in found))
    ends, price = {(row["fault"], row["saver"]): _ends(row) for row in found}, {(p["saver"], p["MB"]): p for p in prices}
    faults = [{"fault": fault} | {saver: ends[fault, saver] for saver in savers} for fault in dict.fromkeys(row["fault"] for row in found)]
    costs = [{"": f"{what}, {float(size):g} MB"} | {saver: price[saver, size][what] for saver in savers}
             for size in dict.fromkeys(p["MB"] for p in prices) for what in ("save", "load", "bytes")]
    pulls = [{"the server's fault": row["fault"]} | {name: f"{row[name]}, {row[f'{name} s']} s{_asked(row[f'{name} requests'])}" for name in PULLERS} for row in read_rows(DOWNLOADS)]
    parts = [{"dies": place, "": part} | {row["saver"]: row[part] for row in again} for place, again in _by_stop().items() for part in [*again[0]][2:]]
    return _FAULTS.format(*map(markdown, (faults, parts, costs, pulls)))


def _by_stop() -> dict[str, list[dict]]:
    rows = read_rows(RESUMED)
    return {place: [row for row in rows if row["stopped"] == place] for place in dict.fromkeys(row["stopped"] for row in rows)}


def _asked(requests: str) -> str:
    return f", {requests} request{'s' * (requests != '1')}"


def _ends(row: dict[str, str]) -> str:
    counts = [f"{row[end]} {end}" for end in ENDS if row[end] != "0"]
    return "; ".join(filter(None, [", ".join(counts), row["note"]]))


_MODELS = """---
hide: [navigation, toc]
---

# Models

A preset is a set of arguments of `Isotropic` or `Pyramid` by image size, so every part of it can be replaced: `lz.create_model("swin_tiny",
layer="nystrom")` is Swin with another layer in all its blocks. Where timm has the same model, `lz.from_timm` gives the preset its weights, and both give
the same logits, to 1e-8 in double precision; `lz.swap` then puts other layers into it.

```python
import timm
import torch
import layerzoo as lz

theirs = timm.create_model("xcit_nano_12_p16_224").eval()
ours, x = lz.from_timm(theirs, "xcit_nano_12_p16"), torch.randn(1, 3, 224, 224)
print((ours(x) - theirs(x)).abs().max())
```

Parameters are those at 224 pixels and 1,000 classes; what small models say of themselves is at 32 pixels and 10 classes. The last column is a pattern of the names of architectures.

{0}
"""

_EFFICIENT = """---
hide: [navigation, toc]
---

# Efficient Transformers

Every method here computes under one contract, equals a slow twin in float64, and is measured. *Class* is that of the survey
[Efficient Transformers](https://arxiv.org/abs/2009.06732): FP fixed pattern, LP learnable pattern, M memory, LR low rank, KR kernel,
RC recurrence, DS downsampling, Sparse conditional computation. *Declared* are the exponents of time and memory in the number of positions N
that the card states; *measured* are those fitted from 1,024 to 16,384 positions, forward and backward, and *faster than exact from* is the
length from which the layer takes less time than `mhsa`, which is fused exact attention. *Decode* is `causal=True`.

Measured with 64 channels in 4 heads, one sample, float32, on one thread of a CPU with AVX512, as `layerzoo bench layers --lengths
64,1024,2048,4096,8192,16384` does; its median of ratios alternates each layer with exact attention in the same rounds. The C library is told to keep
memory that it is given back, as allocators of GPUs do: else steps with blocks above 32 MiB spend most of their time on fresh pages. Parameters are those at
64 channels and, where tables belong to places, 64 positions."""

_FAULTS = """# Under the same faults

What a training or a download comes to when the same thing goes wrong, for layerzoo and for what else there is, each used as its documentation has it: `torch.save` to one path;
the files of Lightning's `ModelCheckpoint(save_top_k=2)`, written and read by its own `TorchCheckpointIO`; timm's `CheckpointSaver(max_history=2)`; `hf_hub_download`. Loads are
made with `weights_only=True`. The next start finds the `newest` save, or an `older` one, which it takes by itself and says so; or it is `refused`: an error, and the user has to
look for another file. `wrong` means values that nobody ever saved, without a word.

## Saves

{0}

Kills come at random moments of a loop of saves of 12 MB, or, one try each, before every system call of a save of 16 kB that changes or syncs a file, and in the middle of every
write, whichever library makes it; what is left is read in another process. `EIO` is the input/output error of a disk that fails, of one write or sync at a time. Two that save into
one place do so five times each, at the same time; in layerzoo a run keeps its folder to itself, and the second is refused. `$TMPDIR` elsewhere is on another file system than the checkpoints, as is usual on clusters. A flipped bit is one
of all in the files of the newest save; weights and moments are compared. Nobody checks what `torch.load` reads: a flipped bit in a weight becomes that weight.

## What comes back

A training of three epochs of eight steps, with drop path and shuffled samples, dies in the step after a save and is begun again as the documentation of each has it: the same command of
layerzoo, `Trainer.fit(ckpt_path=...)` with ModelCheckpoint, timm's `resume_checkpoint`, the loop of PyTorch's tutorial. Its next step is compared, bit for bit, with that of a training that
never died: weights, moments of the optimiser, randomness (the state of the generator), the samples of the batch; and `end`, the weights after the last step.

{1}

Weights and moments, all bring back. layerzoo derives order and randomness from seed, epoch and step; for the others, who wants them back has to save and restore them himself.

## Their cost

Over `torch.save`, medians of alternating saves in one run, one thread, one disk. layerzoo hashes all bytes and waits until they are on the disk, and reads them twice when it loads, once to
verify; the others do neither. It keeps two saves, as Lightning and timm do here; `torch.save` keeps one. timm has the size of what it loads from the running model.

{2}

**Where others are equal or better.** Under kills at random and on full disks timm loses no save either; a kill at one call, after `last.pth.tar` is deleted and before the new one has its
name, leaves it without that name, though not without numbered files. Lightning loses none where its temporary files lie beside the checkpoints. Of a disk that fails, everybody told, and
Lightning and timm kept the save before, as layerzoo does. Two at once, without a lock, come to a whole save of one of them most times; of Lightning, always. Nobody ran the code in
a checkpoint, with `weights_only=True`, and nobody was silent about a file system that is read-only (a folder without the right to write, which root does not meet, was not tried).
`torch.save` needs no room to write over a file of the same size. Small saves take about three times as long in layerzoo, loads nearly twice, and two saves
take twice the room of `torch.save`'s one. A large save takes about as long as `torch.save`'s, which does not wait for the disk.

## Downloads

One file of weights from a server on the same machine, by `layerzoo.hub.pull` of a folder and `hf_hub_download`. A try ends `right`, `refused`, `wrong`, or `waits` longer than a minute and a half.
Requests are those for the weights. Eight at once are eight processes with one cache, and a server that takes two seconds.

{3}

`huggingface_hub` compares sizes, not hashes, and waits as long as something comes, be it a byte a second. layerzoo knows the hash of every file from the manifest and gives up
at 10 kB/s. A cut connection, both take up again: the hub where it was cut, layerzoo from the start of the file. Eight at once,
both serve with one request, and both are right where nothing can be locked, with eight.

Measured again by `python -m layerzoo.report.bench_faults --out faults.csv` (as root, for the small disks, on Linux on x86-64), `python -m layerzoo.report.bench_resume --out resume.csv` and
`python -m layerzoo.report.bench_downloads --out downloads.csv`.
"""

_WHERE = """## Where nothing wins

Exact attention is the baseline to beat. In short sequences, such as the 64 patches of a CIFAR image, its fused kernel takes least time, whatever
the exponent of the other method says:"""

_PEERS = """## Beside public packages

Time of our layer over that of a public implementation with the same shapes and options, and the same for peak bytes; below 1 ours takes less. Both
alternate in one run, forward and backward, 256 channels in 4 heads, one sample, float32, on one thread, in seconds of the processor: `python -m
layerzoo.report.bench_peers --threads 1` and, for maps in the other layout, the same with `--format contiguous`, after `pip install '.[bench]'`. Ratios between 0.95 and 1.05 mean nothing here."""

_ARENA = """## On the image task of the Long Range Arena

CIFAR-10 in grey as 1,024 tokens of no order, `recipes/lra`: three blocks of 64 channels and 4 heads, the same recipe for all but the layer. Test accuracy
in per cent after a short schedule, 574 steps of 64 images (three quarters of one pass), one seed, bfloat16, on one H200; learning rate 2e-3, the
best of 5e-4, 1e-3 and 2e-3 for the validation accuracy of mhsa, linear_attention and xcit. Steps per second and the most MiB of a step were taken
alone on the same card. *Published* is what arXiv 2011.04006 reports after 35,000 steps, 60 times as many: the columns do not compare. With one seed, a
difference of a point or two may be chance; that methods which see neighbours lead those which see all places alike is what so few steps show."""

_PATTERNS = """## What each sees

The influence of each input position on each output position of a freshly initialised layer on a 12 x 12 map, by `layerzoo plot pattern NAME`.
Influence is a derivative: where a method lets no gradient through, as the memories of Transformer-XL do, nothing shows."""


def paper_link(card: Card) -> str:
    """The paper as a Markdown link, or the title where there is no arXiv id."""
    return f"[{card.title}](https://arxiv.org/abs/{card.paper})" if card.paper else card.title


def _limit(card: Card) -> str:
    if card.limit is None:
        return "no"
    how = card.limit.get("options") or f"{card.limit.get('sweep')} growing"
    return f"{card.limit['equals']}, with {how}".replace("|", "\\|")


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _as_markdown(text: str) -> str:
    """A docstring with its arguments as a list and its >>> lines in a fenced block."""
    lines, fenced = [], False
    for line in text.splitlines():
        argument = re.match(r" {4}(\w+): (.+)", line)
        starts = line.strip().startswith(">>>")
        if starts and not fenced:
            lines += ["", "```pycon"]
            fenced = True
        elif fenced and not line.strip():
            lines += ["```"]
            fenced = False
        if argument and not fenced:
            lines += [*([""] if lines and not lines[-1].startswith("- ") else []), f"- `{argument[1]}`: {argument[2]}"]
        else:
            lines.append(line.strip() if fenced else line)
    return "\n".join([*lines, "```"] if fenced else lines)
