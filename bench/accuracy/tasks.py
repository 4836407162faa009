"""The tasks: real data that ships with Python or scikit-learn, and a small network for each."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn


@dataclass(frozen=True)
class Split:
    """Inputs and labels to train and to test on."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Task:
    """One classification problem. `body` makes the layers up to N features; `data` is cached."""

    name: str
    num_classes: int
    features: tuple[int, ...]
    data: Callable[[], Split]
    body: Callable[[int], list[nn.Module]]
    steps: int
    batch: int
    rates: tuple[float, ...]  # to choose from: the highest of the schedule
    both: bool = False  # also with features that may be negative


@cache
def digits() -> Split:
    """scikit-learn's digits, 8×8 pixels; 40 % for the test, stratified."""
    data = load_digits()
    x = (data.data / 16).astype(np.float32)
    parts = train_test_split(x, data.target, test_size=0.4, stratify=data.target, random_state=0)
    train_x, test_x, train_y, test_y = (torch.from_numpy(np.ascontiguousarray(p)) for p in parts)
    return Split(train_x, train_y.long(), test_x, test_y.long())


def digits_body(features: int) -> list[nn.Module]:
    return [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, features)]


@cache
def documents() -> tuple[tuple[str, ...], ...]:
    """Words of the documentation texts of this Python's standard library: all docstrings, and the
    language reference that `help()` shows. Lower case, letters only."""
    from pydoc_data import topics

    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "test", "tests", "idlelib", "lib2to3"}
    texts: list[str] = []
    for path in sorted(root.rglob("*.py")):
        if left_out.isdisjoint(path.relative_to(root).parts):
            texts += docstrings(path)
    texts += [topics.topics[name] for name in sorted(topics.topics)]
    return tuple(tuple(re.findall(r"[a-z]+", text.lower())) for text in texts)


def docstrings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(tree) if isinstance(node, documented))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def vocabulary(size: int) -> dict[str, int]:
    """The most frequent words, most frequent first."""
    counts = Counter(word for words in documents() for word in words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: i for i, word in enumerate(ranked[:size])}


CONTEXT = 4


@cache
def next_word(size: int) -> Split:
    """The four words before → the next one, among the `size` most frequent words (others are an
    input of their own, and no target). Every tenth document is for the test."""
    ids = vocabulary(size)
    parts: tuple[list[list[int]], list[list[int]]] = ([], [])
    for i, words in enumerate(documents()):
        line = [size] * CONTEXT + [ids.get(word, size) for word in words]
        windows = (line[j : j + CONTEXT + 1] for j in range(len(words)))
        parts[i % 10 == 0].extend(window for window in windows if window[-1] < size)
    train, test = (torch.tensor(part) for part in parts)
    return Split(train[:, :-1], train[:, -1].clone(), test[:, :-1], test[:, -1].clone())


def next_word_body(features: int, size: int) -> list[nn.Module]:
    return [
        *(nn.Embedding(size + 1, 32), nn.Flatten(), nn.Linear(32 * CONTEXT, 256), nn.ReLU()),
        nn.Linear(256, features),
    ]


LETTERS = "abcdefghijklmnopqrstuvwxyz"
BUCKETS, TRIGRAMS = 2048, 24


@cache
def misspelled(size: int) -> Split:
    """Trigrams of a word's letters with one or two random edits → the word, among the `size` most
    frequent ones of four letters and more. Test words carry edits that were not trained on."""
    words = [word for word in vocabulary(3 * size) if len(word) >= 4][:size]
    generator = np.random.default_rng(0)

    def sample(times: int) -> tuple[Tensor, Tensor]:
        rows = [trigrams(edited(word, generator)) for _ in range(times) for word in words]
        return torch.tensor(rows), torch.arange(len(words)).repeat(times)

    train_x, train_y = sample(30)
    known = {(tuple(x), y) for x, y in zip(train_x.tolist(), train_y.tolist(), strict=True)}
    test_x, test_y = sample(4)
    pairs = zip(test_x.tolist(), test_y.tolist(), strict=True)
    new = torch.tensor([(tuple(x), y) not in known for x, y in pairs])
    return Split(train_x, train_y, test_x[new], test_y[new])


def edited(word: str, generator: np.random.Generator) -> str:
    """One or two letters dropped, changed, added or swapped."""
    letters = list(word)
    for _ in range(generator.integers(1, 3)):
        at, kind = int(generator.integers(len(letters))), generator.integers(4)
        letter = LETTERS[generator.integers(26)]
        if kind == 0 and len(letters) > 2:
            del letters[at]
        elif kind == 1:
            letters[at] = letter
        elif kind == 2:
            letters.insert(at, letter)
        elif at > 0:
            letters[at - 1], letters[at] = letters[at], letters[at - 1]
    return "".join(letters)


def trigrams(word: str) -> list[int]:
    """Buckets of the trigrams, filled up with bucket 0, which counts as nothing."""
    code = [0, *(LETTERS.index(letter) + 1 for letter in word[: TRIGRAMS - 1]), 0]
    triples = zip(code, code[1:], code[2:], strict=False)
    found = [1 + (a * 729 + b * 27 + c) * 2654435761 % 2**32 % (BUCKETS - 1) for a, b, c in triples]
    return (found + [0] * TRIGRAMS)[:TRIGRAMS]


def misspelled_body(features: int) -> list[nn.Module]:
    return [
        *(nn.EmbeddingBag(BUCKETS, 128, mode="sum", padding_idx=0), nn.BatchNorm1d(128), nn.ReLU()),
        *(nn.Linear(128, features), nn.BatchNorm1d(features)),
    ]


@cache
def clusters(size: int) -> Split:
    """Points of a Gaussian around each of `size` random centres, negative coordinates set to 0."""
    generator = np.random.default_rng(0)
    centres = np.maximum(generator.normal(size=(size, 32)), 0)

    def sample(times: int) -> tuple[Tensor, Tensor]:
        y = np.repeat(np.arange(size), times)
        x = np.maximum(centres[y] + 0.55 * generator.normal(size=(len(y), 32)), 0)
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)

    return Split(*sample(60), *sample(20))


def clusters_body(features: int) -> list[nn.Module]:
    return [nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, features)]


TASKS = (
    Task(
        *("digits", 10, (8, 16, 32, 64), digits, digits_body),
        *(250, 64, (1e-2, 3e-2)),
        both=True,
    ),
    Task(
        *("clusters", 100, (64,), lambda: clusters(100), clusters_body),
        *(500, 64, (1e-2, 3e-2)),
    ),
    Task(
        *("next word", 400, (256,), lambda: next_word(400), lambda n: next_word_body(n, 400)),
        *(700, 64, (5e-3, 2e-2)),
    ),
    Task(
        *("next word", 2000, (64, 256), lambda: next_word(2000), lambda n: next_word_body(n, 2000)),
        *(700, 64, (5e-3, 2e-2)),
    ),
    Task(
        *("misspelled word", 2000, (64,), lambda: misspelled(2000), misspelled_body),
        *(700, 64, (3e-2, 1e-1)),
    ),
)
