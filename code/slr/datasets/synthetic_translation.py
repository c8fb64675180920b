"""The built-in translations: what the drawn signer signs, and the same in English. Otherwise as synthetic_sentences.

    place = draw(paths.data_root(), "demo_translation")     # data/SYNTHETIC/demo_translation; preprocess.py reads it
    language()["TOMORROW", "MOTHER", "SCHOOL", "GO"]        # move: the mother will go to the school tomorrow .

A small grammar over the same twenty signs. Glosses come in an order of signing languages, time first and the verb
last, without function words or endings: TEACHER GARDEN CHAIR OPEN is "the teacher unfolds the chair in the garden .",
BEFORE RAIN MOTHER COUSIN STREET COME "when it rained the mother and the cousin came from the street .". English has
another order, articles, prepositions (of GO "to", of COME "from"), tenses (BEFORE is the past and no word of its own,
TOMORROW the future, BEFORE WINTER "last winter"), numbers, irregular verbs, and words that depend on others: with a
chair one who goes takes it, one who comes brings it; OPEN unfolds a chair and turns water on. A sentence of glosses
has one text, and no other sentence has the same.

Held out of training are the pairs of HELD_OUT: a gloss that says who, what, where or when, and one or two that say the
rest. A sentence holds a pair where the second part stands, uninterrupted, somewhere after the first: TOMORROW MOTHER
CHAIR SCHOOL GO holds MOTHER with SCHOOL GO. No training sentence holds one of them, every sentence to validate and test
on does; all its glosses, and all words of its text, are in training. No signer, no sentence of glosses and no text is
in two sets, and no signer is in another split.
"""

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slr.datasets import synthetic, synthetic_sentences
from slr.datasets.synthetic_sentences import Plan, Size, as_word, cast, chance, draw_plans, seeds_of, signs
from slr.errors import Mistake
from slr.paths import SETS

VERSION = 1  # of the grammar and of what is taken from it: a set that an older one has drawn is drawn anew
SIZES = {"demo_translation": Size((1200, 120, 240), (120, 12, 24)),
         "demo_translation_small": Size((60, 12, 24), (12, 4, 6), 64)}
SHORTEST, LONGEST = 2, 7  # glosses of a sentence
OFFERED = 8  # sentences from which the one with the rarest words and pairs is taken
HELD_OUT = (("MOTHER", "SCHOOL GO"), ("MOTHER", "STREET COME"), ("MOTHER", "CHAIR OPEN"),
            ("COUSIN", "GARDEN GO"), ("COUSIN", "SCHOOL COME"), ("COUSIN", "STREET OPEN"),
            ("TEACHER", "STREET GO"), ("TEACHER", "GARDEN COME"), ("TEACHER", "WATER OPEN"),
            ("SUNSET", "WATER DRINK"), ("CHAIR", "STREET"), ("SCHOOL", "CHAIR"), ("GARDEN", "RAIN"),
            ("TOMORROW", "WEATHER WINTER"), ("SUNSET", "WEATHER RAIN"), ("WINTER", "WEATHER WATER"),
            ("SUNRISE", "WEATHER OPEN"), ("SUNSET", "RAIN GO"))

Gloss = tuple[str, ...]
AGENTS = ("MOTHER", "COUSIN", "TEACHER")
PLACES = {"SCHOOL": "at", "GARDEN": "in", "STREET": "on"}
THINGS = {"WATER": "water", "CHAIR": "a chair"}
FORMS = {"go": "go goes went going", "come": "come comes came coming", "take": "take takes took taking",
         "bring": "bring brings brought bringing", "open": "open opens opened opening",
         "turn": "turn turns turned turning", "unfold": "unfold unfolds unfolded unfolding",
         "drink": "drink drinks drank drinking", "be": "be is was being", "rain": "rain rains rained raining",
         "start": "start starts started starting", "stop": "stop stops stopped stopping",
         "end": "end ends ended ending"}
MANY = {"be": "are", "was": "were"}  # of two; the others have their base and their past


# --- phrases ------------------------------------------------------------------------------------------------

class Time(NamedTuple):
    gloss: Gloss
    tense: str  # present | past | future
    text: str


