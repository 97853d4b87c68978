"""News made of words that are frequent in one of four classes, in the files of AG News."""

from __future__ import annotations

import csv
import random
from pathlib import Path

COMMON = "the a of to and in on for with at by from as is was that it its said new"
OF_CLASS = (
    "war minister troops president election peace embassy treaty",
    "team game season coach cup win league goal",
    "stocks oil prices profit bank shares market dollar",
    "software internet computer space phone chip web virus",
)


def text(generator: random.Random, number: int, words: int) -> str:
    own, common = OF_CLASS[number].split(), COMMON.split()
    return " ".join(generator.choice(own if generator.random() < 0.5 else common)
                    for _ in range(words))  # fmt: skip


def write_news(path: Path, rows: int, seed: int = 0) -> Path:
    """`rows` texts of 5 to 25 words, the classes in turn."""
    generator = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        for row in range(rows):
            number = row % 4
            title = text(generator, number, generator.randint(2, 5)).title()
            body = text(generator, number, generator.randint(3, 20)) + ' "quoted", \\done.'
            writer.writerow([number + 1, title, body])
    return path
