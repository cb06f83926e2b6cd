"""What a campaign prints: a line for each fault when it is found, and at the end a line for each group of cases."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """A case that ran.

    Attributes:
        number: number of the case, which repeats it together with the seed.
        group: what is counted together, such as a verb.
        faults: a line for each fault.
        counts: what else to count, by its name in the plural, such as "kills".
        peak: largest resident memory of its commands, bytes; 0 if it was not measured.
    """

    number: int
    group: str
    faults: list[str]
    counts: Mapping[str, int] = field(default_factory=dict)
    peak: int = 0


def report_cases(cases: Iterable[Case], seed: int, minutes: float | None = None) -> bool:
    """Runs cases and prints their faults, then the figures of each group and of all together.

    Args:
        cases: runs one case after the other.
        seed: seed of the cases.
        minutes: begin no other case after this time. Ctrl-C has the same effect.

    Returns:
        Whether a case had a fault.
    """
    started, last = time.monotonic(), ""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    most, longest, before = 0, 0.0, started
    try:
        for case in cases:
            now = time.monotonic()
            longest, before, most = max(longest, now - before), now, max(most, case.peak)
            groups[case.group].update({"cases": 1, **case.counts, "with a fault": int(bool(case.faults))})
            for fault in case.faults:
                print(f"case {case.number}, {case.group}: {fault}", flush=True)
            last = f", the last one {case.number}"
            if minutes is not None and now - started > 60 * minutes:
                break
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    total = Counter({"cases": 0, "with a fault": 0})
    for group, counts in sorted(groups.items()):
        print(f"{group}: {_describe(counts)}")
        total.update(counts)
    peak = f"; at most {most / 1e9:.1f} GB" if most else ""
    print(f"all (seed {seed}{last}): {_describe(total)}; at most {longest:.0f} s a case{peak}", flush=True)
    return bool(total["with a fault"])


def _describe(counts: Mapping[str, int]) -> str:
    names = ["cases", *(name for name in counts if name not in ("cases", "with a fault")), "with a fault"]
    return ", ".join(f"{counts[name]} {name}" for name in names if name in counts)
