"""What differs between two rankings, in words."""

from __future__ import annotations

from typing import Any

from robopolicy.ranking.result import CheckpointScore, Ranking
from robopolicy.ranking.verdict import percent, points

MAX_LINES = 30


def difference(a: Ranking, b: Ranking) -> tuple[list[str], bool]:
    """(lines for people, whether the same checkpoint leads both)."""
    lines = _keys("inputs", a.inputs, b.inputs) + _keys("settings", a.settings, b.settings)
    if not lines:
        lines = ["Same inputs and settings."]
    ours, theirs = ({c.checkpoint: c for c in r.checkpoints} for r in (a, b))
    for text, only in (("only in a", ours.keys() - theirs.keys()), ("only in b", theirs.keys() - ours.keys())):
        if only:
            shown = ", ".join(sorted(only)[:5]) + (f" and {len(only) - 5} more" if len(only) > 5 else "")
            lines.append(f"{len(only)} checkpoints {text}: {shown}")
    swapped = [n for n in ours.keys() & theirs.keys() if ours[n].sha and theirs[n].sha and ours[n].sha != theirs[n].sha]
    lines += [f"{name} is another checkpoint in b (other hash)" for name in sorted(swapped)]
    moved = [n for n in ours if n in theirs and (ours[n].rank, ours[n].scores) != (theirs[n].rank, theirs[n].scores)]
    moved.sort(key=lambda n: (min(ours[n].rank, theirs[n].rank), n))
    lines += [_moved(ours[name], theirs[name]) for name in moved[:MAX_LINES]]
    if len(moved) > MAX_LINES:
        lines.append(f"and {len(moved) - MAX_LINES} more moved or scored differently")
    first, second = a.checkpoints[0].checkpoint, b.checkpoints[0].checkpoint
    same = first == second
    return [f"Both lead with {first}." if same else f"a leads with {first}, b with {second}.", *lines], same


def _keys(what: str, a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    return [f"{what}: {key} is {_short(a.get(key))} in a and {_short(b.get(key))} in b" for key in keys]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def _moved(a: CheckpointScore, b: CheckpointScore) -> str:
    place = f"place {a.rank}" if a.rank == b.rank else f"place {a.rank} -> {b.rank}"
    parts = []
    if a.success is not None and b.success is not None and a.success != b.success:
        parts.append(f"simulated {percent(a.success)} -> {percent(b.success)} ({points(b.success - a.success)} points)")
    for name in sorted(a.scores.keys() & b.scores.keys() - ({"sim"} if a.success is not None else set())):
        x, y = a.scores[name], b.scores[name]
        if x != y:
            parts.append(f"{name} {'none' if x is None else f'{x:.3g}'} -> {'none' if y is None else f'{y:.3g}'}")
    return f"{a.checkpoint}: {place}" + (f"; {', '.join(parts)}" if parts else "")
