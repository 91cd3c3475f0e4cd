"""Draws the diagrams of the pages: `python docs/drawings.py` writes docs/assets/drawings/*.svg.

Lines and letters take the colour of the text around them, so that a drawing serves on light and dark pages alike.
"""

import math
from pathlib import Path

FOLDER = Path(__file__).parent / "assets" / "drawings"
DATA, LATENT, NET = "#3d7be0", "#e0742c", "#2f9e6e"  # data, latent, what a net supplies: readable on white and on black


def text(x, y, words, *, size=14, anchor="middle", fill="currentColor", mono=False, bold=False, italic=False):
    family = "monospace" if mono else "sans-serif"
    style = f'font-weight="{"bold" if bold else "normal"}" font-style="{"italic" if italic else "normal"}"'
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f'<text x="{x:g}" y="{y:g}" font-family="{family}" font-size="{size:g}" text-anchor="{anchor}" '
        f'fill="{fill}" {style}>{words}</text>'
    )


def box(x, y, width, height, *, stroke="currentColor", fill="none", opacity=0.16, round=6, dash=""):
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round:g}"'
    filled = f'{shape} fill="{fill}" fill-opacity="{opacity:g}" stroke="none"/>' if fill != "none" else ""
    return f'{filled}{shape} fill="none" stroke="{stroke}" stroke-width="1.5" stroke-dasharray="{dash}"/>'


def line(*points, stroke="currentColor", width=1.5, dash="", fill="none", opacity=1.0):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="{fill}" fill-opacity="{opacity:g}" stroke="{stroke}" '
        f'stroke-width="{width:g}" stroke-dasharray="{dash}" stroke-linejoin="round"/>'
    )


def arrow(*points, stroke="currentColor", width=1.5, head=7):
    (x0, y0), (x1, y1) = points[-2:]
    angle = math.atan2(y1 - y0, x1 - x0)
    corners = [(x1 - head * math.cos(angle + turn), y1 - head * math.sin(angle + turn)) for turn in (0.45, -0.45)]
    tip = " ".join(f"{x:.1f},{y:.1f}" for x, y in [(x1, y1), *corners])
    end = (x1 - 0.7 * head * math.cos(angle), y1 - 0.7 * head * math.sin(angle))
    return line(*points[:-1], end, stroke=stroke, width=width) + f'<polygon points="{tip}" fill="{stroke}"/>'


def area(points, base, *, fill, opacity=0.3):
    """What lies between a curve and the horizontal line y = base."""
    return line((points[0][0], base), *points, (points[-1][0], base), stroke="none", fill=fill, opacity=opacity)


# The mixture that stands for data everywhere: weights, means and scales of logistics.
MIXTURE = ((0.45, -1.6, 0.32), (0.55, 1.3, 0.45))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def cdf(x):
    return sum(w * sigmoid((x - m) / s) for w, m, s in MIXTURE)


def density(x):
    return sum(w * sigmoid((x - m) / s) * sigmoid((m - x) / s) / s for w, m, s in MIXTURE)


def logit_cdf(x):
    return math.log(cdf(x)) - math.log(sum(w * sigmoid((m - x) / s) for w, m, s in MIXTURE))


def logistic(z):
    return sigmoid(z) * sigmoid(-z)


def grid(start, stop, count=81):
    return [start + (stop - start) * i / (count - 1) for i in range(count)]


def directions():
    def curve(at, base, height, function, reach):
        top = max(map(function, grid(-reach, reach)))
        return [(at + 70 * x / reach, base - height * function(x) / top) for x in grid(-reach, reach)]

    data, latent = curve(110, 150, 80, density, 4.0), curve(610, 150, 80, logistic, 6.0)
    return (
        720,
        215,
        [
            area(data, 150, fill=DATA),
            line(*data, stroke=DATA, width=2),
            line((30, 150), (190, 150)),
            area(latent, 150, fill=LATENT),
            line(*latent, stroke=LATENT, width=2),
            line((530, 150), (690, 150)),
            text(110, 172, "data x"),
            text(610, 172, "latent z"),
            box(290, 60, 140, 80),
            text(360, 106, "transform", bold=True),
            arrow((205, 80), (288, 80)),
            arrow((432, 80), (515, 80)),
            arrow((288, 122), (205, 122)),
            arrow((515, 122), (432, 122)),
            text(360, 36, "z, l = transform(x)", mono=True),
            text(360, 165, "x, l = transform.inverse(z)", mono=True),
            text(360, 202, "log p(x) = log p(z) + l", size=15, italic=True),
        ],
    )


