"""Attention by learned relative positions, one pair of places at a time."""

from oracles.quadratic_attention import mixed


def entry(table, offset):
    far = len(table) // 2
    return table[max(-far, min(far, offset)) + far]


def twin(layer, tokens, grid, mask=None):
    p, dim = layer.position, tokens.shape[2]

    def score_of(h, n):
        if layer.query is not None:
            part = slice(h * dim, (h + 1) * dim)
            q, k = (tokens[n] @ m.weight[part].T + m.bias[part] for m in (layer.query, layer.key))

        def score(h, i, j):
            dy, dx = j // grid[1] - i // grid[1], j % grid[1] - i % grid[1]
            place = p.read_rows[h] @ entry(p.rows, dy) + p.read_columns[h] @ entry(p.columns, dx)
            return place if layer.query is None else place + q[i] @ k[j] / dim**0.5

        return score

    return mixed(layer, tokens, mask, score_of)
