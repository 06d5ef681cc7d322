"""S4D as a system: its state from token to token, and from the last token back to the first."""

import torch


def states(layer, rows):
    """(C, n) after each of the rows (C,): s <- e^{dt A} s + (e^{dt A} - 1) / A x."""
    a = torch.complex(-layer.log_decay.exp(), layer.frequency).reshape(layer.dim, layer.state_dim)
    gain = (a * layer.log_dt.exp()[:, None]).exp()
    state, found = torch.zeros_like(a), []
    for x in rows:
        state = gain * state + (gain - 1) / a * x[:, None]
        found.append(state)
    return found


def twin(layer, tokens, grid, mask=None):
    c = torch.complex(layer.readout[..., 0], layer.readout[..., 1])
    out = []
    for n in range(len(tokens)):
        real = [j for j in range(tokens.shape[1]) if mask is None or mask[n, j]]
        result = [torch.zeros(layer.dim, dtype=tokens.dtype)] * tokens.shape[1]
        x = [tokens[n, j] for j in real]
        past, future = states(layer, x), states(layer, x[::-1])[::-1]
        for i, place in enumerate(real):
            u = layer.skip * x[i] + 2 * (c[0] * past[i]).sum(1).real
            if not layer.causal and i + 1 < len(real):
                u = u + 2 * (c[1] * future[i + 1]).sum(1).real
            y = layer.proj.weight @ (u * (1 + torch.erf(u / 2**0.5)) / 2) + layer.proj.bias
            result[place] = y[: layer.dim] / (1 + (-y[layer.dim:]).exp())
        out.append(torch.stack(result))
    return torch.stack(out)