def log_term():
    """Equal shares of probability on both axes of z = f(x): where f is steep, x is dense."""
    left, right, bottom, top = 170, 560, 290, 40

    def at_x(x):
        return left + (right - left) * (x + 4) / 8

    def at_z(z):
        return bottom - (bottom - top) * (z + 6) / 12

    parts = [line((left, bottom), (right, bottom)), line((left, bottom), (left, top))]
    xs = [x for x in grid(-4, 4, 161) if abs(logit_cdf(x)) <= 6]
    on_x = [(at_x(x), bottom + 95 * density(x) / 0.4) for x in grid(-4, 4)]
    on_z = [(left - 400 * logistic(z), at_z(z)) for z in grid(-6, 6)]
    for low, high, colour in ((-1.75, -1.35, DATA), (-0.55, 0.35, LATENT)):
        within = grid(low, high, 21)
        parts.append(
            line(
                (at_x(low), bottom),
                (at_x(low), at_z(logit_cdf(low))),
                (left, at_z(logit_cdf(low))),
                (left, at_z(logit_cdf(high))),
                (at_x(high), at_z(logit_cdf(high))),
                (at_x(high), bottom),
                stroke="none",
                fill=colour,
                opacity=0.13,
            )
        )
        parts.append(
            area([(at_x(x), bottom + 95 * density(x) / 0.4) for x in within], bottom, fill=colour, opacity=0.6)
        )
        zs = grid(logit_cdf(low), logit_cdf(high), 21)
        strip = [(left - 400 * logistic(z), at_z(z)) for z in zs]
        parts.append(line((left, at_z(zs[0])), *strip, (left, at_z(zs[-1])), stroke="none", fill=colour, opacity=0.6))
    parts += [line(*on_x), line(*on_z), line(*((at_x(x), at_z(logit_cdf(x))) for x in xs), width=2.5)]
    return (
        720,
        400,
        [
            *parts,
            text(at_x(2.0), at_z(4.4), "z = f(x)", anchor="end", italic=True, size=16),
            text(right + 12, bottom + 5, "x", anchor="start", italic=True, size=16),
            text(left, top - 10, "z", italic=True, size=16),
            text(right + 12, bottom + 45, "p(x)", anchor="start", italic=True, size=16),
            text(left - 75, top + 40, "p(z)", italic=True, size=16),
            text(at_x(-1.55) - 45, at_z(3.4), "steep: x is dense", fill=DATA, anchor="middle"),
            text(at_x(1.15), at_z(-3.2), "flat: x is sparse", fill=LATENT, anchor="start"),
        ],
    )


def shapes():
    def tensor(x, y, name, batch, event, width=34):
        parts = [text(x - 12, y + 23, name, anchor="end", italic=True, size=17)]
        for i, size in enumerate([*batch, *event]):
            is_event = i >= len(batch)
            colour = DATA if is_event else "currentColor"
            parts += [box(x + i * (width + 6), y, width, 34, stroke=colour, fill=colour if is_event else "none")]
            parts += [text(x + i * (width + 6) + width / 2, y + 22, size)]
        return parts

    rows = [
        ("ActNorm((C, 1, 1))", ("S", "B"), ("C", "H", "W"), "in_ndim 3", "sums nothing"),
        ("Coupling(…, dim=-1)", ("S", "B", "C", "H"), ("W",), "in_ndim 1", "the chain sums l over C, H"),
        ("Exp()", ("S", "B", "C", "H", "W"), (), "in_ndim 0", "the chain sums l over C, H, W"),
    ]
    parts = [text(60, 26, "batch", anchor="start", size=13), text(150, 26, "event", anchor="start", fill=DATA, size=13)]
    parts += tensor(60, 40, "x", ("S", "B"), ("C", "H", "W")) + tensor(330, 40, "z", ("S", "B"), ("C", "H", "W"))
    parts += [*tensor(600, 40, "l", ("S", "B"), ()), arrow((262, 57), (302, 57)), text(560, 62, "and", size=13)]
    parts += [text(20, 122, "What each part of a chain takes for its event:", anchor="start", bold=True)]
    for i, (name, batch, event, ndim, then) in enumerate(rows):
        y = 138 + 48 * i
        parts += [text(20, y + 22, name, anchor="start", mono=True, size=13)]
        parts += tensor(190, y, "", batch, event)
        parts += [
            text(400, y + 22, ndim, anchor="start", mono=True, size=13),
            text(500, y + 22, then, anchor="start", size=13),
        ]
    return 720, 290, parts


