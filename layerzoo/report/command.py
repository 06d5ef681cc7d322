"""The verb `plot`: pictures of layers and checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from layerzoo.errors import bad_value
from layerzoo.report.measured import new_path


def add_plot(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb to a parser.

    Args:
        verb: adds one of a name, what it calls and its help.
    """
    plot = verb("plot", plot_into, "pattern: which position sees which through a layer; attention: what the heads of a checkpoint see; "
                "sharpness: how near attention is to the convolution it stands for")
    plot.add_argument("action", choices=["pattern", "attention", "sharpness"])
    plot.add_argument("names", nargs="*", metavar="NAME", help="of pattern a layer or downsample; of attention images, none = noise")
    plot.add_argument("--checkpoint", help="of attention, a name, folder or address")
    plot.add_argument("--query", type=_place, default=(0.5, 0.5), metavar="ROW,COLUMN", help="of attention, the place that looks, in shares of the map; 0.5,0.5")
    plot.add_argument("--out", type=Path, metavar="FILE", help="a new picture; ACTION-NAME.png, attention.png or sharpness.png")


def plot_into(args: argparse.Namespace) -> None:
    """Draw one picture into a new file."""
    if args.action == "pattern" and len(args.names) != 1:
        raise bad_value("plot pattern", got=f"{len(args.names)} names", expected="one layer or downsample", do="`layerzoo list layers` lists them.")
    if args.action == "sharpness" and args.names:
        raise bad_value("plot sharpness", got=" ".join(args.names), expected="no names", do="Leave them out.")
    path = new_path(args.out or Path("-".join([args.action, *(args.names if args.action == "pattern" else ())]) + ".png"))
    if args.action == "pattern":
        from layerzoo.report.pattern import draw_pattern

        draw_pattern(args.names[0], path)
    elif args.action == "sharpness":
        from layerzoo.report.attention_maps import draw_sharpness
        from layerzoo.report.catalogue import print_table

        print_table([{key: f"{value:.3g}" for key, value in row.items()} for row in draw_sharpness(path)])
    else:
        _attention(args, path)
    print(path)


def _attention(args: argparse.Namespace, path: Path) -> None:
    if not args.checkpoint:
        raise bad_value("--checkpoint", got="none", expected="a name, folder or address", do="`layerzoo list checkpoints` lists those to pull.")
    import torch

    from layerzoo.data.images import images_for
    from layerzoo.hub import load
    from layerzoo.report.attention_maps import draw_attention

    model = load(args.checkpoint)
    torch.manual_seed(0)
    images = images_for(model, args.names) if args.names else torch.randn(1, model.in_chans, *model.img_size)
    history = Path(args.checkpoint).parent / "centers.jsonl"
    draw_attention(model, images, path, query=args.query, history=history if history.is_file() else None)


def _place(text: str) -> tuple[float, float]:
    try:
        row, column = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROW,COLUMN, two shares of the map such as 0.5,0.5") from None
    return row, column
