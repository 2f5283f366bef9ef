"""What a report looks like: its style sheet, light and dark, from a phone's width up, and its tables."""

from __future__ import annotations

from collections.abc import Iterable

# Of the runs' colours no two look alike to the colour-blind (Okabe and Ito's palette, darker or lighter where the
# background asks for it).
STYLE = """
:root{--back:#fff;--text:#1c1e21;--soft:#59606a;--line:#d3d7dd;--code:#f4f5f7;
--run0:#0072b2;--run1:#d55e00;--run2:#007f5f;--run3:#b3528e;--run4:#8a6d00;--run5:#444b54}
@media(prefers-color-scheme:dark){:root{--back:#16181c;--text:#e4e7eb;--soft:#a3abb6;--line:#3a4048;--code:#20242a;
--run0:#56b4e9;--run1:#ff9a4d;--run2:#3fd6ab;--run3:#e79ccb;--run4:#f0e442;--run5:#c9ced6}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1rem;
background:var(--back);color:var(--text)}
h1{font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere}h2{font-size:1.15rem;margin-top:2rem}
.soft,small,figcaption{color:var(--soft)}small,figcaption{font-size:.8rem}
.legend{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.3rem 1.5rem}.legend small{overflow-wrap:anywhere}
.swatch{width:2.2rem;height:.5rem;vertical-align:middle}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse}td,th{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:right;
font-weight:400;font-variant-numeric:tabular-nums}th[scope=col]{font-weight:600;min-width:7rem}
th[scope=row]{text-align:left;position:sticky;left:0;background:var(--back);min-width:8rem;max-width:40vw;
overflow-wrap:break-word}td{white-space:nowrap}
td[colspan="2"],th[colspan="2"]{text-align:center}.kind th{font-weight:600;padding-top:.8rem}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1rem;margin:1rem 0}
figure{margin:0;min-width:0}
figure h3{font-size:.95rem;margin:0;overflow-wrap:anywhere}figure svg{width:100%;height:auto}
.pictures td,.pictures th{text-align:left;vertical-align:top;border:0;padding:.15rem .3rem}
.pictures th[scope=col]{min-width:0;max-width:9rem;font-size:.85rem;vertical-align:bottom}
.pictures img{display:block;width:clamp(5.5rem,18vw,9rem);outline:1px solid var(--line)}
.pixels{image-rendering:pixelated}
@media(max-width:30rem){td,th{padding:.25rem .4rem}td{white-space:normal}th[scope=col]{min-width:6rem}}
details{margin:1rem 0}summary{cursor:pointer}pre{padding:1rem;overflow:auto;background:var(--code)}
"""


def table(rows: Iterable[str], kind: str = "") -> str:
    """A table that scrolls by itself where the screen is narrower; `kind` is its class in the style sheet."""
    return f"<div class=scroll tabindex=0><table{f' class={kind}' if kind else ''}>{''.join(rows)}</table></div>"
