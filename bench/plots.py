"""Pictures of the results, as SVG; needs matplotlib (`pip install "aioserving[bench]"`)."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

OURS_COLOUR, OTHER_COLOUR = "#1f6f8b", "#c9c9c9"


def _save(figure: Any, path: pathlib.Path) -> None:
    # No date and no random ids: the same figures give the same file.
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "aioserving"
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["font.size"] = 9
    from matplotlib import pyplot

    return pyplot


def scaling(figures: Mapping[tuple[str, int, str], float], path: pathlib.Path) -> None:
    """Throughput and latency by calls at a time, throughput by size with its limits, and by connections."""
    pyplot = _pyplot()
    panels: tuple[tuple[str, str, str, float, str], ...] = (
        ("rate", "calls at a time", "calls per second", 1.0, "log"),
        ("p50", "calls at a time", "median latency, ms", 1e3, "log"),
        ("p99", "calls at a time", "99th percentile, ms", 1e3, "log"),
        ("bandwidth", "bytes sent", "MB per second", 1e-6, "log"),
        ("connections 3 KB", "connections to each", "calls per second, 3 KB", 1.0, "linear"),
        ("connections 600 KB", "connections to each", "calls per second, 600 KB", 1.0, "linear"),
    )
    figure, axes = pyplot.subplots(3, 2, figsize=(10, 9))
    for axis, (kind, below, beside, factor, scale) in zip(axes.flat, panels, strict=True):
        lines: dict[str, dict[int, float]] = {}
        for (found, number, label), value in figures.items():
            if found == kind:
                lines.setdefault(label, {})[number] = value * factor
        for label, points in lines.items():
            limit = label.startswith("limit")
            style = {"color": "black", "linestyle": ":" if "memcpy" in label else "--"} if limit else {}
            axis.plot(list(points), list(points.values()), marker="" if limit else "o", **style)
            axis.lines[-1].set_label(label.replace("`", ""))
        numbers = sorted({number for points in lines.values() for number in points})
        axis.set_xscale("log")
        if kind != "bandwidth":
            axis.set_xticks(numbers, [str(number) for number in numbers])
            axis.minorticks_off()
        axis.set_yscale(scale)
        if scale == "linear":
            axis.set_ylim(bottom=0)
        axis.set_xlabel(below)
        axis.set_title(beside, loc="left")
        if lines:
            axis.legend(frameon=False, fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _save(figure, path)
    pyplot.close(figure)


def peers(figures: Mapping[tuple[str, int, str], float], path: pathlib.Path) -> None:
    """Bars of CPU time per call: a panel for each payload and number of calls at a time."""
    pyplot = _pyplot()
    panels = list(dict.fromkeys((size, concurrency) for size, concurrency, _ in figures))
    bars_of = [sum((size, concurrency) == panel[:2] for panel in figures) for size, concurrency in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(8, sum(0.5 + 0.25 * bars for bars in bars_of)),
        squeeze=False,
        height_ratios=[2 + bars for bars in bars_of],
    )
    for axis, (size, concurrency) in zip(axes[:, 0], panels, strict=True):
        bars = {label: value for (s, c, label), value in figures.items() if (s, c) == (size, concurrency)}
        labels = [label.replace("`", "") for label in bars]
        drawn = axis.barh(
            labels,
            [value * 1e3 for value in bars.values()],
            color=[OURS_COLOUR if "predict" in label else OTHER_COLOUR for label in labels],
        )
        axis.bar_label(drawn, fmt="%.3g ms", padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_title(
            f"predict of {size}, {concurrency} at a time: CPU time of the client per call".replace("`", ""),
            loc="left",
        )
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.tight_layout()
    _save(figure, path)
    pyplot.close(figure)


def connections(rates: Mapping[tuple[str, int, str], float], path: pathlib.Path) -> None:
    """Calls per second in terms of one connection: a panel for each payload."""
    pyplot = _pyplot()
    sizes = list(dict.fromkeys(size for size, _, _ in rates))
    figure, axes = pyplot.subplots(1, len(sizes), figsize=(3 * len(sizes), 2.6), sharey=True, squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        for concurrency in dict.fromkeys(c for s, c, _ in rates if s == size):
            points = {label: rate for (s, c, label), rate in rates.items() if (s, c) == (size, concurrency)}
            axis.plot(list(points), list(points.values()), marker="o", label=f"{concurrency} at a time")
        axis.axhline(1, color=OTHER_COLOUR, linewidth=1, zorder=0)
        axis.set_title(f"predict of {size}", loc="left")
        axis.set_xlabel("connections")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("calls per second, to one connection")
    axes[0][-1].legend(frameon=False)
    figure.tight_layout()
    _save(figure, path)
    pyplot.close(figure)


def balancing(figures: Mapping[tuple[str, int, str], float], path: pathlib.Path) -> None:
    """A server's load after its start, the 99th percentile through a rolling restart, and by policy."""
    pyplot = _pyplot()
    series: dict[str, dict[str, dict[int, float]]] = {"load": {}, "tail": {}}
    tails: dict[int, dict[str, dict[str, float]]] = {}
    for (kind, number, label), value in figures.items():
        if kind in series:
            series[kind].setdefault(label, {})[number] = value
        else:
            tails.setdefault(number, {}).setdefault(label, {})[kind] = value
    figure, axes = pyplot.subplots(2 + len(tails), 1, figsize=(7, 2.6 * (2 + len(tails))))
    for axis, kind in zip(axes, series, strict=False):
        axis.set_prop_cycle(color=["tab:orange", "tab:green", "tab:red"])
        for label, points in series[kind].items():
            colour = {"color": OURS_COLOUR, "linewidth": 2.5} if "ramp of" in label else {}
            scale = 1.0 if kind == "load" else 1e3
            axis.plot(list(points), [value * scale for value in points.values()], label=label, **colour)
        axis.legend(frameon=False, fontsize=7)
    axes[0].axhline(1, color=OTHER_COLOUR, linewidth=1, zorder=0)
    axes[0].set_title("rolling restart: load of a server, in terms of the mean", loc="left")
    axes[0].set_xlabel("seconds since its start")
    axes[1].set_title("rolling restart: 99th percentile of latency, in ms", loc="left")
    axes[1].set_xlabel("seconds")
    axes[1].set_yscale("log")
    for axis, (servers, policies) in zip(axes[2:], tails.items(), strict=True):
        width = 0.8 / len(policies)
        for index, (policy, values) in enumerate(policies.items()):
            ours = {"color": OURS_COLOUR} if policy == "power_of_two" else {"alpha": 0.6}
            axis.bar(
                [place + index * width for place in range(len(values))],
                [value * 1e3 for value in values.values()],
                width,
                label=policy,
                **ours,
            )
        names = list(next(iter(policies.values())))
        axis.set_xticks([place + 0.4 - width / 2 for place in range(len(names))], names, fontsize=7)
        axis.set_yscale("log")
        axis.set_title(f"{servers} servers: 99th percentile of latency, in ms", loc="left")
    axes[-1].legend(frameon=False, fontsize=7, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _save(figure, path)
    pyplot.close(figure)


def batching(figures: Mapping[tuple[str, int, str], float], path: pathlib.Path) -> None:
    """Bars of calls per second, a panel for each number of callers; needs matplotlib."""
    pyplot = _pyplot()
    panels = list(dict.fromkeys(callers for _, callers, _ in figures))
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(7, 1.5 * len(panels)), squeeze=False)
    for axis, callers in zip(axes[:, 0], panels, strict=True):
        bars = {label.strip("`"): rate for (_, number, label), rate in figures.items() if number == callers}
        colours = [OTHER_COLOUR if "recipe" in label else OURS_COLOUR for label in bars]
        drawn = axis.barh(list(bars), list(bars.values()), color=colours)
        axis.bar_label(drawn, fmt="{:,.0f}", padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        title = "one caller" if callers == 1 else f"{callers} callers"
        axis.set_title(f"{title}: calls per second, one row each", loc="left")
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.tight_layout()
    _save(figure, path)
    pyplot.close(figure)


def mnist(figures: Mapping[tuple[str, int, str], float], path: pathlib.Path) -> None:
    """Bars of the seconds that 10,000 requests take, by images in a request: a panel for each server."""
    pyplot = _pyplot()
    servers = list(dict.fromkeys(server for server, _, _ in figures))
    sizes = list(dict.fromkeys(size for _, size, _ in figures))
    labels = list(dict.fromkeys(label for _, _, label in figures))
    ours = [label for label in labels if "predict" in label]
    shades = dict(zip(ours, ("#9cc5d3", "#4f93aa", OURS_COLOUR), strict=False))
    others = dict(
        zip([x for x in labels if x not in ours], ("#8f8f8f", OTHER_COLOUR, "#e0b070"), strict=False)
    )
    figure, axes = pyplot.subplots(len(servers), 1, figsize=(8, 3.2 * len(servers)), squeeze=False)
    for axis, server in zip(axes[:, 0], servers, strict=True):
        width = 0.85 / len(labels)
        for index, label in enumerate(labels):
            values = [figures.get((server, size, label), float("nan")) for size in sizes]
            drawn = axis.bar(
                [place + index * width for place in range(len(sizes))],
                values,
                width,
                label=label.replace("`", ""),
                color={**shades, **others}[label],
            )
            axis.bar_label(drawn, fmt="%.3g", padding=1, fontsize=6)
        axis.set_xticks(
            [place + 0.425 - width / 2 for place in range(len(sizes))], [str(size) for size in sizes]
        )
        axis.set_yscale("log")
        axis.margins(y=0.15)
        axis.set_ylabel("seconds")
        axis.set_title(f"10,000 requests of digits, {server}", loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1][0].set_xlabel("images in a request")
    axes[-1][0].legend(frameon=False, fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    figure.tight_layout()
    _save(figure, path)
    pyplot.close(figure)
