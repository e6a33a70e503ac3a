"""The style of the page: one column, quiet colours, digits of equal width in tables, for light and dark and paper."""

# Colours by name; the style sheet calls them var(--name). g0 is for the base of a task, g1 … are for other groups, and
# rest is for groups that are too many to tell apart. heat is the colour of a full share: text in the colour ink can be
# read on it, and on any mixture of it with the colour card. The colours in DARK are lighter, and equally far apart.
LIGHT = {
    "page": "#fcfbf9",
    "card": "#ffffff",
    "ink": "#1f2429",
    "soft": "#5f676f",
    "line": "#dcdad5",
    "good": "#00695c",
    "bad": "#a8400a",
    "g0": "#5c6670",
    "g1": "#0072b2",
    "g2": "#d55e00",
    "g3": "#00855f",
    "g4": "#a3498b",
    "g5": "#b07d00",
    "g6": "#2f95c9",
    "rest": "#878d93",
    "heat": "#4f9fd0",
}
DARK = {
    "page": "#15181b",
    "card": "#1c2024",
    "ink": "#e4e7ea",
    "soft": "#9aa3ac",
    "line": "#3a4148",
    "good": "#4fd1b5",
    "bad": "#ff9d66",
    "g0": "#b3bcc5",
    "g1": "#5ab4ee",
    "g2": "#ff9248",
    "g3": "#35c79b",
    "g4": "#e291c8",
    "g5": "#e8bb35",
    "g6": "#a5d8ff",
    "rest": "#7c858d",
    "heat": "#2273b0",
}


def _variables(colors: dict[str, str]) -> str:
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


STYLE = (
    f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
"""
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: clamp(1.5rem, 1.1rem + 1.8vw, 2.2rem); line-height: 1.2; letter-spacing: -0.015em;
  margin: 0 0 1.5rem; text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3.25rem 0 1rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 2rem 0 0.6rem; }
p, ul { max-width: 46rem; margin: 0.6rem 0; }
ul { padding-left: 1.2rem; }
li { margin: 0.25rem 0; }
code { font: 0.86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.missing { border-left: 3px solid var(--bad); padding-left: 1rem; margin: 0 0 1.5rem; }
.verdicts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1rem;
  align-items: start; }
.pair { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem; }
.pair h3 { margin: 0 0 0.5rem; }
.pair h3 span, .interval, .caveat { color: var(--soft); font-weight: 400; }
.pair ul { list-style: none; padding: 0; margin: 0; max-width: none; }
.pair li { margin: 0; padding: 0.45rem 0; border-top: 1px solid var(--line); }
.pair li:first-child { border-top: 0; }
.pair .caveat { margin: 0.5rem 0 0; font-size: 0.9rem; }
.delta { font-weight: 650; white-space: nowrap; }
.verdict { font-weight: 650; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.open { color: var(--soft); }
.delta, .interval, td, svg { font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19.5rem), 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 0.8rem 0.9rem 0.6rem; max-width: 27rem; }
figcaption { font-size: 0.9rem; font-weight: 600; margin-bottom: 0.4rem; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }
figure text { fill: var(--ink); }
figure.broad { grid-column: 1 / -1; overflow-x: auto; max-width: calc(1.15 * var(--natural) + 2rem); }
figure.broad svg { min-width: calc(0.8 * var(--natural)); }
.part { margin: 0.5rem 0 0.2rem; padding-top: 0.6rem; border-top: 1px solid var(--line); }
.part, .note { color: var(--soft); font-size: 0.9rem; }
.note { margin: 0.6rem 0 1.6rem; }
.table { overflow-x: auto; margin: 0.6rem 0 1rem; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: 0.87rem; }
th, td { text-align: left; vertical-align: top; padding: 0.5rem 0.7rem; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; min-width: 8rem; }
td { white-space: nowrap; }
table .long.long { white-space: normal; min-width: 12rem; }
table.numeric td, table.numeric thead th + th { text-align: right; }
details > summary { cursor: pointer; color: var(--soft); margin: 1rem 0; }
@media (min-width: 48rem) { table:not(.numeric) tbody th { white-space: nowrap; } }
@media (max-width: 30rem) { main { padding: 1.5rem 1rem 3rem; } .pair, figure { padding: 0.75rem 0.8rem; } }
@media print {
  @page { margin: 16mm; }
  body { background: none; font-size: 10pt; }
  main { max-width: none; padding: 0; }
  .pair, figure, .table { background: none; }
  .plots { grid-template-columns: 1fr 1fr; }
  .table, figure.broad { overflow: visible; }
  figure.broad svg { min-width: 0; }
  table { font-size: 8pt; }
  td { white-space: normal; }
  th, td { padding: 0.25rem 0.4rem; }
  figure, .pair, tr { break-inside: avoid; }
  h1, h2, h3 { break-after: avoid; }
  details > summary { list-style: none; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
}
"""
    + f"@media print {{ :root {{ color-scheme: light; {_variables(LIGHT)} }} }}\n"
)
