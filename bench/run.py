"""Run every benchmark: print its tables, and write them to bench/results/.

    python bench/run.py                  all of them, about an hour
    python bench/run.py predict import   only these
    python bench/run.py --quick          see that all of them run; writes nothing

Plots need matplotlib, the peers TensorFlow; what is not installed is left out and said. The exit code is
1 if a goal was missed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pathlib
import subprocess
import sys

from harness import HERE, RESULTS, Options, Report, machine

#: Benchmarks that make a `Report`, in the order in which they run.
REPORTING = (
    "import",
    "cold_start",
    "predict",
    "resilience",
    "blocking",
    "connections",
    "balancing",
    "batching",
    "peers",
    "mnist",
    "scaling",
    "jobs",
)
#: Benchmarks with a `main` of their own, which print a table and give 1 if they missed a goal.
PRINTING = tuple(
    sorted({path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py")} - set(REPORTING))
)
#: What a quick run sets their constants to, where they have them.
QUICK = {"ROUNDS": 1, "CALLS": 10, "BUDGET": 0.0, "TURN": 0.0, "FEWEST": 1}


def run_printing(name: str, options: Options) -> tuple[str, bool]:
    """The output of a benchmark that prints its own table, and whether it met its goals."""
    script = ["import sys", f"sys.path.insert(0, {str(HERE)!r})"]
    if not options.tensorflow:
        script.append("sys.modules['tensorflow'] = None")  # as if it were not installed
    script.append(f"import bench_{name} as bench")
    if options.quick:
        script += [f"if hasattr(bench, {key!r}): bench.{key} = {value!r}" for key, value in QUICK.items()]
    script.append("print((bench.__doc__ or '').partition(chr(10))[0], end=chr(10) * 2)")
    script.append("sys.exit(bench.main())")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(f"bench_{name} ended with code {done.returncode}")
    words, _, table = done.stdout.strip().partition("\n\n")
    if "\n| " not in table:
        table = f"```\n{table}\n```"
    title = name.replace("_", " ").capitalize()
    return f"# {title}\n\n{words}\n\n{table}\n\n{machine()}\n", done.returncode == 0


def draw(report: Report, folder: pathlib.Path) -> str | None:
    """Draw a report's figures, if there is a plot for them; gives the file's name."""
    if not report.figures:
        return None
    if importlib.util.find_spec("matplotlib") is None:
        print("(matplotlib is not installed: no plot)\n")
        return None
    import plots

    plot = getattr(plots, report.name, None)
    if plot is None:
        return None
    path = folder / f"{report.name}.svg"
    plot(report.figures, path)
    return path.name


def main(arguments: list[str] | None = None) -> int:
    everything = (*REPORTING, *PRINTING)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"which ones: {', '.join(everything)}; all if not given")
    parser.add_argument("--results", type=pathlib.Path, help="folder to write to; bench/results if not given")
    Options.add_arguments(parser)
    found = parser.parse_args(arguments)
    for name in found.names:
        if name not in everything:
            parser.error(f"no benchmark {name!r}: there are {', '.join(everything)}")
    options = Options.from_namespace(found)
    folder: pathlib.Path | None = found.results or (None if options.quick else RESULTS)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    met = True
    goals: list[str] = []
    for name in found.names or everything:
        if name in PRINTING:
            text, good = run_printing(name, options)
            goals.append(f"| {name} | see its table | | {'met' if good else 'MISSED'} |")
        else:
            report: Report = importlib.import_module(f"bench_{name}").run(options)
            plot = None if folder is None else draw(report, folder)
            text = report.markdown()
            if plot is not None:
                text += f"\n![{report.title}]({plot})\n"
            good = all(bar.met for bar in report.bars)
            goals += [f"| {name}: {str(bar).removeprefix('| ')}" for bar in report.bars]
        met = met and good
        print(text, flush=True)
        if folder is not None:
            (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print("| goal | | measured | |\n| --- | --- | --- | --- |")
    print("\n".join(goals))
    return 0 if met or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
