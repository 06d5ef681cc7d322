"""Self-attention, one query and one key at a time."""

import math

import torch


def turned(layer, vector, place, grid):
    """A query or key turned by its row and column, as complex numbers."""
    if layer.position != "rope2d":
        return vector
    pairs = layer.head_dim // 4
    row, col = divmod(place, grid[1])
    angles = [row * layer.rope2d.temperature ** (-i / pairs) for i in range(pairs)]
    angles += [col * layer.rope2d.temperature ** (-i / pairs) for i in range(pairs)]
    turn = torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles], dtype=torch.complex128)
    z = torch.complex(vector[: 2 * pairs], vector[2 * pairs: 4 * pairs]) * turn
    return torch.cat([z.real, z.imag, vector[4 * pairs:]])


def relative_bias(encoding, head, down, right, grid):
    """The entry of the table at the offset from key to query."""
    table = encoding.table
    if grid != encoding.grid:
        table = torch.nn.functional.interpolate(
            table[None], size=(2 * grid[0] - 1, 2 * grid[1] - 1), mode="bilinear", align_corners=True)[0]
    return table[head, grid[0] - 1 - down, grid[1] - 1 - right]


def quadratic(encoding, head, down, right, grid):
    """A parabola around the head's centre."""
    y, x = encoding.centers[head].unbind()
    return -0.5 * encoding.spreads[head] ** 2 * ((down - y) ** 2 + (right - x) ** 2)


def learned_offsets(encoding, head, down, right, grid):
    """Products with the vectors of the row offset and the column offset, or of the farthest there are."""
    height, width = encoding.grid
    row, column = max(1 - height, min(height - 1, down)), max(1 - width, min(width - 1, right))
    return encoding.read_rows[head] @ encoding.rows[row + height - 1] + encoding.read_columns[head] @ encoding.columns[column + width - 1]


def place_score(layer, head, query, key, grid):
    """The score of the offset between two places, in rows down and columns right from query to key."""
    kinds = {f.__name__: f for f in (relative_bias, quadratic, learned_offsets)}
    if layer.position not in kinds or key is None:
        return 0.0
    down, right = key // grid[1] - query // grid[1], key % grid[1] - query % grid[1]
    return kinds[layer.position](getattr(layer, layer.position), head, down, right, grid)


def normed(norm, vector):
    """A vector of root mean square one, or of mean zero and variance one, scaled and shifted."""
    if norm is None:
        return vector
    centred = vector - vector.mean() if isinstance(norm, torch.nn.LayerNorm) else vector
    y = centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight
    return y + norm.bias if isinstance(norm, torch.nn.LayerNorm) else y


def content_score(layer, head, q, k):
    """The score of what query and key contain."""
    if layer.read is not None:
        return (layer.read[head] * torch.tanh(q + k)).sum()
    if layer.log_scale is not None:
        return q @ k / (q.norm() * k.norm()) / (-layer.log_scale[head, 0, 0]).exp().clamp(min=0.01)
    return q @ k / math.sqrt(layer.head_dim)


def entmax15(scores):
    """p_j = (s_j / 2 - tau)^2 of the k largest, with tau the smaller root of sum(p) = 1, for the one k whose tau separates them."""
    x = (scores / 2).sort(descending=True).values
    for k in range(1, len(x) + 1):
        mean = x[:k].mean()
        rest = (1 - (x[:k] - mean).square().sum()) / k
        if rest < 0:
            break
        tau = mean - rest.sqrt()
        if tau < x[k - 1] and (k == len(x) or x[k] <= tau):
            return torch.stack([(s / 2 - tau) ** 2 if s / 2 > tau else 0 * s for s in scores])
    raise ArithmeticError("no support")


def weighed(how, scores):
    """Scores of the keys that one query sees, as weights."""
    if how == "softmax":
        return scores.exp() / scores.exp().sum()
    if how == "entmax":
        return entmax15(scores)
    n = len(scores)
    one = {"relu": lambda s: max(s, 0 * s) / n, "relu_squared": lambda s: max(s, 0 * s) ** 2 / n, "none": lambda s: s / n, "relu_sum": lambda s: max(s, 0 * s),
           "sigmoid": lambda s: 1 / (1 + n * (-s).exp())}
    return torch.stack([one[how](s) for s in scores])


def talked(matrix, rows):
    """Each head's row as a sum of all heads' rows."""
    return rows if matrix is None else [sum(matrix[g, h] * rows[h] for h in range(len(rows))) for g in range(len(rows))]


def attended(layer, heads, i, keys, grid):
    """The mixed values of query i, one vector per head, from (token's heads, place or None) of each key it sees."""
    scores, values, group = [], [], layer.num_heads // layer.num_kv_heads
    for h in range(layer.num_heads):
        q = turned(layer, heads[i]["q"][h], i, grid)
        scores.append(torch.stack([
            content_score(layer, h, q, k if j is None else turned(layer, k, j, grid)) for k, j in ((t["k"][h // group], j) for t, j in keys)]))
        values.append(torch.stack([t["v"][h // group] for t, _ in keys]))
    scores = talked(layer.talk_scores, scores)
    weights = []
    for h in range(layer.num_heads):
        row = scores[h] + torch.stack([torch.zeros_like(scores[h][0]) + place_score(layer, h, i, j, grid) for _, j in keys])
        row = row if layer.sink is None else torch.cat([row, layer.sink[h: h + 1]])
        weights.append(weighed(layer.normalize, row)[: len(keys)])
    weights = talked(layer.talk_weights, weights)
    if layer.talk_bias is not None:
        weights = [w + b for w, b in zip(weights, layer.talk_bias.flatten())]
    return [w @ v for w, v in zip(weights, values)]


def parts(layer, token):
    """Queries, keys and values of a token, one vector per head each."""
    x = layer.qkv.weight @ token + (0 if layer.qkv.bias is None else layer.qkv.bias)
    vectors = [x[start: start + layer.head_dim] for start in range(0, len(x), layer.head_dim)]
    h, kv = layer.num_heads, layer.num_kv_heads
    q, k, v = vectors[:h], vectors[h: h + kv], vectors[h + kv:]
    q, k = [normed(layer.q_norm, t) for t in q], [normed(layer.k_norm, t) for t in k]
    return {"q": q if layer.between is None else [layer.between[g].T @ t for g, t in enumerate(q)], "k": k, "v": v}


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    memory = [(parts(layer, r), None) for r in (() if layer.registers is None else layer.registers[0])]
    out = []
    for n in range(batch):
        heads, rows = [parts(layer, t) for t in tokens[n]], []
        for i in range(length):
            keys = list(memory)
            for j in range(length):
                if (mask is None or mask[n, j]) and (j <= i or not layer.causal) and (j != i or layer.include_self):
                    keys.append((heads[j], j))
            y = attended(layer, heads, i, keys, grid) if keys else [torch.zeros(dim, dtype=tokens.dtype)]
            rows.append(layer.proj.weight @ torch.cat(y) + layer.proj.bias)
        out.append(torch.stack(rows))
    y = torch.stack(out)
    return y if mask is None else y * mask[..., None]
