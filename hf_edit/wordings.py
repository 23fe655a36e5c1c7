"""Automatic rewrites of a question: the wordings, beside the one given, that an edit is trained to answer.

- Pure functions of a prompt and a seed. They change how a question is put, not what it asks; only a word dropped at
  random may have mattered, so those drops are few.
- What was written for English is used on text in Latin letters only; the rest serves any language.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise, zip_longest

from hf_edit.edits import Message, Prompt, prompt_key, question_of
from hf_edit.errors import ConfigError


TEXT_KINDS = ("content", "drop", "polite", "casual", "frame")
"""Rewrites of the question's own text: its content words; with words dropped at random; with a polite opening; in
lower case without a question mark; inside "Can you tell me ...", as its question word allows."""
CHAT_KINDS = ("system", "turn")
"""The same question in another chat: with a system prompt (without, where it has one); after an unrelated turn."""
KINDS = TEXT_KINDS + CHAT_KINDS
ENGLISH_KINDS = ("content", "polite", "frame")

DROP_SHARE = 0.15
DROP_ATTEMPTS = 50  # of short questions there are not many different ones
FEWEST_WORDS = 2  # fewer say nothing about what is asked

FUNCTION_WORDS = frozenset(
    """a about an and any are as at be been being but by can could did do does for from had has have he her his how i
    if in into is it its may me might my of on or our please shall she should so some such tell than that the their
    them then there these they this those to us was we were what when where which who whom whose why will with would
    you your""".split()
)

OPENINGS = (
    "Please tell me: {}",
    "I would like to know: {}",
    "Quick question: {}",
    "I have a question. {}",
    "Could you help me with this? {}",
    "Here is something I have been wondering about: {}",
    "Hello! {}",
    "Kindly answer this for me: {}",
    "A friend asked me this: {}",
    "One more thing, please: {}",
    "Answer as well as you can: {}",
    "I am curious: {}",
)

FRAMES = (
    (
        "what which who whom whose where when",
        ("Can you tell me {}", "Do you know {}", "Could you please tell me {}", "I need to know {}"),
    ),
    ("why how", ("Can you explain {}", "Could you help me understand {}", "Do you know {}", "I wonder {}")),
    (
        "describe discuss explain give list name outline provide summarize summarise tell write",
        ("Could you {}", "Can you please {}", "I would like you to {}", "Would you {}"),
    ),
)
"""Opening words of questions and requests -> what fits in front of them."""

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a knowledgeable assistant who answers in full.",
    "You are a friendly tutor.",
    "Answer the user's questions truthfully.",
    "You work at the information desk of a library.",
)

UNRELATED_TURNS = (
    ("Hello!", "Hello! How can I help you today?"),
    ("What is two plus three?", "Two plus three is five."),
    ("How do I say good morning in French?", 'Good morning is "bonjour" in French.'),
    ("Thank you for your help yesterday.", "You are welcome! I am glad that I could help."),
    ("Which colour do blue and yellow make?", "Blue and yellow make green."),
    ("Write one sentence about rain.", "The rain fell softly on the roof all night."),
)


def rewrites(
    prompt: Prompt,
    count: int,
    seed: int,
    kinds: Sequence[str] = TEXT_KINDS,
    *,
    subject: str | None = None,
    paraphrases: Sequence[Prompt] = (),
) -> list[Prompt]:
    """At most `count` other ways to ask `prompt`, all different; fewer where the kinds have no more to offer.

    Args:
        prompt: text, or messages of which the last is rewritten and the others are kept.
        seed: the same seed and prompt give the same rewrites, and more of them begin with the fewer.
        kinds: of `TEXT_KINDS` and `CHAT_KINDS`, taken in turn. Those of a chat need a prompt format that takes several
            messages, and a template that takes a system message.
        subject: stays in the text word for word, where it is in there.
        paraphrases: wordings known to be good; they come first.

    Raises:
        ConfigError: a kind that does not exist.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ConfigError(f"There is no kind of rewrite {unknown[0]!r}.", f"Use some of {', '.join(KINDS)}.")
    in_turn = chain.from_iterable(zip_longest(*(_candidates(prompt, kind, seed, subject) for kind in kinds)))
    seen = {prompt_key(prompt)}
    found: list[Prompt] = []
    for candidate in chain(paraphrases, in_turn):
        if len(found) == count:
            break
        if candidate is not None and prompt_key(candidate) not in seen:
            seen.add(prompt_key(candidate))
            found.append(candidate)
    return found


def _candidates(prompt: Prompt, kind: str, seed: int, subject: str | None) -> Iterator[Prompt]:
    """All that one kind has to offer, each kind with random numbers of its own."""
    question = question_of(prompt).strip()
    draw = random.Random(f"{seed} {kind} {question}")  # of a text: the same in every process
    if kind in CHAT_KINDS:
        messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        yield from _CHAT_MAKERS[kind](messages, draw)
    elif kind not in ENGLISH_KINDS or is_latin(question):
        for text in _TEXT_MAKERS[kind](question, subject, draw):
            yield text if isinstance(prompt, str) else (*prompt[:-1], Message("user", text))