class Subject(NamedTuple):
    gloss: Gloss
    text: str
    many: bool = False


class Predicate(NamedTuple):
    gloss: Gloss
    verb: str  # of FORMS
    rest: str


def _the(gloss: str) -> str:
    return f"the {gloss.lower()}"


def _at(place: str) -> str:
    return f"{PLACES[place]} {_the(place)}"


def _inflected(verb: str, tense: str, many: bool) -> str:
    base, third, past, _ = FORMS[verb].split()
    if tense == "future":
        return base
    found = past if tense == "past" else base if many else third
    return MANY.get(found, found) if many else found


def _says(subject: Subject, tense: str, *predicates: Predicate) -> str:
    """Subject and predicates, inflected: the mother will go to the garden and drink water."""
    acts = [f"{_inflected(p.verb, tense, subject.many)} {p.rest}" for p in predicates]
    return f"{subject.text} {'will ' if tense == 'future' else ''}{' and '.join(acts)}"


@functools.cache
def _times() -> list[Time]:
    days = [Time((), "present", ""), Time(("TOMORROW",), "future", "tomorrow"), Time(("BEFORE",), "past", ""),
            Time(("WINTER",), "present", "in winter"), Time(("TOMORROW", "WINTER"), "future", "next winter"),
            Time(("BEFORE", "WINTER"), "past", "last winter")]
    hours: list[Gloss] = [(), ("SUNRISE",), ("SUNSET",)]
    return [Time((*day.gloss, *hour), day.tense, f"{'at ' if hour else ''}{''.join(hour).lower()} {day.text}")
            for day in days for hour in hours]


@functools.cache
def _agents() -> list[Subject]:
    pairs = itertools.permutations(AGENTS, 2)
    return [Subject((one,), _the(one)) for one in AGENTS] + [
        Subject(pair, " and ".join(map(_the, pair)), True) for pair in pairs]


@functools.cache
def _movements() -> list[Predicate]:
    out = [Predicate(("GO",), "go", ""), Predicate(("COME",), "come", "")]
    for place in PLACES:
        to, away = f"to {_the(place)}", f"from {_the(place)}"
        out += [Predicate((place, "GO"), "go", to), Predicate((place, "COME"), "come", away)]
        for other in [other for other in PLACES if other != place]:
            out += [Predicate((other, place, "GO"), "go", f"from {_the(other)} {to}"),
                    Predicate((other, place, "COME"), "come", f"{away} through {_the(other)}")]
        for thing in THINGS:
            out += [Predicate((thing, place, "GO"), "take", f"{_the(thing)} {to}"),
                    Predicate((thing, place, "COME"), "bring", f"{_the(thing)} {away}")]
    return out


@functools.cache
def _actions() -> list[Predicate]:
    """What is done with something, with or without a place where."""
    things = [Predicate(("WATER", "OPEN"), "turn", "on the water"),
              Predicate(("CHAIR", "OPEN"), "unfold", "the chair"), Predicate(("WATER", "DRINK"), "drink", "water"),
              Predicate(("RAIN", "WATER", "DRINK"), "drink", "rain water"),
              Predicate(("CHAIR", "WATER", "DRINK"), "drink", "water on the chair")]
    there = [Predicate((place, *p.gloss), p.verb, f"{p.rest} {_at(place)}") for p in things for place in PLACES]
    return [*things, *there, *(Predicate((place, "OPEN"), "open", _the(place)) for place in PLACES)]


# --- sentences ----------------------------------------------------------------------------------------------

Pairs = Iterator[tuple[Gloss, str]]


def _plain(subjects: Iterable[Subject], predicates: list[Predicate], times: Iterable[Time] | None = None) -> Pairs:
    for time, subject, predicate in itertools.product(times or _times(), subjects, predicates):
        yield (*time.gloss, *subject.gloss, *predicate.gloss), f"{_says(subject, time.tense, predicate)} {time.text}"


def _moves() -> Pairs:
    return _plain(_agents(), _movements())


def _acts() -> Pairs:
    return _plain(_agents(), _actions())