def coupling():
    return (
        720,
        240,
        [
            box(20, 40, 70, 60, stroke=DATA, fill=DATA),
            text(55, 76, "a", italic=True, size=18),
            box(20, 140, 70, 60, stroke=DATA, fill=DATA),
            text(55, 176, "b", italic=True, size=18),
            text(55, 26, "x"),
            arrow((92, 70), (618, 70)),
            text(470, 60, "passes unchanged", size=13),
            line((200, 70), (200, 104)),
            arrow((200, 70), (200, 96)),
            box(145, 98, 110, 38, stroke=NET, fill=NET),
            text(200, 122, "net(a)", mono=True),
            arrow((257, 117), (350, 117), (350, 146)),
            text(362, 122, "parameters", size=13, anchor="start", fill=NET),
            box(280, 148, 140, 44),
            text(350, 175, "map", bold=True),
            arrow((92, 170), (278, 170)),
            arrow((422, 170), (618, 170)),
            box(620, 40, 70, 60, stroke=LATENT, fill=LATENT),
            text(655, 76, "a", italic=True, size=18),
            box(620, 140, 70, 60, stroke=LATENT, fill=LATENT),
            text(655, 176, "b′", italic=True, size=18),
            text(655, 26, "z"),
            text(360, 226, "back: a is known, so the net gives the same parameters, and the map is inverted", size=13),
        ],
    )


def schemes():
    def panel(left, title, who):
        return [text(left + 80, 24, title, bold=True), text(left + 80, 212, who, size=12)]

    def cells(left, y, colour):
        return [part for i in range(4) for part in [box(left + 8 + 37 * i, y, 32, 32, stroke=colour, fill=colour)]]

    parts = []
    for number, (title, who) in enumerate(
        [
            ("Coupling", "a net of the other half"),
            ("Autoregressive", "a net of those before"),
            ("Elementwise", "free parameters"),
            ("FromContext", "a net of the context"),
        ]
    ):
        left = 14 + 178 * number
        at = [left + 24 + 37 * i for i in range(4)]
        parts += panel(left, title, who) + cells(left, 44, DATA) + cells(left, 152, LATENT)
        for i, x in enumerate(at):
            passes = title == "Coupling" and i < 2
            parts.append(line((x, 78), (x, 150), width=1, dash="3 3") if passes else arrow((x, 78), (x, 150), width=1))
            if not passes:
                parts.append(f'<circle cx="{x:g}" cy="114" r="7" fill="{NET}"/>')
        if title == "Coupling":
            parts += [line((at[i], 78), (x, 107), stroke=NET) for i in (0, 1) for x in at[2:]]
        if title == "Autoregressive":
            parts += [line((at[i], 78), (at[j], 107), stroke=NET) for j in range(4) for i in range(j)]
        if title == "FromContext":
            parts += [box(left - 8, 102, 22, 24, stroke=NET, fill=NET), text(left + 3, 119, "c", italic=True)]
            parts += [line((left + 14, 114), (at[3] - 7, 114), stroke=NET)]
    return 720, 226, parts


def pairs():
    parts = []
    kinds = [("PairColumns", lambda r, c: c % 2), ("PairCheckerboard", lambda r, c: (r + c) % 2)]
    for number, (name, half) in enumerate(kinds):
        left = 30 + 235 * number
        for r in range(4):
            for c in range(4):
                colour = LATENT if half(r, c) else DATA
                parts.append(box(left + 36 * c, 40 + 36 * r, 34, 34, stroke=colour, fill=colour, opacity=0.35, round=3))
        parts.append(text(left + 71, 26, name, mono=True))
    for c in range(4):  # channels lie behind one another
        colour = LATENT if c >= 2 else DATA
        x, y = 500 + 22 * c, 88 - 16 * c
        parts.append(box(x, y, 96, 96, stroke=colour, fill=colour, opacity=0.35, round=3))
    parts += [text(580, 26, "PairChannels", mono=True), text(101, 206, "even and odd columns", size=13)]
    parts += [text(336, 206, "two colours of squares", size=13), text(580, 206, "first and second channels", size=13)]
    return (
        720,
        250,
        [
            *parts,
            text(262, 238, "first half: it passes", fill=DATA),
            text(462, 238, "second half: it changes", fill=LATENT),
        ],
    )


def of_y(y):
    """The density of the data over y in [0, 4)."""
    return 2 * density(2 * y - 4)


