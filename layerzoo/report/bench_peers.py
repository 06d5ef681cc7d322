"""Layers beside the public implementations of the same methods: `python -m layerzoo.report.bench_peers`, after `pip install '.[bench]'`.

Each pair has the same shapes and options and alternates in one run, forward and backward; the median over rounds of the ratio of times is
printed with quartiles, and the ratio of peak bytes. A peer that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn

from layerzoo.downsample.base import squarest
from layerzoo.registry import FFNS, LAYERS
from layerzoo.report.bench_layers import alternate, peak_mib, step_of
from layerzoo.report.measured import write_rows
from layerzoo.report.peer import DIM, HEADS, Called, Peer, first, with_output
from layerzoo.report.vision_peers import VISION_PEERS

OURS = "layerzoo"
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def _nystromformer(m: object, n: int) -> nn.Module:
    config = m.NystromformerConfig(
        hidden_size=DIM, num_attention_heads=HEADS, num_landmarks=64, segment_means_seq_len=n, conv_kernel_size=33, attention_probs_dropout_prob=0.0)
    attention = importlib.import_module("transformers.models.nystromformer.modeling_nystromformer").NystromformerSelfAttention
    return with_output(attention(config), first)


def _longformer(m: object, n: int) -> nn.Module:
    config = m.LongformerConfig(hidden_size=DIM, num_attention_heads=HEADS, attention_window=[128], attention_probs_dropout_prob=0.0)
    attention = importlib.import_module("transformers.models.longformer.modeling_longformer").LongformerSelfAttention

    def call(module: nn.Module, x: Tensor) -> Tensor:
        masked = torch.zeros(x.shape[:2], dtype=torch.bool)
        return module(x, attention_mask=masked.float(), is_index_masked=masked, is_index_global_attn=masked, is_global_attn=False)[0]

    return with_output(attention(config, 0), call)


def _bigbird(m: object, n: int) -> nn.Module:
    config = m.BigBirdConfig(
        hidden_size=DIM, num_attention_heads=HEADS, block_size=64, num_random_blocks=3, max_position_embeddings=max(4096, n),
        attention_probs_dropout_prob=0.0)
    models = importlib.import_module("transformers.models.big_bird.modeling_big_bird")

    def call(module: nn.Module, x: Tensor) -> Tensor:
        blocks, band, asking, asked = models.BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(x.shape[:2]), 64)
        return module(x, band, asking, asked, blocks, blocks)[0]

    return with_output(models.BigBirdBlockSparseAttention(config, seed=0), call)


def _reformer(m: object, n: int) -> nn.Module:
    config = m.ReformerConfig(
        hidden_size=DIM, num_attention_heads=HEADS, attention_head_size=DIM // HEADS, lsh_attn_chunk_length=64, num_hashes=4, is_decoder=False,
        lsh_attention_probs_dropout_prob=0.0)
    attention = importlib.import_module("transformers.models.reformer.modeling_reformer").LSHSelfAttention
    return with_output(attention(config), lambda module, x: module(x).hidden_states)


def _compressive(m: object, n: int) -> nn.Module:
    module = m.SelfAttention(DIM, n, n, n // 4, cmem_ratio=4, heads=HEADS)
    module.positions = nn.Parameter(torch.zeros(HEADS, n, DIM // HEADS))

    def call(module: nn.Module, x: Tensor) -> Tensor:
        empty = x.new_zeros(x.shape[0], 0, DIM)
        return module(x, memories=(empty, empty), pos_emb=module.positions, calc_memory=False)[0]

    return Called(module, call)


def _perceiver(m: object, n: int) -> nn.Module:
    latents = nn.Parameter(torch.randn(1, 64, DIM))
    encode, decode = (m.Attention(DIM, context_dim=DIM, heads=HEADS, dim_head=DIM // HEADS) for _ in range(2))
    module = nn.ModuleList([encode, m.PreNorm(DIM, m.FeedForward(DIM, mult=1)), decode, *(nn.LayerNorm(DIM) for _ in range(2))])
    module.register_parameter("latents", latents)

    def call(parts: nn.ModuleList, x: Tensor) -> Tensor:
        read, feed, write, read_norm, write_norm = parts
        latents = parts.latents.expand(len(x), -1, -1)
        latents = latents + read(read_norm(latents), context=x)
        return write(x, context=write_norm(latents + feed(latents)))

    return Called(module, call)


_PLAIN = {"num_heads": HEADS, "qkv_bias": False}
_HEADS = {"heads": HEADS, "dim_head": DIM // HEADS}
PEERS = [
    Peer("performer-pytorch", "performer_pytorch", lambda m, n: m.SelfAttention(DIM, **_HEADS, nb_features=256), "performer",
         _PLAIN | {"num_features": 256}),
    Peer("linformer", "linformer", lambda m, n: m.LinformerSelfAttention(DIM, seq_len=n, k=64, **_HEADS), "linformer", _PLAIN | {"num_landmarks": 64}),
    Peer("reformer-pytorch", "reformer_pytorch", lambda m, n: m.LSHSelfAttention(DIM, heads=HEADS, bucket_size=64, n_hashes=4), "reformer",
         {"num_heads": HEADS, "num_hashes": 4}),
    Peer("transformers", "transformers", _reformer, "reformer", {"num_heads": HEADS, "num_hashes": 4}),
    Peer("routing-transformer", "routing_transformer.routing_transformer",
         lambda m, n: Called(m.SelfAttention(DIM, 1, n, HEADS, 0, 64), first), "routing", {"num_heads": HEADS}),
    Peer("nystrom-attention", "nystrom_attention",
         lambda m, n: m.NystromAttention(DIM, **_HEADS, num_landmarks=64, pinv_iterations=6, residual=True), "nystrom",
         _PLAIN | {"num_landmarks": 64, "num_iterations": 6, "conv_kernel": 33}),
    Peer("transformers", "transformers", _nystromformer, "nystrom",
         {"num_heads": HEADS, "num_landmarks": 64, "num_iterations": 6, "conv_kernel": 33}),
    Peer("sinkhorn-transformer", "sinkhorn_transformer.sinkhorn_transformer",
         lambda m, n: m.SinkhornSelfAttention(DIM, bucket_size=64, max_seq_len=n, heads=HEADS), "sinkhorn", {"num_heads": HEADS, "block_size": 64}),
    Peer("local-attention", "local_attention", lambda m, n: m.LocalMHA(dim=DIM, window_size=64, **_HEADS, causal=False, exact_windowsize=True),
         "longformer", _PLAIN | {"window_size": 128, "num_global": 0}),
    Peer("linear-attention-transformer", "linear_attention_transformer.linear_attention_transformer",
         lambda m, n: m.SelfAttention(DIM, heads=HEADS), "efficient_attention", _PLAIN),
    Peer("axial-attention", "axial_attention", lambda m, n: m.AxialAttention(dim=DIM, dim_index=1, heads=HEADS, num_dimensions=2), "axial_attention",
         _PLAIN, maps=True),
    Peer("memory-compressed-attention", "memory_compressed_attention",
         lambda m, n: m.MemoryCompressedAttention(DIM, heads=HEADS, compression_factor=4), "memory_compressed", _PLAIN | {"stride": 4}),
    Peer("compressive-transformer-pytorch", "compressive_transformer_pytorch.compressive_transformer_pytorch", _compressive, "compressive",
         {"num_heads": HEADS, "segment_length": 4096, "memory_length": 4096}),
    Peer("product-key-memory", "product_key_memory", lambda m, n: m.PKM(DIM, heads=HEADS, num_keys=128, topk=32, dim_head=DIM // HEADS),
         "product_key_memory", {"num_heads": HEADS, "num_keys": 128, "top_k": 32}),
    Peer("mixture-of-experts", "mixture_of_experts", lambda m, n: Called(m.MoE(DIM, num_experts=4, hidden_dim=4 * DIM), first), "gshard_moe",
         {"num_experts": 4}),
    Peer("x-transformers", "x_transformers.x_transformers", lambda m, n: m.Attention(DIM, **_HEADS, flash=True), "mhsa", _PLAIN),
    Peer("vit-pytorch", "vit_pytorch.vit", lambda m, n: m.Attention(DIM, **_HEADS), "mhsa", _PLAIN),
    Peer("vit-pytorch", "vit_pytorch.xcit", lambda m, n: m.XCAttention(DIM, **_HEADS), "xcit", _PLAIN),
    Peer("timm", "timm.models.xcit", lambda m, n: m.XCA(DIM, num_heads=HEADS), "xcit", _PLAIN),
    Peer("timm", "timm.models.efficientvit_mit", lambda m, n: m.LiteMLA(DIM, DIM, dim=DIM // HEADS, scales=(5,)), "relu_linear",
         _PLAIN | {"kernel_sizes": (5,)}, maps=True),
    Peer("isab-pytorch", "isab_pytorch", lambda m, n: Called(m.ISAB(dim=DIM, heads=HEADS, num_latents=64), first), "set_attention",
         _PLAIN | {"num_landmarks": 64}),
    Peer("perceiver-pytorch", "perceiver_pytorch.perceiver_pytorch", _perceiver, "perceiver",
         _PLAIN | {"num_latents": 64, "depth": 0, "latent_dim": DIM}),
    Peer("transformers", "transformers", _longformer, "longformer", {"num_heads": HEADS, "window_size": 128, "num_global": 0}),
    Peer("transformers", "transformers", _bigbird, "bigbird", {"num_heads": HEADS, "block_size": 64, "num_random": 3}),
]


def pair(peer: Peer, length: int) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """Our layer and the peer as modules of one input, in eval mode, and the shape of that input for one sample.

    Raises:
        ImportError: where the peer is not installed.
    """
    grid = squarest(length)
    torch.manual_seed(0)
    theirs = Called(peer.make(importlib.import_module(peer.module), length))
    room = FFNS if peer.layer in FFNS.names() else LAYERS
    ours = room.create(peer.layer, DIM, defaults={"grid": grid}, **peer.options)
    if not peer.maps and room.card(peer.layer).needs_grid:
        ours = Called(ours, lambda layer, x: layer(x, grid=grid))
    for module in (ours, theirs):
        module.eval()
    return ours, theirs, (1, DIM, *grid) if peer.maps else (1, length, DIM)


def compare(
    peer: Peer, length: int, batch: int, rounds: int, memory_format: torch.memory_format = torch.channels_last,
) -> tuple[list[float], list[float], float]:
    """Ratios of our time to the peer's, of our time to our own again (the error of measurement), and of peak bytes.

    Raises:
        ImportError: where the peer is not installed.
    """
    ours, theirs, shape = pair(peer, length)
    for weight in (p for module in (ours, theirs) for p in module.parameters() if p.ndim == 4):
        weight.data = weight.data.contiguous(memory_format=memory_format)  # as the task has them
    modules = {OURS: ours, "again": ours, "peer": theirs}
    steps = {name: step_of(module, (batch, *shape[1:]), memory_format) for name, module in modules.items()}
    times = alternate(steps, rounds)
    ratio, control = ([a / b for a, b in zip(times[OURS], times[name])] for name in ("peer", "again"))
    return ratio, control, peak_mib(steps[OURS]) / peak_mib(steps["peer"])


def main() -> None:
    """Print one line per pair and length, and the median over pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="*", help="names of ours; none = all that have a peer")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    for option, default in {"batch": 1, "rounds": 7, "threads": 2}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--format", choices=FORMATS, default="channels_last", help="of maps; with contiguous, peers of tokens are left out")
    parser.add_argument("--out", type=Path, help="a .csv for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    print(f"{'layer':27} {'peer':31}{'N':>6}  {'time':>5} [quartiles]      {'again':>6}  {'memory':>6}")
    for peer in (*PEERS, *VISION_PEERS):
        wanted = (not args.layers or peer.layer in args.layers) and (peer.maps or args.format == "channels_last")
        for length in args.lengths if wanted else ():
            try:
                ratio, control, memory = compare(peer, length, args.batch, args.rounds, FORMATS[args.format])
            except ImportError as error:
                print(f"{peer.layer:27} {peer.package:31}{length:6}  not installed: {error}")
                continue
            low, middle, high = statistics.quantiles(ratio, n=4, method="inclusive")
            rows.append({
                "layer": peer.layer, "package": peer.package, "input": args.format if peer.maps else "tokens", "length": length,
                "time": f"{middle:.3f}", "q1": f"{low:.3f}", "q3": f"{high:.3f}", "memory": f"{memory:.3f}"})
            print(
                f"{peer.layer:27} {peer.package:31}{length:6}  {middle:5.2f} [{low:.2f}, {high:.2f}]    {statistics.median(control):6.2f}  {memory:6.2f}",
                flush=True)
    if rows:
        medians = [float(row["time"]) for row in rows]
        print(f"median of {len(medians)}: {statistics.median(medians):.2f}, largest {max(medians):.2f}")
    if args.out:
        write_rows(rows, args.out)


if __name__ == "__main__":
    main()
