"""Bar charts as SVG, readable on light and dark pages: one per workload, bars as multiples of the best."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from benchmarks import tables

if TYPE_CHECKING:
    from benchmarks.results import Result, Run

WIDTH, LEFT, RIGHT, ROW, TOP = 780, 290, 130, 24, 78

# The page's scheme decides; both sets keep a contrast of at least 4.5 to 1 for text on white and on GitHub's dark.
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 15px; }
.small { font-size: 11px; fill: #59636e; }
.ours { font-weight: 600; }
.bar { fill: #8c959f; }
.bar.mine { fill: #0969da; }
.spread { stroke: #1f2328; stroke-width: 1.5; }
.axis { stroke: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .small { fill: #9198a1; }
  .bar { fill: #656c76; }
  .bar.mine { fill: #4493f8; }
  .spread { stroke: #f0f6fc; }
  .axis { stroke: #3d444d; }
}
"""


def chart(run: Run, workload: str) -> str | None:
    """The chart of one workload, or None where a bar would say nothing."""
    results = [result for result in run.of(workload) if result.samples]
    if len(results) < 2 or results[-1].best <= 0:
        return None
    described = run.workloads[workload]
    longest = max(result.worst for result in results)
    scale = (WIDTH - LEFT - RIGHT) / longest
    height = TOP + ROW * len(results) + 12
    about = f"{run.started[:10]}, {run.machine['python']}, {run.machine['cpu']}"
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(described["title"])}">'
        ),
        f"<style>{STYLE}</style>",
        f'<text class="title" x="8" y="20">{escape(described["title"])}</text>',
        (
            f'<text class="small" x="8" y="38">{escape(described["unit"])}; less is better; '
            "the line reaches to the worst round</text>"
        ),
        f'<text class="small" x="8" y="54">{escape(about)}</text>',
        f'<line class="axis" x1="{LEFT}" y1="{TOP - 8}" x2="{LEFT}" y2="{height - 8}"/>',
    ]
    for i, result in enumerate(results):
        parts += _bar(run, result, TOP + i * ROW, scale, tables.base(run, workload))
    return "\n".join([*parts, "</svg>", ""])


def _bar(run: Run, result: Result, y: int, scale: float, base: float) -> list[str]:
    ours = run.peers.get(result.peer, {}).get("ours", "asyncserver" in result.peer or "compat" in result.peer)
    best, worst = result.best * scale, result.worst * scale
    middle = y + ROW // 2 - 2
    label = f"{result.best / base:.2f} x  ({tables.number(result.best)})"
    return [
        (
            f'<text class="{"ours" if ours else "peer"}" x="{LEFT - 8}" y="{middle + 4}" text-anchor="end">'
            f"{escape(tables.title(run, result.peer))}</text>"
        ),
        (
            f'<rect class="bar{" mine" if ours else ""}" x="{LEFT}" y="{y}" width="{max(best, 1):.1f}" '
            f'height="{ROW - 6}" rx="2"/>'
        ),
        f'<line class="spread" x1="{LEFT + best:.1f}" y1="{middle}" x2="{LEFT + worst:.1f}" y2="{middle}"/>',
        f'<text class="small" x="{LEFT + worst + 8:.1f}" y="{middle + 4}">{label}</text>',
    ]