def mass(k):
    """What of it lies in [k, k + 1)."""
    return cdf(2 * k - 2) - cdf(2 * k - 4)


def dequantization():
    """Integers as bars; a density whose mass over each unit interval is their probability; noise in one interval."""
    base, tall = 190, 190
    parts = [line((30, base), (230, base)), text(130, 26, "integers x", bold=True)]
    for k in range(4):
        parts += [line((55 + 50 * k, base), (55 + 50 * k, base - tall * mass(k)), width=6, stroke=DATA)]
        parts += [text(55 + 50 * k, base + 20, str(k), size=13)]
    left = 270
    curve = [(left + 45 * y, base - tall * of_y(y)) for y in grid(0, 4, 200)]
    shaded = [(left + 45 * y, base - tall * of_y(y)) for y in grid(2, 3, 50)]
    parts += [text(left + 90, 26, "a density over y = x + u", bold=True), line((left - 8, base), (left + 188, base))]
    parts += [area(shaded, base, fill=DATA, opacity=0.5), line(*curve, stroke=DATA, width=2)]
    parts += [line((left + 45 * k, base), (left + 45 * k, base + 6)) for k in range(5)]
    parts += [text(left + 45 * k, base + 20, str(k), size=13) for k in range(5)]
    parts += [text(left + 112, base + 42, "its mass over [2, 3) is P(2)", size=13, fill=DATA)]
    left, wide = 510, 170
    posterior = [(left + wide * u, base - 70 * of_y(2 + u) / mass(2)) for u in grid(0, 1, 60)]
    parts += [text(left + wide / 2, 26, "noise u, given x = 2", bold=True), line((left, base), (left + wide, base))]
    parts += [line((left, base - 70), (left + wide, base - 70), stroke=LATENT, width=2, dash="6 4")]
    parts += [
        line(*posterior, stroke=NET, width=2),
        text(left, base + 20, "0", size=13),
        text(left + wide, base + 20, "1", size=13),
    ]
    parts += [text(left + 4, base - 78, "uniform", anchor="start", size=13, fill=LATENT)]
    parts += [text(left + wide / 2, base + 42, "learned: follows the density", size=13, fill=NET)]
    return 720, 245, parts


def bounds():
    def at(bits):
        return 200 + (bits - 1.7) * 340

    marks = [
        (3.102, "uniform noise", LATENT, 54, "end"),
        (1.900, "learned noise, one draw", NET, 54, "start"),
        (1.788, "learned, 128 draws", DATA, 94, "end"),
    ]
    parts = [arrow((30, 130), (700, 130)), text(690, 152, "bits/dim", anchor="end", size=13)]
    parts += [line((at(1.70), 112), (at(1.70), 148), dash="4 3")]
    parts += [text(at(1.70), 168, "−log₂ P(x) / D: not known", size=13)]
    for bits, name, colour, y, anchor in marks:
        parts += [line((at(bits), y - 14), (at(bits), 138), stroke=colour, width=2)]
        parts += [
            text(at(bits) + (8 if anchor == "start" else -8), y, f"{name}: {bits:.3f}", anchor=anchor, fill=colour)
        ]
    return 720, 184, parts


def logit_cdf_map():
    """The three steps of the mixture map: density, CDF, logit of the CDF."""
    parts = []
    panels = [
        ("a mixture of logistics", density, 0.0, 0.42, DATA),
        ("its CDF F", cdf, 0.0, 1.0, DATA),
        ("logit F(x)", logit_cdf, -9.0, 9.0, LATENT),
    ]
    for number, (name, function, low, high, colour) in enumerate(panels):
        left = 30 + 235 * number

        def at(x, y, left=left, low=low, high=high):
            return left + 180 * (x + 4.5) / 9, 180 - 135 * (y - low) / (high - low)

        curve = [at(x, function(x)) for x in grid(-4.5, 4.5, 121) if low <= function(x) <= high]
        parts += [
            text(left + 90, 26, name, bold=True),
            line((left, 180), (left + 180, 180)),
            text(left + 90, 202, "x", italic=True),
        ]
        parts += [line(*curve, stroke=colour, width=2.5)]
        if number == 0:
            for w, m, s in MIXTURE:
                one = [at(x, w * sigmoid((x - m) / s) * sigmoid((m - x) / s) / s) for x in grid(-4.5, 4.5, 121)]
                parts += [line(*one, width=1, dash="4 3")]
        if number == 2:
            parts += [text(left + 6, 60, "straight in the tails,", anchor="start", size=12)]
            parts += [text(left + 6, 76, "with slope 1/s", anchor="start", size=12)]
    return 720, 214, parts


