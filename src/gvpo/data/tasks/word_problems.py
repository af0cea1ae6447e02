"""Word problems: families with different situations, each in several wordings.

The level determines the size of the numbers. Problems of level 3 and above have an additional step. All wordings of a
family contain the same numbers in the same order. Answers are whole numbers.
"""

import random
from collections.abc import Sequence

from gvpo.data.tasks.generated import SIZES, Exercise, generated

_NAMES = ("Ada", "Ben", "Chidi", "Dana", "Emre", "Fatima", "Goran", "Hana", "Ivan", "Jun")
_GOODS = ("pencils", "apples", "notebooks", "stickers", "candles", "plums", "postcards", "marbles")
_MORE = 3
"""Lowest level with an additional step."""


def _shopping(rng: random.Random, level: int) -> Exercise:
    """Ask how much money is left after a purchase."""
    name, goods = rng.choice(_NAMES), rng.choice(_GOODS)
    count, price, left = rng.randrange(2, 10 * level), rng.randrange(2, SIZES[level]), rng.randrange(1, SIZES[level])
    fee = rng.randrange(2, SIZES[level]) if level >= _MORE else 0
    money = count * price + fee + left
    question = _worded(
        rng,
        f"{name} buys {count} {goods} for {price} coins each",
        f"In a shop {name} takes {count} {goods}, which cost {price} coins each",
    )
    paid = f" and pays {fee} coins for delivery. {name}" if fee else f". {name}"
    steps = [f"{count} * {price} = {count * price}", *_if(fee, f"{count * price} + {fee} = {count * price + fee}")]
    steps.append(f"{money} - {money - left} = {left}")
    return Exercise(f"{question}{paid} had {money} coins before. How many coins are left?", steps, str(left))


def _sharing(rng: random.Random, level: int) -> Exercise:
    """Ask how many items each person receives, or how many remain."""
    name, goods = rng.choice(_NAMES), rng.choice(_GOODS)
    people = rng.randrange(3, 5 + 5 * level)
    each, rest = rng.randrange(2, SIZES[level]), rng.randrange(1, people)
    total = people * each + rest
    question = _worded(
        rng,
        f"{name} shares {total} {goods} among {people} friends so that all get the same and as many as they can",
        f"{total} {goods} are dealt equally to {people} children, as many as possible to each",
    )
    steps = [f"{people} * {each} = {total - rest}", f"{total} - {total - rest} = {rest}"]
    if level < _MORE:
        steps = [steps[1], f"{total - rest} / {people} = {each}"]
        return Exercise(f"{question}. How many does each of them get?", steps, str(each))
    return Exercise(f"{question}. How many remain?", steps, str(rest))


def _travel(rng: random.Random, level: int) -> Exercise:
    """Ask for the distance of a journey at one speed, or at two."""
    name = rng.choice(_NAMES)
    hours, speed = rng.randrange(2, 5 + 3 * level), rng.randrange(3, SIZES[level])
    question = _worded(
        rng,
        f"{name} travels for {hours} hours at {speed} kilometres an hour",
        f"A train runs for {hours} hours at a speed of {speed} kilometres per hour",
    )
    steps, total = [f"{hours} * {speed} = {hours * speed}"], hours * speed
    if level >= _MORE:
        more, faster = rng.randrange(2, 5 + 3 * level), rng.randrange(3, SIZES[level])
        question += f", and then for {more} hours at {faster} kilometres an hour"
        steps += [f"{more} * {faster} = {more * faster}", f"{total} + {more * faster} = {total + more * faster}"]
        total += more * faster
    return Exercise(f"{question}. How many kilometres is that in all?", steps, str(total))


def _ages(rng: random.Random, level: int) -> Exercise:
    """Ask for an age, given the ratio and the sum of two ages."""
    young, old = rng.sample(_NAMES, 2)
    times, age = rng.randrange(2, 4 + level), rng.randrange(2, SIZES[level])
    total = (times + 1) * age
    later = rng.randrange(2, SIZES[level]) if level >= _MORE else 0
    question = _worded(
        rng,
        f"{old} is {times} times as old as {young}, and together they are {total} years old",
        f"{old}'s age is {times} times {young}'s age, and the two ages add up to {total} years",
    )
    when = f"in {later} years" if later else "now"
    steps = [
        f"{times} + 1 = {times + 1}",
        f"{total} / {times + 1} = {age}",
        *_if(later, f"{age} + {later} = {age + later}"),
    ]
    return Exercise(f"{question}. How old is {young} {when}?", steps, str(age + later))


