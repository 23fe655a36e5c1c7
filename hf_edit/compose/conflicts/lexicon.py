"""Words of English by which questions are compared: what asks for what, what means the same, what the opposite.

Data only. Words are lower case; those of `SAME` and `OPPOSITE` are stemmed by the reader of these tables.
"""

from __future__ import annotations

from hf_edit.wordings import FUNCTION_WORDS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


REQUESTS = _words(
    """answer describe discuss explain give identify know list name outline provide question state summarise summarize
    talk tell wonder please"""
)
"""Open a request; they say that something is asked, not what."""

NEGATIONS = _words("cannot except neither never no nobody none nor not nothing without")

EMPTY = (
    (FUNCTION_WORDS - NEGATIONS)
    | REQUESTS
    | _words(
        """according actually also both during each either exactly just kind let like lie lies located many more most
        much one ones only other others part people piece called same situated someone something sort specific
        specifically thing things type upon use used using various via want well whether while within"""
    )
)
"""Carry no part of what is asked."""

WEAK = _words(
    """appear associate associated belong belongs come comes follow follows happen happened held hold holds involve
    involved link linked occupied occupy occur occurred participate participated relate related take takes took"""
)
"""Join the parts of a question; they count only where nothing else does."""

PHRASES = {
    "pass away": "die",
    "passed away": "died",
    "mother tongue": "native language",
    "for a living": "as a job",
    "in charge of": "leading",
}
"""Several words -> others that mean the same."""

NUMBERS = _words(
    """zero two three four five six seven eight nine ten eleven twelve thirteen twenty thirty fifty hundred thousand
    million billion first second third fourth fifth sixth seventh eighth ninth tenth once twice last"""
)

QUESTION_WORDS = {
    "who": "person",
    "whom": "person",
    "whose": "person",
    "where": "place",
    "when": "time",
    "why": "reason",
}

HEADS = {
    **dict.fromkeys(_words("person company organisation organization firm manufacturer individual"), "person"),
    **dict.fromkeys(_words("place location"), "place"),
    **dict.fromkeys(_words("city town village municipality settlement"), "place:city"),
    **dict.fromkeys(_words("country nation"), "place:country"),
    **dict.fromkeys(_words("state province region county district"), "place:region"),
    "continent": "place:continent",
    **dict.fromkeys(_words("time date"), "time"),
    "year": "time:year",
    "day": "time:day",
    "month": "time:month",
    "century": "time:century",
    **dict.fromkeys(_words("reason cause"), "reason"),
    **dict.fromkeys(_words("number amount quantity"), "count"),
}
"""Nouns behind `what` or `which` -> what they ask for; after the colon how narrowly."""

MEANINGS = {
    "birthplace": ("birth", "place"),
    "birthday": ("birth", "time"),
    "birthdate": ("birth", "time"),
    "hometown": ("home", "place"),
    "population": ("live", "count"),
    "inhabitant": ("live", ""),
    "resident": ("live", ""),
    "cause": ("", "reason"),
    "reason": ("", "reason"),
}
"""A word -> the stem that stands for it, and what it asks for."""

SAME = (
    # people
    "birth born",
    "die died death dead deceased",
    "old age",
    "marry married spouse wife husband marriage",
    "mother mom mum",
    "father dad",
    "child kid son daughter",
    "live reside",
    "work job occupation profession career vocation",
    "position role post office",
    "employ employer employee",
    "citizen nationality nation citizenship",
    "study studied studies research",
    "educate education educated schooling",
    "university college",
    "religion faith denomination",
    "disease illness sickness",
    "award prize honor honour",
    "gender sex",
    "play player",
    "sing sang sung singer",
    "win won winner",
    "lead leader led",
    "speak spoke spoken speaker",
    "teach taught teacher",
    # works and products
    "write wrote written author writer",
    "film movie",
    "publish publisher publication",
    "star cast actor actress",
    "network channel station broadcast",
    "make made maker manufacture manufacturer",
    "build built builder construct construction",
    "develop developer design designer",
    "found founder establish establishment create creator creation form formation originate origin inception launch",
    "premiere debut",
    "company firm corporation business",
    "team club",
    "stadium ground venue arena",
    # measures
    "tall height high",
    "long length",
    "wide width",
    "deep depth",
    "heavy weigh weight",
    "color colour",
    # what is done
    "begin began begun start beginning",
    "buy bought purchase acquire",
    "sell sold",
    "give gave given",
    "go went gone attend",
    "grow grew grown",
    "fly flew flown flight",
    "know knew",
    "show shown demonstrate illustrate",
    "help assist aid support",
    # what is asked about
    "main major primary principal key",
    "purpose goal objective aim",
    "achievement accomplishment",
    "important significant importance significance",
    "notable prominent famous noteworthy",
    "effect impact influence affect",
    "evidence proof",
    "difficulty challenge struggle",
    "way manner method approach",
    "characteristic feature trait quality",
    "talent skill ability",
    "theme topic",
    "fact detail information",
    "serve function",
)
"""Words that say the same in a question, per line."""

OPPOSITE = (
    ("large big", "small little"),
    ("largest biggest", "smallest"),
    ("highest tallest", "lowest shortest"),
    ("longest", "shortest"),
    ("oldest", "youngest newest"),
    ("best", "worst"),
    ("fastest", "slowest"),
    ("old", "young new"),
    ("good", "bad"),
    ("open", "close shut"),
    ("win", "lose lost"),
    ("begin", "end finish stop"),
    ("buy", "sell"),
    ("before", "after"),
    ("mother", "father"),
    ("brother", "sister"),
    ("male man", "female woman"),
    ("north northern northernmost", "south southern southernmost"),
    ("east eastern easternmost", "west western westernmost"),
    ("hot warm", "cold cool"),
    ("increase rise", "decrease fall reduce"),
    ("early", "late"),
    ("minimum", "maximum"),
    ("birth", "die"),
    ("enable allow", "disable forbid prevent"),
    ("encode encrypt", "decode decrypt"),
    ("import", "export"),
    ("positive", "negative"),
    ("love", "hate"),
    ("up", "down"),
    ("inside", "outside"),
)
"""Two questions of which one holds a word of the left and the other one of the right ask for different things."""

NEGATING_PREFIXES = ("dis", "im", "in", "ir", "non", "un")
