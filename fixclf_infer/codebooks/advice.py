"""What another width would give, and how far the classes can grow: from what the families state.
No other codebook is built, and this one's cosines are measured only where that takes no time."""

from __future__ import annotations

from dataclasses import dataclass

from . import delsarte_goethals, kerdock, orthoplex
from .base import MAX_CLASSES, MAX_FEATURES, Codebook
from .choice import choose, versions
from .hadamard import repeats
from .kernel import KernelData
from .measure import additions, extremes
from .orders import Order, choose_order, power_of_two

# The kinds that "auto" takes, in the order in which it does as C grows.
STAGES = ("hadamard", "orthoplex", "kerdock", "delsarte_goethals", "search")
NEAR = 8  # widths up to N / NEAR away are tried, and the two powers of two around N
MORE = 8  # a better width may cost 1 / MORE more additions
GRAM_WORK = 2**22  # multiplications that measuring may take
SMALL = 32  # features below which `search` may run out of rows: nothing is said about growth


@dataclass(frozen=True)
class Width:
    """The default codebook of a number of features, where its coherence is proven."""

    in_features: int
    kind: str
    coherence: float
    additions: int  # for one row of features


def proven(in_features: int, num_classes: int) -> Width | None:
    """What is proven about codebook(in_features, num_classes), if its coherence is."""
    kind, max_base = choose(in_features, num_classes)
    order = _order(kind, in_features, max_base)
    if kind == "hadamard":
        value = 0.0 if repeats(order, in_features, num_classes) == 0 else None
    elif kind == "search" or order.n != in_features:
        value = None
    elif kind == "orthoplex":
        value = 0.0
    else:
        digits = 1
        while num_classes > kerdock.capacity(order, in_features, digits):
            digits += 1
        value = kerdock.coherence(order.log2, digits)
    if value is None:
        return None
    plain = kind == "hadamard"
    data = KernelData(order.base, order.log2, None, None, not plain, False, int(plain), 0)
    return Width(in_features, kind, value, additions(data, num_classes, in_features))


def better_width(codebook: Codebook, coherence: float | None = None) -> Width | None:
    """The nearest width, the wider of two, whose default codebook has a lower coherence, proven,
    for at most an eighth more additions. None if no width near N has, or for a baseline or legacy
    kind.

    coherence: this codebook's, where it is measured. An unproven one that is not given counts as
        worse than any that is proven.
    """
    data, n, c = codebook.kernel, codebook.in_features, codebook.num_classes
    if data is None or codebook.kind not in STAGES or c < 2:
        return None
    if codebook.kind != "hadamard" and c < codebook.order:  # chosen for a capacity
        return None
    here = _known(codebook, coherence)
    if here == 0:
        return None
    most = additions(data, c, n) * (MORE + 1) // MORE
    near = {4 * w for w in range(-(-(n - n // NEAR) // 4), (n + n // NEAR) // 4 + 1)}
    powers = {power_of_two(n).n, power_of_two(n).n // 2}
    for width in sorted(near | powers, key=lambda w: (abs(w - n), -w)):
        if width == n or not 4 <= width <= MAX_FEATURES or (width < 64 and c > 1 << width):
            continue
        found = proven(width, c)
        if (
            found is not None
            and found.additions <= most
            and (here is None or found.coherence < here)
        ):
            return found
    return None


def grows_to(codebook: Codebook) -> int:
    """The number of classes up to which this codebook's classes keep their rows: those of
    kind="auto" with that number as the capacity, which is all of them if it is num_classes."""
    n, kind = codebook.in_features, codebook.kind
    return _grows_to(n, codebook.num_classes, kind, _order(kind, n, codebook.max_base))


def explain(codebook: Codebook, coherence: float | None = None) -> str:
    """Sentences that name the nearest better width, and the capacity to ask for if there will be
    more classes; "" where there is nothing to say. coherence: as for `better_width`."""
    sentences = []
    width = better_width(codebook, coherence)
    if width is not None:
        sentences.append(_about_width(codebook, width, _known(codebook, coherence)))
    if _may_grow(codebook):
        sentences.append(_about_growth(codebook))
    return " ".join(sentences)


def _known(codebook: Codebook, coherence: float | None) -> float | None:
    if codebook.cosines is not None:
        return codebook.cosines.coherence
    if coherence is None and codebook.num_classes**2 * codebook.in_features <= GRAM_WORK:
        return extremes(codebook).coherence
    return coherence


def _order(kind: str, in_features: int, max_base: int | None) -> Order:
    if kind in ("kerdock", "delsarte_goethals"):
        return power_of_two(in_features)
    return choose_order(in_features, max_base)


def _rows(kind: str, order: Order) -> tuple[bool, Order]:
    """Kinds of which this is the same begin with the same rows."""
    return kind == "hadamard", order


def _ends(n: int) -> dict[str, int]:
    """The last number of classes for which "auto" takes each kind."""
    order, power = choose_order(n, None), power_of_two(n)
    reach = [order.n - 1, orthoplex.limit(order, n)]
    masks = order == power or 8 * n >= 7 * power.n
    reach.append(kerdock.capacity(power, n, 1) if masks else 0)
    reach.append(delsarte_goethals.limit(n) if masks else 0)
    for i in range(1, 4):
        reach[i] = max(reach[i], reach[i - 1])
    return dict(zip(STAGES, [*reach, MAX_CLASSES], strict=True))


def _grows_to(n: int, c: int, kind: str, order: Order) -> int:
    def same(classes: int) -> bool:
        other, max_base = choose(n, classes)
        return _rows(other, _order(other, n, max_base)) == _rows(kind, order)

    ends, stage = _ends(n), STAGES.index(kind)
    most = max(c, ends[STAGES[stage - 1]]) if stage else c
    # Few classes fold or not: in [2^r, 2^(r+1)) that changes once at most.
    folds = {(1 << r) - 1 for r in range(ends["hadamard"].bit_length())} if not stage else set()
    for end in sorted(e for e in {*ends.values(), *folds} if e > most):
        low, high = most + 1, min(end, MAX_CLASSES)
        if low > high or not same(low):
            return most
        if not same(high):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if same(middle) else (low, middle)
            return low
        most = high
    return most


def _may_grow(codebook: Codebook) -> bool:
    """Whether it is what "auto" takes today, now or for some capacity."""
    n, kind = codebook.in_features, codebook.kind
    if kind not in STAGES or n < SMALL or codebook.version != versions(kind)[-1]:
        return False
    return codebook.max_base is None or choose(n, codebook.num_classes) == (
        kind,
        codebook.max_base,
    )


def _about_width(codebook: Codebook, width: Width, coherence: float | None) -> str:
    data, n, c = codebook.kernel, codebook.in_features, codebook.num_classes
    assert data is not None
    here = "measured by report()" if coherence is None else f"{coherence:.4g}"
    return (
        f"{width.in_features} features would have coherence {width.coherence:.4g} (here {here}) "
        f"for {width.additions:,} additions a row (here {additions(data, c, n):,})."
    )


def _about_growth(codebook: Codebook) -> str:
    n, most = codebook.in_features, grows_to(codebook)
    if most >= MAX_CLASSES:
        return "Classes keep their rows however many are added."
    kind, max_base = choose(n, most + 1)
    further = _grows_to(n, most + 1, kind, _order(kind, n, max_base))
    reach = "any number" if further >= MAX_CLASSES else f"C = {further:,}"
    return (
        f"Classes keep their rows up to C = {most:,}: if there will be more, ask for "
        f"capacity={most + 1} or more now; rows of {most + 1} ({kind}) stay up to {reach}."
    )