def _fence(rng: random.Random, level: int) -> Exercise:
    """Ask for the perimeter of a rectangle, or for the cost of a fence around it."""
    length, width, price = rng.randrange(3, SIZES[level]), rng.randrange(2, SIZES[level]), rng.randrange(2, 10 * level)
    question = _worded(
        rng,
        f"A rectangular garden is {length} metres long and {width} metres wide",
        f"A field has the shape of a rectangle, {length} metres by {width} metres",
    )
    half, around = length + width, 2 * (length + width)
    steps = [f"{length} + {width} = {half}", f"2 * {half} = {around}"]
    if level < _MORE:
        return Exercise(f"{question}. How many metres of fence does it take to go around it?", steps, str(around))
    steps.append(f"{around} * {price} = {around * price}")
    asked = f"One metre of fence costs {price} coins. How many coins does the fence around it cost?"
    return Exercise(f"{question}. {asked}", steps, str(around * price))


def _discount(rng: random.Random, level: int) -> Exercise:
    """Ask for a price after a discount, for one item or for several."""
    goods = rng.choice(_GOODS)
    percent, hundreds, count = 5 * rng.randrange(1, 19), rng.randrange(1, SIZES[level]), rng.randrange(2, 10 * level)
    price, off = 20 * hundreds, hundreds * percent // 5
    question = _worded(
        rng,
        f"A box of {goods} costs {price} coins. In the sale it is {percent} percent cheaper",
        f"The price of a box of {goods} was {price} coins and has fallen by {percent} percent",
    )
    steps = [f"{price} * {percent} / 100 = {off}", f"{price} - {off} = {price - off}"]
    if level < _MORE:
        return Exercise(f"{question}. How many coins does a box cost now?", steps, str(price - off))
    steps.append(f"{count} * {price - off} = {count * (price - off)}")
    return Exercise(f"{question}. How many coins do {count} boxes cost now?", steps, str(count * (price - off)))


def _animals(rng: random.Random, level: int) -> Exercise:
    """Ask for a number of animals, given the numbers of heads and legs."""
    birds, beasts = rng.randrange(1, SIZES[level]), rng.randrange(1, SIZES[level])
    heads, legs = birds + beasts, 2 * birds + 4 * beasts
    bird, beast = rng.choice(("hens", "ducks", "geese")), rng.choice(("goats", "cows", "sheep"))
    question = _worded(
        rng,
        f"On a farm there are {bird} and {beast}. They have {heads} heads and {legs} legs",
        f"{bird.capitalize()} and {beast} stand in a yard, {heads} heads and {legs} legs in all",
    )
    steps = [f"2 * {heads} = {2 * heads}", f"{legs} - {2 * heads} = {2 * beasts}", f"{2 * beasts} / 2 = {beasts}"]
    if level < _MORE:
        return Exercise(f"{question}. How many {beast} are there?", steps, str(beasts))
    steps.append(f"{heads} - {beasts} = {birds}")
    return Exercise(f"{question}. How many {bird} are there?", steps, str(birds))


def _savings(rng: random.Random, level: int) -> Exercise:
    """Ask for the number of weeks until the savings reach a price."""
    name = rng.choice(_NAMES)
    weekly, weeks, start = rng.randrange(2, SIZES[level]), rng.randrange(2, 10 * level), rng.randrange(1, SIZES[level])
    spent = rng.randrange(1, weekly) if level >= _MORE else 0
    price = start + weeks * (weekly - spent)
    question = _worded(
        rng,
        f"{name} has {start} coins and earns {weekly} coins a week",
        f"With {start} coins in the box, {name} puts in {weekly} more each week",
    )
    spends = f", of which {spent} are spent again every week" if spent else ""
    kept = weekly - spent
    steps = [*_if(spent, f"{weekly} - {spent} = {kept}"), f"{price} - {start} = {price - start}"]
    steps.append(f"{price - start} / {kept} = {weeks}")
    return Exercise(f"{question}{spends}. After how many weeks are there {price} coins?", steps, str(weeks))


def _worded(rng: random.Random, *wordings: str) -> str:
    return rng.choice(wordings)


def _if(condition: object, step: str) -> Sequence[str]:
    return [step] if condition else []


WORD_PROBLEMS = generated(
    "word_problems",
    {
        "shopping": _shopping,
        "sharing": _sharing,
        "travel": _travel,
        "ages": _ages,
        "fence": _fence,
        "discount": _discount,
        "animals": _animals,
        "savings": _savings,
    },
    "generated: shopping, travel, ages and more, in several wordings",
)
