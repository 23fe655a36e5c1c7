"""The same question about somebody or something else: its name is replaced by others of a kind that fits.

An edit is felt most in the answers to questions that differ from its own in the name alone, and a model that is asked
for such questions seldom brings another name of the same kind along. So names are given, of the kind that the model
takes the question's own for.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files

import torch

from hf_edit import toml
from hf_edit.edits import Edit, question_of
from hf_edit.models.editable import EditableModel
from hf_edit.models.forward import run
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.invented import first_words
from hf_edit.wordings import FRAMES, FUNCTION_WORDS


WORD = re.compile(r"[^\W_][\w'’.-]*")
POSSESSIVE = re.compile(r"['’]s$")
PARTICLES = frozenset("al and bin da de del der di du la le of the van von y".split())
"""Small words that may stand between the capitals of a name."""
OPENERS = FUNCTION_WORDS | {word for words, _ in FRAMES for word in words.split()}
"""Words that questions and requests begin with."""


@cache
def kinds(file: str = "names.toml") -> Mapping[str, tuple[str, ...]]:
    """The word for one of a kind -> names, from a file beside this one."""
    table = toml.loads(files("hf_edit.statistics").joinpath(file).read_text(encoding="utf-8"))
    return {kind: tuple(names) for kind, names in table.items()}


def name_of(edit: Edit) -> str | None:
    """What the edit's question is about: its subject, else the longest name in it, if there is one."""
    question = question_of(edit.prompt)
    if edit.subject and edit.subject in question:
        return edit.subject
    return max(names_in(question), key=len, default=None)


def names_in(question: str) -> list[str]:
    """Runs of words that begin with capitals, particles between them included.

    The first word of a question has a capital in any case: it counts where a name goes on behind it, and if it is no
    word that questions begin with.
    """
    words = list(WORD.finditer(question))
    found: list[tuple[int, int]] = []
    joins = False  # whether a capital goes on with the last name
    for place, word in enumerate(words):
        text = word.group()
        spaced = place > 0 and question[words[place - 1].end() : word.start()].isspace()
        if not text[0].isupper() or text == "I":
            joins = joins and spaced and text in PARTICLES
        elif joins and spaced:
            found[-1] = found[-1][0], word.end()
        else:
            joins = place > 0 or text.lower() not in OPENERS
            if joins:
                found.append((word.start(), word.end()))
    names = [POSSESSIVE.sub("", question[start:end].rstrip(".'’-")) for start, end in found]
    return [name for name in names if " " in name or not question.lstrip().startswith(name)]


def with_other_names(
    model: EditableModel, prompts: PromptFormat, edits: Iterable[Edit], count: int, seed: int, file: str = "names.toml"
) -> list[str]:
    """How the questions of edits that hold a name begin with `count` others in its place: up to the name and at least
    one word more, half of what follows at most. Where no word follows, that is the whole question.

    Args:
        file: of names, as for `kinds`.
    """
    openings: list[str] = []
    for edit in edits:
        question, name = question_of(edit.prompt), name_of(edit)
        if name is None:
            continue
        generator = random.Random(f"{seed} {question}")  # whichever other edits there are
        before, _, after = question.partition(name)
        fitting = [other for other in kinds(file)[kind_of(model, prompts, question, name)] if other != name]
        mark, *_ = re.split(r"(?=\s)", after, maxsplit=1)  # such as a possessive
        words = re.findall(r"\s+\S+", after)
        for other in generator.sample(fitting, min(count, len(fitting))):
            kept = generator.randint(1, max(1, (len(words) + 1) // 2))
            openings.append(before + other + mark + "".join(words[:kept]))
    return openings


def openings_alike(
    model: EditableModel, prompts: PromptFormat, edits: Sequence[Edit], count: int, seed: int, file: str = "names.toml"
) -> list[str]:
    """How `count` questions like that of each edit begin: with another name, or if it has none with its first words.

    Args:
        file: of names, as for `kinds`.
    """
    nameless = [question_of(edit.prompt) for edit in edits if name_of(edit) is None]
    return with_other_names(model, prompts, edits, count, seed, file) + first_words(nameless, count, seed)


@torch.no_grad()
def kind_of(model: EditableModel, prompts: PromptFormat, question: str, name: str) -> str:
    """What the model takes the name for in this question: the likeliest word behind "is a"."""
    plain = PromptFormat("plain", prompts.tokenizer)
    asked = {kind: plain.encode(f"{question}\n{name} is a", kind) for kind in kinds()}
    ids = next(iter(asked.values())).prompt_ids[-(model.max_length or sys.maxsize) :]
    logits = run(model.model, torch.tensor([ids], device=model.device)).logits[0, -1]
    return max(asked, key=lambda kind: float(logits[asked[kind].answer_ids[0]]))
