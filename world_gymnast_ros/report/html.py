"""Pieces of a page: style, sections, images and film strips, table rows with intervals."""
from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from world_gymnast_ros.adaptation.log import Strip, StripKind
from world_gymnast_ros.report.charts import interval_bar
from world_gymnast_ros.statistics import Interval
from world_gymnast_ros.types import U8

BEFORE, AFTER = "#7a8fa6", "#0b6e4f"
FRAME_PX = 256
"""A frame of a strip is stored at least this wide; a small one is enlarged by a whole factor, without blurring it."""
CAPTURED_PX = 640

STYLE = """
:root{color-scheme:light;--ink:#1d2329;--quiet:#5c6670;--line:#dfe3e7;--paper:#fff;--wash:#f5f7f8}
*{box-sizing:border-box}body{margin:0;background:var(--wash);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 20px 60px}h1{font-size:1.7rem;margin:.1em 0 .3em;line-height:1.2}
h1.yes,h1.no,h1.open{font-size:1.3rem;border-left:8px solid #9a6700;padding:.1em 0 .1em .6em}
h1.yes{border-color:#0b6e4f}h1.no{border-color:#5c6670}.red{color:#b3261e}h1.red{border-color:#b3261e}
h2{font-size:1.15rem;margin:0 0 .6em}section{background:var(--paper);border:1px solid var(--line);
border-radius:8px;padding:18px 20px;margin:16px 0}.verdict{font-size:1.12rem;margin:.2em 0}
.quiet,figcaption{color:var(--quiet);
font-size:.88rem}.two{display:grid;grid-template-columns:minmax(0,5fr) minmax(0,7fr);
gap:20px;align-items:start}figure{margin:0}img{display:block;width:100%;height:auto;border-radius:3px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px;margin:0}
.tiles div{background:var(--wash);border-radius:6px;padding:8px 12px}.tiles dt{color:var(--quiet);font-size:.82rem}
.tiles dd{margin:0;font-size:1.25rem;font-weight:600}.strip{margin:0 0 16px}.strip h3{font-size:.95rem;margin:0}
.video{display:grid;grid-template-columns:repeat(5,minmax(128px,1fr));gap:6px;margin-top:5px}
.video b{display:block;height:5px;background:var(--line);margin-top:3px}
.video b i{display:block;height:100%;background:#0b6e4f}.video span{font-size:.72rem;color:var(--quiet)}
svg{width:100%;height:auto;display:block}svg text{font-size:12px;fill:#5c6670}.grid{stroke:#dfe3e7;stroke-width:1}
svg.share{height:18px;border-radius:4px}
svg.interval{width:200px}.scroll td{white-space:nowrap}.legend span{margin-right:16px;font-size:.85rem;
white-space:nowrap;display:inline-block}.legend i{display:inline-block;width:10px;height:10px;margin-right:5px}
.legend{margin:.5em 0 0}.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:6px 10px 6px 0;border-bottom:1px solid var(--line);vertical-align:middle}
th{color:var(--quiet);font-weight:500}
@media(max-width:640px){main{padding:12px 10px 40px}.two{grid-template-columns:1fr}section{padding:14px}
.video{grid-template-columns:repeat(2,minmax(128px,1fr))}h1{font-size:1.35rem}.verdict{font-size:1.02rem}
.tiles{grid-template-columns:repeat(2,minmax(0,1fr))}svg.interval{display:none}table{font-size:.85rem}
svg text{font-size:21px}}
"""


def section(title: str, *parts: str) -> str:
    """Return a section of the page."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def quiet(text: str) -> str:
    """Return a paragraph of small print, nothing for no text."""
    return f"<p class='quiet'>{escape(text)}</p>" if text else ""


def percent(value: float) -> str:
    """Return a share in percent."""
    return f"{100 * value:.0f} %"


def png(rgb: U8, max_width: int = FRAME_PX, aspect: float | None = None) -> str:
    """Return an image as a data URL: shrunk to `max_width` where wider, and enlarged to at least `FRAME_PX` where
    narrower, each pixel to a block of its own. `aspect`: width by height that it was squashed from, to undo that.
    """
    image = Image.fromarray(np.ascontiguousarray(rgb))
    if image.width > max_width:
        image = image.resize((max_width, round(image.height * max_width / image.width)), Image.Resampling.BOX)
    width = image.width * -(-min(FRAME_PX, max_width) // image.width)
    height = round(width / aspect) if aspect else image.height * width // image.width
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _of(interval: Interval) -> str:
    return f"{round(interval.value * interval.n)} of {interval.n}"


def strip_html(strip: Strip) -> str:
    """Return a strip of frames with their scores; the first is the camera's own frame, where it is known, and what was
    made of that stands beside it."""
    first = strip.captured
    frames = [*strip.frames[:1], *strip.frames] if strip.kind is StripKind.VARIED else [*strip.frames]
    aspect = None if first is None else first.shape[1] / first.shape[0]
    cells = []
    for i, frame in enumerate(frames):
        score = ""
        if strip.scores is not None:
            s = min(1.0, max(0.0, float(strip.scores[i])))
            score = f"<b><i style='width:{100 * s:.0f}%'></i></b><span>{s:.2f}</span>"
        seen = png(frame, CAPTURED_PX, aspect) if i or first is None else png(first, CAPTURED_PX)
        caption = "where it began" if first is not None and not i else f"frame {i + 1} of {len(frames)}"
        cells.append(f"<div><img src='{seen}' alt='{caption}'>{score}</div>")
    return (f"<div class='strip'><h3>{escape(strip.title)}</h3><span class='quiet'>{escape(strip.note)}</span>"
            f"<div class='video'>{''.join(cells)}</div></div>")


def interval_row(name: str, interval: Interval, colour: str) -> str:
    """Return a table row of successes with their interval, in figures and drawn."""
    return (f"<tr><th>{escape(name)}</th><td>{_of(interval)}</td><td>{percent(interval.value)} "
            f"[{percent(interval.low)}, {percent(interval.high)}]</td>"
            f"<td>{interval_bar(interval.low, interval.value, interval.high, colour)}</td></tr>")


def page(title: str, body: str) -> str:
    """Return a whole page that needs nothing else."""
    return ("<!doctype html><html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width,initial-scale=1'>"
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n")
