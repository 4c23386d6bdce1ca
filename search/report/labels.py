"""Where the names of points stand in a picture, so that they cover neither each other nor the points."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top

# In font sizes: width and height of a character, radius of a point's mark, and what lies between that and a name.
CHARACTER, LINE, MARK, GAP = 0.6, 1.3, 0.7, 0.3
ROWS = 6  # how many lines of text a name may be moved up or down
PASSES = 10
# What a place costs: another name that it covers, and again each character of that; as much of a mark, which still
# shows through; each line that it is away from the point.
COVERED_NAME, COVERED_MARK, PER_LINE = 2.0, 1.0, 0.1


@dataclass(frozen=True)
class Canvas:
    """The scale of a picture.

    Attributes:
        drawn: every point that is drawn; they span the axes.
        size: width and height between them, in the unit of `font`.
        font: size of the names.
    """

    drawn: Sequence[Point]
    size: Point
    font: float

    def scaled(self, points: Sequence[Point]) -> list[Point]:
        """Return where points lie, in font sizes from the lower left."""
        result: list[list[float]] = []
        for axis in (0, 1):
            values = [point[axis] for point in self.drawn]
            low, high = min(values, default=0.0), max(values, default=0.0)
            unit = self.size[axis] / self.font / ((high - low) or 1.0)
            result.append([(point[axis] - low) * unit for point in points])
        return list(zip(*result, strict=True))


@dataclass(frozen=True)
class Place:
    """Where a name stands.

    Attributes:
        x, y: from the point to the middle of the name, up being positive, in the unit of the canvas.
        apart: whether it takes a line to see whose name it is.
    """

    x: float
    y: float
    apart: bool


def places(canvas: Canvas, points: Sequence[Point], names: Sequence[str], marks: Sequence[Point] = ()) -> list[Place]:
    """Return where the names of points stand: beside them where there is room, else some lines above or below.

    Each name in turn goes where it covers least, until none moves any more.

    Args:
        canvas: the picture.
        points: that have names.
        names: of the points.
        marks: further points that had better not be covered.
    """
    at = canvas.scaled(points)
    shown = [_around(mark) for mark in [*at, *canvas.scaled(marks)]]
    offered = [_offers(name) for name in names]
    chosen = [offers[0] for offers in offered]
    boxes = [_box(*item) for item in zip(at, names, chosen, strict=True)]

    def cost(i: int, place: Place) -> float:
        box = _box(at[i], names[i], place)
        of_names = [covered for j, other in enumerate(boxes) if j != i and (covered := _overlap(box, other))]
        of_marks = [_overlap(box, mark) for mark in shown]
        frame = (-LINE, -LINE, canvas.size[0] / canvas.font + LINE, canvas.size[1] / canvas.font + LINE)
        outside = (box[2] - box[0]) * LINE - _overlap(box, frame)
        characters = (COVERED_NAME * sum(of_names) + COVERED_MARK * sum(of_marks) + outside) / (CHARACTER * LINE)
        return COVERED_NAME * len(of_names) + characters + PER_LINE * abs(place.y) / LINE

    for _ in range(PASSES):
        before = list(chosen)
        for i, offers in enumerate(offered):
            chosen[i] = min(offers, key=partial(cost, i))
            boxes[i] = _box(at[i], names[i], chosen[i])
        if chosen == before:
            break
    return [Place(place.x * canvas.font, place.y * canvas.font, place.apart) for place in chosen]


def _offers(name: str) -> list[Place]:
    """Return where a name may stand, in font sizes, the best first."""
    aside = CHARACTER * len(name) / 2 + MARK + GAP
    rows = [(MARK + LINE / 2 + k * LINE, k > 0) for k in range(ROWS)]
    over = [Place(x, sign * y, apart) for y, apart in rows for sign in (1, -1) for x in (0.0, aside, -aside)]
    return [*over[:1], Place(aside, 0.0, False), Place(-aside, 0.0, False), *over[1:]]


def _box(at: Point, name: str, place: Place) -> Box:
    x, y, half = at[0] + place.x, at[1] + place.y, CHARACTER * len(name) / 2
    return x - half, y - LINE / 2, x + half, y + LINE / 2


def _around(mark: Point) -> Box:
    return mark[0] - MARK, mark[1] - MARK, mark[0] + MARK, mark[1] + MARK


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
