"""Times flowkit beside plain PyTorch and other libraries, with the error of what each computed.

    python -m benchmarks                       # all workloads: tables on the screen, results kept
    python -m benchmarks spline glow           # some of them
    python -m benchmarks --threads 2           # two threads, timed by the clock on the wall
    python -m benchmarks --quick               # fewer repetitions, and not what takes many seconds
    python -m benchmarks --write               # and puts tables and plots into docs/performance.md
    python -m benchmarks --write --saved       # from the results kept, without measuring
    python -m benchmarks --tiny                # the sizes of the tests: to see that everything runs

Every workload runs in a process of its own. The fits of whole densities are benchmarks of another kind:
`python -m benchmarks.densities` and `python -m benchmarks.tabular`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path

from benchmarks import report
from benchmarks.measure import Contract
from benchmarks.workloads import WORKLOADS, run


def main() -> None:
    """Measure, print, keep, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", metavar="workload", help=f"of {', '.join(WORKLOADS)}; none for all")
    parser.add_argument(
        "--cells", default="", metavar="TEXT", help="only cells with this in their name; nothing is kept"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, help="of repetitions for each contestant in each cell; 1, or with --quick 0.4"
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, and not what takes many seconds")
    parser.add_argument("--tiny", action="store_true", help="the sizes of the tests")
    parser.add_argument("--results", type=Path, help=f"folder that keeps results; of whole runs, {report.SAVED}")
    parser.add_argument("--saved", action="store_true", help="measure nothing, take the results kept")
    parser.add_argument("--write", action="store_true", help="put tables and plots into docs/performance.md")
    options = parser.parse_args()
    unknown = [name for name in options.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"no workload {unknown[0]!r}; there are {', '.join(WORKLOADS)}")
    whole = not options.tiny and not options.cells
    if options.write and not whole:
        parser.error("--write puts whole workloads of full size on the page: neither --tiny nor --cells")
    folder = options.results or (report.SAVED if whole else None)
    if options.saved and folder is None:
        parser.error("--saved wants --results where results are not of whole runs")

    seconds = options.seconds or (0.4 if options.quick else 1.0)
    contract = Contract(options.tiny, options.quick, seconds, threads=options.threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which measures memory, tells of every start
    results = []
    for workload in options.workloads or WORKLOADS:
        if options.saved:
            result = report.load(workload, options.threads, folder)
        else:
            # A process of its own: neither the compiler's state nor what one library does to torch meets the next.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                result = pool.apply(run, (workload, contract, options.cells))
            if folder is not None:
                report.save(result, folder)
        if result is not None:
            results.append(result)
            print(f"## {result['title']}\n\n{report.tables(result)}\n\n{report.taken_with(result)}\n", flush=True)
    if options.write:
        report.write_page(results)


if __name__ == "__main__":
    main()
