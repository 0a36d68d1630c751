"""The result in plain words, and how numbers are written in them."""

from __future__ import annotations

from typing import Any

from robopolicy.ranking.result import CheckpointScore, Ranking

CLEAR, LIKELY = 0.8, 0.5


def percent(value: float | None, digits: int = 0) -> str:
    """A fraction as text, e.g. 0.874 -> "87 %"; a dash when it is None."""
    return "–" if value is None else f"{100 * value:.{digits}f}\u202f%"


def points(value: float | None) -> str:
    """A signed difference of fractions in percentage points, e.g. -0.125 -> "−12.5"."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def number(value: float | None, digits: int = 2) -> str:
    """A number with a true minus; a dash when it is None."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _interval(value: Any) -> str:
    return "" if value is None else f"{percent(value[0])} to {percent(value[1])}"


def _in_brackets(value: Any) -> str:
    return "" if value is None else f" ({_interval(value)})"


def _obtained_sentence(ranking: Ranking, target_name: str) -> str | None:
    """What the target said about the pick, and about the pick of simulation alone."""
    known = {c.checkpoint: c for c in ranking.checkpoints if c.target_success is not None}
    lead = ranking.checkpoints[0]
    if not known:
        return None
    if lead.target_success is None:
        return f"It has no outcome on {target_name} yet; {len(known)} others have."
    best = max(c.target_success for c in known.values() if c.target_success is not None)
    short_of = best - lead.target_success
    place = "the best of the pool" if short_of <= 1e-9 else f"{100 * short_of:.1f} points below the best of the pool"
    text = f"On {target_name} it obtained {percent(lead.target_success)}{_in_brackets(lead.target_interval)}, {place}."
    sim_pick = known.get(ranking.orders["sim"][0])
    if sim_pick is not None and sim_pick.target_success is not None and sim_pick is not lead:
        text += f" The pick of simulation alone, {sim_pick.checkpoint}, obtained {percent(sim_pick.target_success)}."
    return text


def _headline(ranking: Ranking, lead: CheckpointScore) -> str:
    if len(ranking.checkpoints) == 1:
        return f"Only {lead.checkpoint} was given: nothing to compare it with."
    if all(c.success is not None and not c.success for c in ranking.checkpoints):
        return "Deploy none of them: no checkpoint succeeded once in simulation."
    if lead.prob_best is None:
        return f"{lead.checkpoint} scores best."
    if lead.prob_best >= CLEAR:
        return f"Deploy {lead.checkpoint} first."
    if lead.prob_best >= LIKELY:
        return f"{lead.checkpoint} leads, but not beyond doubt."
    return f"No clear winner: {lead.checkpoint} is ahead by a little."


def _certainty(ranking: Ranking, lead: CheckpointScore) -> list[str]:
    if lead.prob_best is None:
        return ["How sure the order is cannot be said: the scores come without the number of episodes behind them."]
    sentences = [f"It takes first place in {percent(lead.prob_best)} of {ranking.num_draws} resamples of the evidence."]
    likely = ranking.shortlist()
    if len(likely) > 1 and len(ranking.checkpoints) > 1:
        shown = " or ".join(likely) if len(likely) <= 4 else f"one of {len(likely)} checkpoints"
        sentences.append(f"In 90\u202f% of them, first place goes to {shown}.")
    return sentences


def verdict(ranking: Ranking, target_name: str = "the target") -> list[str]:
    """The result in plain words: a headline, then sentences that qualify it.

    The number to quote comes from fresh conditions where there are any.
    """
    lead = ranking.checkpoints[0]
    sentences = _certainty(ranking, lead)
    fresh = next(((split, lead.fresh[split]) for split in ("sealed", "confirm") if split in lead.fresh), None)
    if fresh is not None:
        split, found = fresh
        sentences.append(
            f"On {found['num_episodes']} fresh conditions ({split}) it succeeded in {percent(found['success'])} "
            f"(exact 95\u202f% interval {_interval(found['interval'])})."
        )
    if lead.success is None:
        simulated = f"Simulated score {number(lead.scores['sim'], 3)}"
    else:
        what = "Simulated success in the selection" if fresh is not None else "Simulated success"
        simulated = f"{what} {percent(lead.success)}{_in_brackets(lead.success_interval)}"
    if len(ranking.orders) > 2:
        sim_pick = ranking.orders["sim"][0]
        same = sim_pick == lead.checkpoint
        simulated += "; simulation alone picks it too" if same else f"; simulation alone would have picked {sim_pick}"
    sentences.append(f"{simulated}.")
    outcome = _obtained_sentence(ranking, target_name)
    return [_headline(ranking, lead), *sentences, *([outcome] if outcome else [])]
