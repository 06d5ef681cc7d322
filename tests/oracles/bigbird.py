"""BigBird, one query and one head at a time: the set of blocks it sees, then plain attention over their tokens."""

from oracles.blockwise import attended


def blocks_seen(layer, head, block, total):
    """All for the first and the last block; else window, ends, and random others, each drawn from those that are left."""
    if block in (0, total - 1):
        return set(range(total))
    seen = {0, total - 1, block - 1, block, block + 1}
    others = [b for b in range(total) if b not in seen]
    for number in layer.draws[head, block % layer.draws.shape[1]].tolist():
        if others:
            seen.add(others.pop(number % len(others)))
    return seen


def twin(layer, tokens, grid, mask=None):
    def seen(head, i, count):
        size = layer.block_size
        blocks = blocks_seen(layer, head, i // size, -(-count // size))
        return [j for j in range(count) if j // size in blocks]

    return attended(layer, tokens, mask, seen)
