"""The results as one page of HTML, the same as Markdown, and its charts as PNG files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.ablation.experiment import Experiment
from benchmarks.ablation.plan import file_name
from benchmarks.ablation.results import START, Comparison, Results
from benchmarks.ablation.scoring import MODEL
from manifests import charts
from manifests.charts import Chart
from manifests.wording import duration
from pipeline.inspection.report import fill_template, section, table
from shards.files import atomic_write

_COMPARED = ("arm", "control", "sequences", "seeds", "difference", "95 % interval", "p", "verdict")


@dataclass(frozen=True)
class Part:
    """A part of the page: a table with its heads and rows, or a chart; and a note below.

    text_columns: the table's first columns that are texts
    """

    title: str
    note: str = ""
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    chart: Chart | None = None
    text_columns: int = 1


def write_page(results: Results) -> None:
    """Write OUT/results.html, OUT/results.md and a PNG file per chart."""
    out, parts = results.experiment.out, list(page_parts(results))
    for part in parts:
        if part.chart:
            atomic_write(out / f"{file_name(part.title)}.png", charts.png(part.chart))
    atomic_write(out / "results.html", as_html(results, parts).encode())
    atomic_write(out / "results.md", as_markdown(results, parts).encode())


def as_html(results: Results, parts: list[Part]) -> str:
    """Return the page as HTML."""
    return fill_template(
        title=results.experiment.title,
        heading=results.experiment.title,
        about=about(results.experiment),
        numbers=numbers(results),
        sections=[
            section(
                part.title,
                charts.svg(part.chart) if part.chart else _html_table(part),
                part.note,
                wide=part.chart is None,
            )
            for part in parts
        ],
    )


def _html_table(part: Part) -> str:
    return table([*part.heads], [[*row] for row in part.rows], part.text_columns)


def as_markdown(results: Results, parts: list[Part]) -> str:
    """Return the page as Markdown."""
    lines = [f"# {results.experiment.title}", "", about(results.experiment), ""]
    lines += [f"- {name}: {value}" for name, value in numbers(results)]
    for part in parts:
        lines += ["", f"## {part.title}", ""]
        if part.chart:
            lines.append(f"![{part.title}]({file_name(part.title)}.png)")
        else:
            lines += [f"| {' | '.join(row)} |" for row in (part.heads, *part.rows)]
            lines.insert(len(lines) - len(part.rows), f"|{'---|' * len(part.heads)}")
        if part.note:
            lines += ["", part.note]
    return "\n".join(lines) + "\n"


def about(experiment: Experiment) -> str:
    """Say what decides."""
    return f"Endpoint: {experiment.endpoint}, an arm less its control."


def numbers(results: Results) -> Iterator[tuple[str, str]]:
    """Yield the figures at the top of the page, as (name, value)."""
    experiment = results.experiment
    finished = sum(len(seeds) for seeds in results.arms.values())
    yield "runs", f"{finished} of {len(experiment.arms) * len(experiment.seeds)}"
    yield "seeds", str(len(experiment.seeds))
    values = results.start[MODEL][experiment.endpoint].values()
    yield "sequences", str(sum(value is not None for value in values))
    spent = sum(sum(seeds.values()) for seeds in results.seconds.values())
    yield "training of the arms", duration(spent)


def page_parts(results: Results) -> Iterator[Part]:
    """Yield the parts of the page, in their order."""
    experiment = results.experiment
    yield Part(
        f"Less its control: {experiment.endpoint}",
        "Means over sequences and seeds, in points (hundredths). Intervals count both as samples. "
        "p is corrected for the number of rows (Holm).",
        _COMPARED,
        tuple(map(_comparison_row, results.comparisons(experiment.endpoint))),
        text_columns=2,
    )
    if results.diverged:
        rows = [(arm, str(seed), why) for arm, seed, why in results.diverged]
        yield Part("Diverged", heads=("arm", "seed", "why"), rows=tuple(rows), text_columns=3)
    yield _means_part(results)
    others = [name for name in experiment.metrics if name != experiment.endpoint]
    if others:
        compared = [(m, *_comparison_row(c)) for m in others for c in results.comparisons(m)]
        yield Part(
            "Less its control: other metrics",
            "p is corrected within a metric. Only the endpoint decides.",
            ("metric", *_COMPARED),
            tuple(compared),
            text_columns=3,
        )
    yield from _curves(results)
    if results.trials:
        yield Part(
            "Learning rates",
            f"Mean of the endpoint on the validation clips, seed {experiment.rates.seed}; - where "
            "a run diverged.",
            ("objective", *(f"{rate:g}" for rate in experiment.rates.tried), "taken"),
            tuple(
                (
                    name,
                    *(_points(means.get(rate)) for rate in experiment.rates.tried),
                    f"{results.rates[name]:g}",
                )
                for name, means in results.trials.items()
            ),
        )


def _comparison_row(comparison: Comparison) -> tuple[str, ...]:
    d = comparison.difference
    interval = (
        "-" if d.interval is None else f"{100 * d.interval[0]:+.2f} to {100 * d.interval[1]:+.2f}"
    )
    p = "-" if math.isnan(comparison.corrected) else f"{comparison.corrected:.3f}"
    return (
        comparison.arm,
        comparison.control,
        str(d.sequences),
        str(d.seeds),
        f"{100 * d.mean:+.2f}",
        interval,
        p,
        comparison.verdict,
    )


def _means_part(results: Results) -> Part:
    """Return the table of all arms in all metrics."""
    metrics = [*results.experiment.metrics]
    rows = []
    for name in results.baselines(metrics[0]):
        values = [_points(results.baselines(metric)[name]) for metric in metrics]
        rank = f"{results.start['effective_rank']:.1f}" if name == START else "-"
        rows.append((name, *values, rank, "-"))
    for arm in results.experiment.arms:
        seeds = results.arms.get(arm)
        if not seeds:
            continue
        ranks = [scores["effective_rank"] for scores in seeds.values()]
        spent = [*results.seconds[arm].values()]
        cells = [_with_spread(*results.mean(arm, metric)) for metric in metrics]
        rank = f"{sum(ranks) / len(ranks):.1f}"
        rows.append((arm, *cells, rank, duration(sum(spent) / len(spent))))
    return Part(
        "All arms",
        "Points (hundredths): mean over sequences and seeds, and after ± the standard deviation "
        "over seeds.",
        ("arm", *metrics, "effective rank", "training"),
        tuple(rows),
    )


def _curves(results: Results) -> Iterator[Part]:
    """Yield the endpoint by step: of the start weights, and of the arms of each objective."""
    experiment, endpoint = results.experiment, results.experiment.endpoint
    start = results.curve(START, endpoint)
    if len(start) > 1:
        # How much the last quarter of the run added says whether it was long enough.
        late = start[-1][1] - start[-1 - max(1, len(start) // 4)][1]
        yield _curve_part("Start weights by step", {START: start}, late)
    for objective in experiment.objectives:
        series = {
            name: results.curve(name, endpoint)
            for name, arm in experiment.arms.items()
            if arm.objective == objective and results.arms.get(name)
        }
        if series:
            yield _curve_part(f"{objective} by step", series)


def _curve_part(
    title: str, series: dict[str, list[tuple[float, float]]], late: float | None = None
) -> Part:
    """Return a chart of the endpoint by step; late: what the last quarter added."""
    steps = sorted({x for points in series.values() for x, _ in points})
    ticks = {x: f"{x:.0f}" for x in (steps[0], steps[-1])}
    largest = max(y for points in series.values() for _, y in points)
    highest = max(1, math.ceil(largest * 5)) / 5  # a quarter of it is a whole percentage
    chart = charts.lines(title, series, "steps", ticks=ticks, dots=True, highest=highest)
    note = "The endpoint on the validation clips, as a mean over sequences and seeds."
    if late is not None:
        note += f" The last quarter of the steps added {100 * late:+.2f} points."
    return Part(title, note, chart=chart)


def _points(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _with_spread(mean: float, spread: float) -> str:
    return _points(mean) if math.isnan(spread) else f"{_points(mean)} ± {100 * spread:.2f}"
