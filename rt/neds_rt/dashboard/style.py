"""Colours and the style sheet of the page. Light, so that it can be read beside a rig's screens."""

from __future__ import annotations

GREEN, RED, AMBER, GREY, BLUE = "#1a7f4b", "#c62828", "#b26a00", "#5f6b7a", "#0072b2"
INK, PAPER, CARD, RULE = "#1f2933", "#f3f5f7", "#ffffff", "#d9dee4"
# Told apart by those who do not see all colours (Okabe and Ito).
LINES = (BLUE, "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444", "#8c6d31")
SHADES = {"warming up": AMBER}  # of stretches that are not valid; all others are red
RASTER = ("#ffffff", "#a3b8d3", "#5b7fae", "#2f5790", "#123a6e", "#06234a")

PAGE = f"""{{% extends base %}}
{{% block preamble %}}
<style>
  html, body {{ margin: 0; background: {PAPER}; }}
</style>
{{% endblock %}}
"""

# Inside of every block of text; Bokeh keeps each in a shadow root of its own.
TEXT = f"""
:host {{ font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: {INK}; }}
.bk-clearfix {{ width: 100%; display: block !important; }}
.banner {{ display: flex; align-items: center; justify-content: space-between; gap: 24px;
  padding: 10px 22px; border-radius: 8px; color: #fff; }}
.banner .word {{ font-size: 30px; font-weight: 700; letter-spacing: 0.3px; line-height: 1.15; }}
.banner .since {{ font-size: 15px; opacity: 0.92; margin-top: 2px; }}
.banner .facts {{ font-size: 13px; line-height: 1.5; text-align: right; opacity: 0.95; }}
.card {{ background: {CARD}; border: 1px solid {RULE}; border-radius: 8px; padding: 10px 14px; }}
.card h2 {{ font-size: 13px; font-weight: 600; margin: 0 0 6px; color: {GREY}; }}
.figures {{ display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px 12px; }}
.figures .name {{ font-size: 12px; color: {GREY}; }}
.figures .value {{ font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums; }}
.figures .bad {{ color: {RED}; }}
.figures .none {{ color: #9aa5b1; font-weight: 400; }}
table {{ width: 100%; border-collapse: collapse; font-size: 13px;
  font-variant-numeric: tabular-nums; }}
th {{ text-align: right; font-weight: 500; color: {GREY}; padding: 2px 0 2px 10px; }}
td {{ text-align: right; padding: 2px 0 2px 10px; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
tr.whole td {{ font-weight: 700; border-top: 1px solid {RULE}; }}
.probe {{ display: flex; justify-content: space-between; align-items: baseline; gap: 12px;
  border-left: 6px solid {GREEN}; padding: 5px 10px; margin-top: 6px; background: #f2f8f4;
  border-radius: 4px; font-size: 13px; }}
.probe .name {{ font-weight: 700; font-size: 15px; overflow-wrap: anywhere; }}
.probe .state {{ font-weight: 600; }}
.probe .more {{ color: {GREY}; text-align: right; }}
.probe.waiting {{ border-color: {AMBER}; background: #fff6e5; }}
.probe.silent {{ border-color: #7f0000; background: {RED}; color: #fff; }}
.probe.silent .more {{ color: #fff; }}
.list {{ font-size: 13px; line-height: 1.55; }}
.list .bad {{ color: {RED}; font-weight: 600; }}
.list .dim {{ color: {GREY}; }}
"""