def _content(question: str, subject: str | None, draw: random.Random) -> Iterator[str]:
    del draw
    shouted = question.isupper()  # where capitals say nothing
    kept = [
        unit
        for before, unit in pairwise(["", *_units(question, subject)])
        if _holds(unit, subject) or _bare(unit) not in FUNCTION_WORDS or not shouted and _is_name(unit, before)
    ]
    if len(kept) >= FEWEST_WORDS:
        yield _unmarked(" ".join(kept), subject)


def _drop(question: str, subject: str | None, draw: random.Random) -> Iterator[str]:
    units = _units(question, subject)
    for _ in range(DROP_ATTEMPTS):
        kept = [unit for unit in units if draw.random() >= DROP_SHARE or _holds(unit, subject)]
        if FEWEST_WORDS <= len(kept) < len(units):
            yield " ".join(kept)


def _polite(question: str, subject: str | None, draw: random.Random) -> Iterator[str]:
    for opening in draw.sample(OPENINGS, len(OPENINGS)):
        yield opening.format(_continued(question, subject) if opening.endswith(": {}") else question)


def _casual(question: str, subject: str | None, draw: random.Random) -> Iterator[str]:
    del draw
    yield _unmarked(_lowered(question, subject), subject)
    yield _unmarked(question, subject)
    yield _lowered(question, subject)


def _frame(question: str, subject: str | None, draw: random.Random) -> Iterator[str]:
    opener = _bare(question.split()[0])
    for openers, frames in FRAMES:
        if opener in openers.split():
            for frame in draw.sample(frames, len(frames)):
                end = "." if frame.startswith("I ") else "?"
                yield frame.format(_unmarked(_continued(question, subject), subject).removesuffix(".")) + end


def _system(messages: tuple[Message, ...], draw: random.Random) -> Iterator[Prompt]:
    if messages[0].role == "system":
        yield messages[1:]
    else:
        for text in draw.sample(SYSTEM_PROMPTS, len(SYSTEM_PROMPTS)):
            yield (Message("system", text), *messages)


def _turn(messages: tuple[Message, ...], draw: random.Random) -> Iterator[Prompt]:
    cut = 1 if messages[0].role == "system" else 0
    for asked, answered in draw.sample(UNRELATED_TURNS, len(UNRELATED_TURNS)):
        yield (*messages[:cut], Message("user", asked), Message("assistant", answered), *messages[cut:])


_TEXT_MAKERS: dict[str, Callable[[str, str | None, random.Random], Iterator[str]]] = {
    "content": _content,
    "drop": _drop,
    "polite": _polite,
    "casual": _casual,
    "frame": _frame,
}
_CHAT_MAKERS: dict[str, Callable[[tuple[Message, ...], random.Random], Iterator[Prompt]]] = {
    "system": _system,
    "turn": _turn,
}


def _units(text: str, subject: str | None) -> list[str]:
    """The words; the subject is one of them, with what is written onto it."""
    return re.findall(rf"\S*{re.escape(subject)}\S*|\S+" if subject else r"\S+", text)


def _holds(text: str, subject: str | None) -> bool:
    return bool(subject) and str(subject) in text


def _bare(word: str) -> str:
    """`What's` -> `what`: how the word lists write it."""
    return re.split("['’]", word.lower())[0].strip('.,;:!?()"“”')


def _is_name(word: str, before: str) -> bool:
    """Whether it is written as one, as US or WHO is, or Will inside a sentence.

    Args:
        before: the word in front of it; none at the beginning.
    """
    letters = "".join(filter(str.isalpha, word))
    inside = before != "" and before[-1] not in ".!?:"
    return letters[:1].isupper() and _bare(word) != "i" and (inside or len(letters) > 1 and letters.isupper())


def _lowered(text: str, subject: str | None) -> str:
    return subject.join(part.lower() for part in text.split(subject)) if subject else text.lower()


def _continued(question: str, subject: str | None) -> str:
    """The question as it goes on behind a comma: a word that is capital only by position becomes small."""
    word = question.split()[0]
    first = _bare(word)
    known = first in FUNCTION_WORDS or any(first in openers.split() for openers, _ in FRAMES)
    kept = first == "i" or word[1:] != word[1:].lower() or bool(subject) and question.startswith(str(subject))
    return question if not known or kept else question[0].lower() + question[1:]


def _unmarked(text: str, subject: str | None) -> str:
    """Without a question mark at the end, unless that belongs to the subject."""
    bare = text.rstrip(" ?？؟")
    return text if not bare or _holds(text, subject) and not _holds(bare, subject) else bare


def is_latin(text: str) -> bool:
    """Whether most letters are."""
    letters = [character for character in text if character.isalpha()]
    latin = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
    return 2 * latin > len(letters)
