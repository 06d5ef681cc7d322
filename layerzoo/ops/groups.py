"""Groups of channels."""

from __future__ import annotations

from layerzoo.errors import bad_value


def check_groups(dim: int, num_groups: int | None) -> int:
    """The number of groups: as given if it divides dim, by default one per 16 channels rounded down to a divisor."""
    if num_groups is None:
        return next(g for g in range(max(1, dim // 16), 0, -1) if dim % g == 0)
    if num_groups < 1 or dim % num_groups:
        fitting = [str(g) for g in range(1, dim + 1) if dim % g == 0]
        raise bad_value("num_groups", got=num_groups, expected=f"a divisor of dim={dim}", do=f"Choose one of {', '.join(fitting)}.")
    return num_groups
