"""The page that ``saltlm inspect --html`` writes: style and script are inline, and its policy forbids network access."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>@TITLE@</title>
<style>
body { font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; color: #1d2530; background: #fbfbfa; margin: 0 auto;
  max-width: 72rem; padding: 1rem; }
h1 { font-size: 1.35rem; margin: .5rem 0; overflow-wrap: anywhere; }
.cards { display: flex; flex-wrap: wrap; gap: .5rem; padding: 0; list-style: none; }
.cards li { background: #fff; border: 1px solid #dcdfe3; border-radius: .4rem; padding: .35rem .7rem; }
.cards span, .muted { color: #5a6470; }
.note { background: #fff6dc; border-left: 4px solid #d9a400; padding: .4rem .7rem; }
form { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; position: sticky; top: 0; background: #fbfbfa;
  padding: .6rem 0; z-index: 1; }
input, select, button { font: inherit; padding: .3rem .5rem; border: 1px solid #b9c0c8; border-radius: .3rem;
  background: #fff; }
input[type=search] { flex: 1 1 16rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: #fff; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e6e8eb; vertical-align: top; }
th button { border: 0; background: none; font-weight: 600; padding: 0; cursor: pointer; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
.t { font-family: ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.t button { border: 0; background: none; padding: 0; color: #0b5394; cursor: pointer; text-align: left; font: inherit; }
td.d { background: #f4f7fa; }
.d table { width: auto; margin: .3rem 0; }
.bar { display: inline-block; height: .6rem; background: #4a86c5; vertical-align: middle; }
.bar.minus { background: #c8553d; }
:focus-visible { outline: 2px solid #0b5394; outline-offset: 1px; }
</style>
</head>
<body>
<h1>@TITLE@</h1>
@FACTS@
<form id="form">
<input type="search" id="search" placeholder="token, or #id" aria-label="search tokens">
<select id="origin" aria-label="origin"><option value="">every origin</option></select>
<button type="button" id="back">&lsaquo; back</button>
<span id="place" class="muted" aria-live="polite"></span>
<button type="button" id="on">on &rsaquo;</button>
</form>
<div class="wide"><table><thead><tr id="head"></tr></thead><tbody id="body"></tbody></table></div>
<noscript><p class="note">The table needs JavaScript; saltlm inspect --json has the same data.</p></noscript>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), PAGE = 50;
const TEXT = 0, ORIGIN = 1, RULE = 2, STATUS = 3, SOURCE = 4, SUPPORT = 5, RANK = 6, RESIDUAL = 7, NORM = 8, MAP = 9, IDS = 10,
  WEIGHTS = 11, MORE = 12;
const columns = [["id", -1], ["token", TEXT], ["origin", ORIGIN], ["made by", RULE], ["status", STATUS], ["from", SUPPORT],
  ["residual", RESIDUAL], ["norm", NORM]];
const make = (name, text, kind) => {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
};
const search = document.getElementById("search"), origin = document.getElementById("origin");
const body = document.getElementById("body"), place = document.getElementById("place");
let order = -1, down = false, start = 0, shown = [];
data.names.origins.forEach((name, code) => { const one = make("option", name); one.value = code; origin.append(one); });
const heads = columns.map(([name, key]) => {
  const cell = make("th", undefined, key >= SUPPORT || key < 0 ? "n" : ""), button = make("button", name);
  button.addEventListener("click", () => { down = order === key ? !down : key >= SUPPORT; order = key; filter(); });
  cell.append(button);
  document.getElementById("head").append(cell);
  return cell;
});
function filter() {
  const wanted = search.value.trim().toLowerCase().replaceAll(" ", "\\u2581"), id = /^#(\\d+)$/.exec(wanted);
  shown = [];
  data.rows.forEach((row, index) => {
    if (origin.value !== "" && row[ORIGIN] !== +origin.value) return;
    if (id ? index === +id[1] : row[TEXT].toLowerCase().includes(wanted)) shown.push(index);
  });
  if (wanted && !id && order < 0 && !down) {
    const bare = text => text.replace(/^\\u2581/, "").toLowerCase().length;
    shown.sort((a, b) => bare(data.rows[a][TEXT]) - bare(data.rows[b][TEXT]) || a - b);
  } else {
    const value = index => order < 0 ? index : data.rows[index][order];
    shown.sort((a, b) => {
      const x = value(a), y = value(b), sign = x < y || (x === null && y !== null) ? -1 : x === y ? 0 : 1;
      return (down ? -sign : sign) || a - b;
    });
  }
  heads.forEach((cell, at) => cell.setAttribute("aria-sort",
    columns[at][1] !== order ? "none" : down ? "descending" : "ascending"));
  start = 0;
  draw();
}
function draw() {
  body.replaceChildren();
  for (const index of shown.slice(start, start + PAGE)) {
    const row = data.rows[index], line = make("tr"), token = make("td", undefined, "t");
    const open = make("button", row[TEXT] || "(no token)");
    open.setAttribute("aria-expanded", "false");
    open.addEventListener("click", () => toggle(line, open, index));
    token.append(open);
    line.append(make("td", index, "n"), token, make("td", data.names.origins[row[ORIGIN]]),
      make("td", data.names.rules[row[RULE]]), make("td", row[STATUS] ? data.names.statuses[row[STATUS]] : ""),
      make("td", row[SUPPORT] || "", "n"), make("td", row[RANK] ? row[RESIDUAL] : "", "n"), make("td", row[NORM], "n"));
    body.append(line);
  }
  const end = Math.min(start + PAGE, shown.length);
  place.textContent = shown.length ? `${start + 1} to ${end} of ${shown.length}` : "no token matches";
  document.getElementById("back").disabled = !start;
  document.getElementById("on").disabled = end >= shown.length;
}
function toggle(line, open, index) {
  if (open.getAttribute("aria-expanded") === "true") {
    open.setAttribute("aria-expanded", "false");
    line.nextSibling.remove();
    return;
  }
  open.setAttribute("aria-expanded", "true");
  const row = data.rows[index], more = make("tr"), cell = make("td", undefined, "d");
  cell.colSpan = columns.length;
  if (row[SOURCE] >= 0) cell.append(make("div", `source token ${data.source[row[SOURCE]]} #${row[SOURCE]}`));
  if (row[RANK]) cell.append(make("div", `rank ${row[RANK]}, residual ${row[RESIDUAL]}`));
  if (row[MAP]) cell.append(make("div", `weight of the map of all anchors ${row[MAP]}`));
  if (row[IDS].length) {
    const table = make("table"), most = Math.max(...row[WEIGHTS].map(Math.abs)) || 1;
    row[IDS].forEach((source, at) => {
      const part = make("tr"), weight = row[WEIGHTS][at], bar = make("span", undefined, weight < 0 ? "bar minus" : "bar");
      bar.style.width = `${8 * Math.abs(weight) / most}rem`;
      const picture = make("td");
      picture.append(bar);
      part.append(make("td", weight, "n"), picture, make("td", data.source[source], "t"), make("td", `#${source}`, "n muted"));
      table.append(part);
    });
    cell.append(table);
    if (row[MORE]) cell.append(make("div", `and ${row[MORE]} smaller: saltlm inspect DIR '#${index}'`, "muted"));
  }
  if (!cell.childNodes.length) cell.append(make("div", data.names.rules[row[RULE]], "muted"));
  more.append(cell);
  line.after(more);
}
search.addEventListener("input", filter);
origin.addEventListener("change", filter);
document.getElementById("form").addEventListener("submit", event => event.preventDefault());
document.getElementById("back").addEventListener("click", () => { start = Math.max(0, start - PAGE); draw(); });
document.getElementById("on").addEventListener("click", () => { start += PAGE; draw(); });
filter();
</script>
</body>
</html>
"""