def _moves_and_acts() -> Pairs:
    moves, acts = ([p for p in some if len(p.gloss) == 2] for some in (_movements(), _actions()))
    for time, subject, one, two in itertools.product(_times(), _agents(), moves, acts):
        if one.gloss[0] != two.gloss[0]:
            yield ((*time.gloss, *subject.gloss, *one.gloss, *two.gloss),
                   f"{_says(subject, time.tense, one, two)} {time.text}")


def _is_there() -> Pairs:
    """CHAIR GARDEN: the chair is in the garden; GARDEN CHAIR: there is a chair in the garden."""
    things = [Subject((thing,), _the(thing)) for thing in THINGS]
    owned = [Subject((owner, thing), f"{_the(owner)} 's {thing.lower()}") for owner in AGENTS for thing in THINGS]
    yield from _plain([*_agents(), *things, *owned], [Predicate((place,), "be", _at(place)) for place in PLACES])
    some = THINGS | {agent: f"a {agent.lower()}" for agent in AGENTS}
    for place in PLACES:
        found = [Predicate((thing,), "be", f"{text} {_at(place)}") for thing, text in some.items()]
        yield from _plain([Subject((place,), "there")], found)


def _weather() -> Pairs:
    for place in ("", *PLACES):
        at, where = ((place,), _at(place)) if place else ((), "")
        states = [Predicate(("WEATHER", sign), "be", f"{word} {where}")
                  for sign, word in (("RAIN", "rainy"), ("OPEN", "clear"), ("WATER", "wet"), ("WINTER", "cold"))]
        yield from _plain([Subject(at, "it")], [Predicate(("RAIN",), "rain", where)])
        yield from _plain([Subject(at, "the weather")], states)
        yield from _plain([Subject(at, "the rain")], [Predicate(("RAIN", "COME"), "start", where),
                                                      Predicate(("RAIN", "GO"), "stop", where)])
    yield from _plain([Subject((), "winter")], [Predicate(("WINTER", "COME"), "start", ""),
                                                Predicate(("WINTER", "GO"), "end", "")],
                      [time for time in _times() if "WINTER" not in time.gloss])


def _conditions() -> Pairs:
    clauses = [(Subject((), "it"), Predicate(("RAIN",), "rain", "")),
               (Subject((), "the weather"), Predicate(("WEATHER", "OPEN"), "be", "clear"))]
    acts = [*_movements(), *_actions()]
    for time, (it, state), subject, act in itertools.product(_times(), clauses, _agents(), acts):
        first = _says(it, "present" if time.tense == "future" else time.tense, state)
        yield ((*time.gloss, *state.gloss, *subject.gloss, *act.gloss),
               f"{'if' if time.tense == 'future' else 'when'} {first} {time.text} {_says(subject, time.tense, act)}")


def _thanks() -> Pairs:
    for addressed in _agents():
        name, gloss = addressed.text.replace("the ", ""), ("THANK-YOU", *addressed.gloss)
        yield gloss, f"thank you , {name}"
        for thing in THINGS:
            yield (*gloss, thing), f"thank you for {_the(thing)} , {name}"
        for time, act in itertools.product(_times(), [*_movements(), *_actions()]):
            if time.tense == "present":
                done = f"{FORMS[act.verb].split()[-1]} {act.rest} {time.text}"
                yield (*gloss, *time.gloss, *act.gloss), f"thank you for {done} , {name}"


KINDS: dict[str, tuple[int, Callable[[], Pairs]]] = {  # how many of 25 sentences are of this kind, and all of them
    "move": (5, _moves), "act": (4, _acts), "move and act": (3, _moves_and_acts), "be": (3, _is_there),
    "weather": (4, _weather), "condition": (3, _conditions), "thanks": (3, _thanks)}


class Spoken(NamedTuple):
    kind: str
    text: str


@functools.cache
def language() -> dict[Gloss, Spoken]:
    """All sentences of the grammar: {glosses: (kind, text)}. No gloss stands twice in a row in any."""
    found: dict[Gloss, Spoken] = {}
    for kind, (_, sentences) in KINDS.items():
        for gloss, text in sentences():
            fits = SHORTEST <= len(gloss) <= LONGEST and all(a != b for a, b in itertools.pairwise(gloss))
            if fits:
                found.setdefault(gloss, Spoken(kind, f"{' '.join(text.split())} ."))
    return found


