#!/usr/bin/env python3
"""Writes the figures of bench/*.json into docs/comparison.md, between its two marks; `make bench` and `make docs` call it."""
import json
import pathlib

BEGIN, END = "<!-- figures: hack/figures.py -->", "<!-- end of figures -->"
root = pathlib.Path(__file__).resolve().parent.parent


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


lines = ["| what | skiff | beside it | asked for |", "|---|---|---|---|"]
first = ("start", "user", "pods", "api")
for path in sorted((root / "bench").glob("*.json"), key=lambda p: (p.stem not in first, p.stem)):
    for f in json.loads(path.read_text()):
        peer = f"{number(f['peer'])} {f['unit']} ({f['peer_name']})" if f["peer"] is not None else ""
        lines.append(f"| {f['what']} | {number(f['ours'])} {f['unit']} | {peer} | {f['target'] or ''} |")
page = root / "docs" / "comparison.md"
before, rest = page.read_text().split(BEGIN)
after = rest.split(END)[1]
page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")
