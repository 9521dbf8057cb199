"""An endpoint's status as a page: versions, shares, rates, seconds, and what was decided why."""

from collections.abc import Mapping
from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .35rem .8rem .35rem 0; }
th { font-weight: 600; color: #5a6b7b; border-bottom: 1px solid #ccd5dd; } td { border-bottom: 1px solid #eef2f5; }
td.w { white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: flex; height: 1.6rem; border-radius: 4px; overflow: hidden; background: #eef2f5; margin: 1rem 0; }
.champion { background: #2f6f9f; } .candidate { background: #e08a3c; }
.dot { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .5rem; }
.bad { color: #b3261e; font-weight: 600; }
.wide { overflow-x: auto; }
@media (max-width: 40rem) {
  body { font-size: 14px; margin: 1rem auto; }
  .log tr { display: block; padding: .4rem 0; border-bottom: 1px solid #eef2f5; }
  .log tr:first-child { display: none; } .log td { display: inline; border: 0; padding: 0 .5rem 0 0; }
}
"""
BAD = ("take back", "problem")


def page(told: Mapping[str, Any]) -> str:
    """HTML that reads itself anew every two seconds; `told`: as `/-/endpoint` gives it."""
    name = escape(str(told["endpoint"]))
    if "versions" not in told:
        return _whole(name, f'<p class="bad">{escape(told["problem"])}</p>')
    parts = [f"<p>{escape(told['step'])}, {told['routers']} routers</p>", _bar(told["versions"])]
    rows = "".join(_version(of, told["seconds"]) for of in told["versions"])
    heads = ("answers", "a second", "failed", "p50 ms", "p99 ms", "mean score", "memory grew MB")
    named = "".join(f"<th class=n>{head}</th>" for head in heads)
    parts.append(
        f"<div class=wide><table><tr><th>version</th><th>run</th><th class=n>share</th>{named}</tr>{rows}</table></div>"
        f"<p>Counted since the last decision, {told['seconds']:.0f} s ago.</p>"
    )
    rows = "".join(_decision(of) for of in told["decisions"])
    parts.append(
        "<h2>Decisions</h2><table class=log><tr><th>when (UTC)</th><th>what</th><th>version</th><th class=n>share</th>"
        f"<th>why</th><th>who</th></tr>{rows}</table>"
        if rows
        else "<p>Nothing was decided since the first version answers.</p>"
    )
    return _whole(name, "".join(parts))


def _whole(name: str, body: str) -> str:
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title>"
        f'<meta http-equiv="refresh" content="2"><style>{STYLE}</style></head><body><h1>{name}</h1>{body}</body></html>'
    )


def _bar(versions: list[dict[str, Any]]) -> str:
    parts = "".join(f'<div class="{of["role"]}" style="width:{100 * of["share"]:.2f}%"></div>' for of in versions)
    return f'<div class="bar">{parts}</div>'


def _version(of: Mapping[str, Any], seconds: float) -> str:
    rate = of["answers"] / seconds if seconds else 0.0
    numbers = [f"{of['answers']:,}", f"{rate:.1f}", f"{of['failed']:,}"]
    numbers += ["" if of[key] is None else f"{of[key]:.1f}" for key in ("p50_ms", "p99_ms")]
    numbers += ["" if of["mean_score"] is None else f"{of['mean_score']:.4g}", f"{of['grown_mb']:.0f}"]
    cells = "".join(f"<td class=n>{number}</td>" for number in numbers)
    dot = f'<span class="dot {of["role"]}"></span>'
    run = f"{of['run']} on vllm" if of.get("engine") == "vllm" else str(of["run"])
    return (
        f"<tr><td>{dot}{of['version']} ({of['role']})</td><td>{escape(run)}</td>"
        f"<td class=n>{of['share']:.0%}</td>{cells}</tr>"
    )


def _decision(of: Mapping[str, Any]) -> str:
    when, bad = escape(of["at"][:19].replace("T", " ")), " bad" if of["what"] in BAD else ""
    share = "" if of.get("share") is None else f"{of['share']:.0%}"
    version = "" if of.get("version") is None else of["version"]
    return (
        f'<tr><td class=w>{when}</td><td class="w{bad}">{escape(of["what"])}</td><td>{version}</td>'
        f"<td class=n>{share}</td><td>{escape(of['why'])}</td><td>{escape(of['by'])}</td></tr>"
    )