# --- which of them ------------------------------------------------------------------------------------------

@functools.cache
def held_out_in(gloss: Gloss) -> tuple[tuple[str, str], ...]:
    """The pairs of HELD_OUT that a sentence holds."""
    return tuple((one, what) for one, what in HELD_OUT
                 if one in gloss and f" {what} " in f" {' '.join(gloss[gloss.index(one) + 1:])} ")


def _words(gloss: Gloss) -> tuple[str, ...]:
    return *gloss, *language()[gloss].text.split()


def _what_counts(gloss: Gloss) -> tuple[str, ...]:
    """Its words, and the pairs that it holds, of which all are to become frequent."""
    return *_words(gloss), *map(" + ".join, held_out_in(gloss))


def _taken(count: int, pool: Iterable[Gloss], rng: np.random.Generator) -> list[Gloss]:
    """So many sentences of the pool, while there are such the kinds as often as KINDS has them, and of a kind all
    lengths equally often; of a few that chance offers always the one with the rarest words and pairs.

    Raises:
        Mistake: there are not so many.
    """
    ready: dict[str, dict[int, list[Gloss]]] = defaultdict(lambda: defaultdict(list))
    for gloss in pool:
        ready[language()[gloss].kind][len(gloss)].append(gloss)
    kinds = rng.permutation([kind for kind, (share, _) in KINDS.items() for _ in range(share)])
    said, out = Counter[str](), list[Gloss]()
    for kind in rng.permutation(np.resize(kinds, count)).tolist():
        left = {own: [length for length, found in ready[own].items() if found] for own in KINDS}
        if not any(left.values()):
            raise Mistake(f"no {count} sentences for a set", f"there are {len(out)}", "draw fewer")
        kind = kind if left[kind] else str(rng.choice([own for own in KINDS if left[own]]))
        found = ready[kind][int(rng.choice(left[kind]))]
        some = rng.choice(len(found), min(OFFERED, len(found)), replace=False).tolist()
        best = max(some, key=lambda at: sum(1 / (1 + said[one]) for one in _what_counts(found[at])))
        out.append(found.pop(best))
        said.update(_what_counts(out[-1]))
    return out


def sentences(split: str, size: Size, seed: int) -> dict[str, list[Gloss]]:
    """The sentences of train, val and test: those that hold nothing held out, and others whose words are all in train.

    Raises:
        Mistake: there are not so many.
    """
    pool, out = [gloss for gloss in language() if not held_out_in(gloss)], dict[str, list[Gloss]]()
    for part, count in zip(SETS, size.sentences, strict=True):
        out[part] = _taken(count, pool, chance(seeds_of(split, seed), f"sentences of {part}"))
        known, said = {word for gloss in out["train"] for word in _words(gloss)}, set().union(*out.values())
        pool = [gloss for gloss in language()
                if held_out_in(gloss) and gloss not in said and known.issuperset(_words(gloss))]
    return out


def plans(split: str, size: Size, seed: int) -> list[Plan]:
    """All sentences of a split, with their texts. The signers of a set say equally many; no signer is in two sets."""
    numbers = {as_word(sign): number for number, sign in enumerate(signs())}
    return cast(split, size, seed, {
        part: [(tuple(numbers[gloss] for gloss in said), language()[said].text) for said in found]
        for part, found in sentences(split, size, seed).items()})


def draw(root: Path, split: str = "demo_translation", seed: int = 42, size: Size | None = None,
         workers: int | None = None, progress: bool = False) -> Path:
    """Draw a split as synthetic_sentences.draw does, its corpus csv files in PHOENIX-2014T's form with the texts.

    Raises:
        Mistake: something else is in the folder, a sentence cannot be drawn, or there are not so many.
    """
    size = size or SIZES.get(split, SIZES["demo_translation"])
    version = [VERSION, synthetic_sentences.VERSION, synthetic.VERSION]
    return draw_plans(root, split, seed, size, plans(split, size, seed), version, workers, progress)
