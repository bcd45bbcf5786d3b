"""Whether a prompt names the object it stands for, or another one of the same data set."""

from __future__ import annotations

import re
from collections.abc import Iterable

IN = re.compile(r"\bin\b")
PLACE = re.compile(r"\b(?:in|on|of|at|from|within|inside)\b")


def names_another(prompt: str, name: str, objects: Iterable[str]) -> str | None:
    """The object of `objects` that `prompt` names instead of `name`; None where it may well mean `name`.

    Only what stands before "in" counts, for a site can be an object of its own ("tumor in pancreas CT"). An object is
    named if all its words are there: "kidney on the left side" is the left kidney. A prompt for "kidney" with "left
    kidney" in it names another object, and so does "kidney" for the left one. Where the words of `name` are missing
    the prompt may be a synonym, such as "neoplasm of the pancreas": there only what stands before any place counts.
    """
    part = _words(IN.split(prompt.lower())[0])
    own = set(_words(name))
    if own <= set(part) or _spelled("".join(_words(name)), part):
        rivals = [other for other in objects if own < set(_words(other)) <= set(part)]
        return rivals[0] if len(rivals) == 1 else None  # "left kidney and right kidney" are the kidney
    head = set(_words(PLACE.split(prompt.lower())[0]))
    rivals = [other for other in objects if other != name and set(_words(other)) <= head]
    return max(rivals, key=len, default=None)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _spelled(name: str, words: list[str]) -> bool:
    """Whether neighbouring words make up the name: "gall bladder" is the gallbladder."""
    places = range(len(words) + 1)
    return any("".join(words[start:stop]) == name for start in places for stop in places)