def flowpp_stages():
    """The CIFAR-10 model from image to latent."""
    stages = [
        ("dequantize", "u from a flow,", "given x", "3 × 32 × 32", NET),
        ("logit", "to all reals", "", "3 × 32 × 32", DATA),
        ("columns1", "4 steps on", "PairColumns", "3 × 32 × 32", DATA),
        ("squeeze1", "2 × 2 pixels", "to channels", "12 × 16 × 16", DATA),
        ("channels1", "2 steps on", "PairChannels", "12 × 16 × 16", DATA),
        ("columns2", "3 steps on", "PairColumns", "12 × 16 × 16", DATA),
    ]
    parts = [text(26, 80, "x", italic=True, size=18, anchor="end")]
    for i, (name, one, two, shape, colour) in enumerate(stages):
        left = 44 + 106 * i
        parts += [arrow((left - 14, 74), (left - 1, 74)), box(left, 34, 90, 82, stroke=colour, fill=colour)]
        parts += [
            text(left + 45, 54, name, bold=True, size=13),
            text(left + 45, 80, one, size=12),
            text(left + 45, 96, two, size=12),
        ]
        parts += [text(left + 45, 134, shape, size=12)]
    parts += [arrow((664, 74), (683, 74)), text(696, 80, "z", italic=True, size=18)]
    step = [("norm", "ActNorm"), ("mix", "Conv1x1"), ("couple", "Coupling"), ("flip", "Flip")]
    parts += [arrow((301, 144), (301, 175), width=1)]
    parts += [
        box(150, 176, 420, 92, dash="4 3"),
        text(162, 196, "one step, on a pair of halves (2, C, h, w)", size=13, anchor="start"),
    ]
    for i, (name, kind) in enumerate(step):
        left = 172 + 98 * i
        parts += [
            box(left, 208, 84, 46),
            text(left + 42, 227, name, bold=True, size=13),
            text(left + 42, 245, kind, size=12, mono=True),
        ]
        if i:
            parts.append(arrow((left - 13, 231), (left - 1, 231)))
    return 720, 282, parts


def gated_block():
    """One block of the conditioner: a gated convolution and gated attention, each with its residual sum and norm."""

    def row(y, name, steps):
        parts = [text(20, y - 34, name, anchor="start", bold=True), line((20, y), (60, y))]
        for i, (label, colour) in enumerate(steps):
            left = 60 + 88 * i
            parts += [box(left, y - 18, 76, 36, stroke=colour, fill="none" if colour == "currentColor" else colour)]
            parts += [text(left + 38, y + 5, label, size=12), arrow((left + 76, y), (left + 87, y))]
        end = 60 + 88 * len(steps)
        parts += [f'<circle cx="{end + 10}" cy="{y}" r="10" fill="none" stroke="currentColor" stroke-width="1.5"/>']
        parts += [text(end + 10, y + 5, "+"), arrow((36, y), (36, y + 38), (end + 10, y + 38), (end + 10, y + 11))]
        parts += [
            arrow((end + 20, y), (end + 31, y)),
            box(end + 32, y - 18, 52, 36),
            text(end + 58, y + 5, "norm", size=12),
        ]
        return [*parts, arrow((end + 84, y), (end + 104, y))]

    first = [
        ("cELU", "currentColor"),
        ("conv 3×3", NET),
        ("cELU", "currentColor"),
        ("dropout", "currentColor"),
        ("conv 1×1", NET),
        ("gate", LATENT),
    ]
    second = [("conv 1×1", NET), ("attention", DATA), ("dropout", "currentColor"), ("conv 1×1", NET), ("gate", LATENT)]
    return (
        720,
        250,
        [
            *row(70, "gated convolution", first),
            *row(190, "gated attention", second),
            text(212, 36, "a context is added after the first convolution", size=12, anchor="start"),
            text(180, 156, "an embedding of positions is added to the input", size=12, anchor="start"),
        ],
    )


DRAWINGS = (
    directions,
    log_term,
    shapes,
    coupling,
    schemes,
    pairs,
    dequantization,
    bounds,
    logit_cdf_map,
    flowpp_stages,
    gated_block,
)


def svg(drawing):
    width, height, parts = drawing()
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" color="#555">'
    return "\n".join([head, *parts, "</svg>", ""])


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for drawing in DRAWINGS:
        (FOLDER / f"{drawing.__name__}.svg").write_text(svg(drawing))
