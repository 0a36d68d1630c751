"""Which task to do, to a vector: by its place among the known ones, or by what its text shares with theirs."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robopolicy.batch import task_ids
from robopolicy.spec import Array, SpecError, did_you_mean

KINDS = ("id", "text")
CHARACTERS = (3, 4, 5)  # lengths of the parts of words that count


def text_parts(text: str) -> Counter[str]:
    """Words, pairs of neighbouring words, and the 3 to 5 characters long parts of words ("#" = a word's end) of `text`."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold().replace("_", " "))
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    marked = [f"#{word}#" for word in words]
    pieces = [f"~{word[i : i + n]}" for word in marked for n in CHARACTERS for i in range(len(word) - n + 1)]
    return Counter([*words, *pairs, *pieces])


class TextFeatures:
    """Texts as unit vectors [V] over the parts (text_parts) that occur in `known` texts, rare parts weighing more (tf-idf).

    Fixed by `known` alone, so the same in every process. Parts that no known text has count nothing: a wording of one's
    own is described by what it shares with the known ones, at full length.
    """

    def __init__(self, known: Sequence[str]) -> None:
        self.known = tuple(known)
        frequency = Counter(part for text in self.known for part in text_parts(text))
        self.place = {part: index for index, part in enumerate(sorted(frequency))}
        count = np.array([frequency[part] for part in self.place], np.float64)
        self.weight = np.log((1 + len(self.known)) / (1 + count)) + 1

    def __call__(self, text: str) -> Array:
        """Float32 [V]; zero when the text shares no part with a known one."""
        vector = np.zeros(len(self.place))
        for part, number in text_parts(text).items():
            if part in self.place:
                vector[self.place[part]] = number * self.weight[self.place[part]]
        return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


class TaskEncoder(nn.Module):
    """Tasks -> [B, D].

    Args:
        values: the known tasks, those of the training data.
        width: D.
        by: "id", a learned vector for each known task; any other is refused. "text", a learned map of TextFeatures: it
            also takes wordings that training never saw, without a language model.
    """

    def __init__(self, values: Sequence[str], width: int, by: str = "id") -> None:
        super().__init__()
        if by not in KINDS:
            raise ValueError(f"tasks.by={by!r}; {did_you_mean(by, KINDS)}")
        if not values:
            raise SpecError("the task has no known values: give FeatureSpec((), 'str', values=(...)) with those of the data")
        self.values, self.by = tuple(values), by
        if by == "id":
            self.table: nn.Module = nn.Embedding(len(values), width)
            return
        self.features = TextFeatures(values)
        self.register_buffer("known", torch.from_numpy(np.stack([self.features(v) for v in values])), persistent=False)
        self.table = nn.Linear(len(self.features.place), width, bias=False)
        nn.init.normal_(self.table.weight)  # unit vectors come in: as large as the rows of an Embedding

    def forward(self, tasks: Tensor) -> Tensor:
        """[B, D] of places among `values`, int64 [B], or of what `tensor` made."""
        if self.by == "text" and not tasks.is_floating_point():
            tasks = self.get_buffer("known")[tasks]
        return self.table(tasks)

    def tensor(self, tasks: Any) -> Tensor:
        """What `forward` takes, of tasks str [B] or [B, T]; of a history the last one counts.

        Raises:
            SpecError: a task that is not known or, by text, has no word or part of one in common with those known.
        """
        if self.by == "id":
            return torch.from_numpy(task_ids(tasks, self.values))
        names = np.asarray(tasks)
        names = names[:, -1] if names.ndim == 2 else names
        return torch.from_numpy(np.stack([self._describe(name) for name in names.tolist()]))

    def _describe(self, text: str) -> Array:
        vector = self.features(text)
        if text not in self.values and not vector.any():
            known = ", ".join(map(repr, self.values))
            raise SpecError(f"the task {text!r} has nothing in common with those known: {known}; say it in their words")
        return vector
