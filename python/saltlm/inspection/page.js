"use strict";
const ROW = 28, MARGIN = 12, SPACE = "\u2581";
const byId = id => document.getElementById(id);
const make = (name, text, style) => {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (style) node.className = style;
  return node;
};
const digits = value => Number.isNaN(value) ? "-" : String(Number(value.toPrecision(3)));

// Unpacks the compressed columns; the format is described in saltlm.inspection.columns.
async function unpack() {
  const binary = atob(byId("data").textContent), packed = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) packed[i] = binary.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = await new Response(stream).arrayBuffer();
  const size = new DataView(data).getUint32(0, true), decoder = new TextDecoder("utf-8", {ignoreBOM: true});
  const header = JSON.parse(decoder.decode(new Uint8Array(data, 4, size)));
  const kinds = {"|u1": Uint8Array, "<u2": Uint16Array, "<i4": Int32Array, "<f4": Float32Array};
  const columns = {rows: header.rows, names: header.names};
  for (const {name, type, length, offset, bytes} of header.sections) {
    const part = new Uint8Array(data, 4 + size + offset, bytes);
    if (type === "text") {
      const text = decoder.decode(part);
      columns[name] = length ? text.split("\n") : [];
      if (name === "text") columns.joined = text;
      continue;
    }
    const width = kinds[type].BYTES_PER_ELEMENT, plain = new Uint8Array(bytes);
    for (let plane = 0; plane < width; plane++)
      for (let i = 0; i < length; i++) plain[i * width + plane] = part[plane * length + i];
    columns[name] = new kinds[type](plain.buffer);
  }
  return columns;
}

function start(data) {
  const count = data.rows, scroll = byId("scroll"), body = byId("body"), detail = byId("detail");
  const lower = data.joined.toLowerCase(), begins = new Uint32Array(count + 1), first = new Uint32Array(count + 1);
  for (let row = 0, at = 0; row < count; row++) {
    const end = lower.indexOf("\n", at);
    at = begins[row + 1] = (end < 0 ? lower.length : end) + 1;
    first[row + 1] = first[row] + data.parts[row];
  }
  const exceptions = new Map([...data.exception].map((row, i) => [row, data.exception_bytes[i]]));
  const columns = [
    {name: "id", value: row => row, number: true, width: "4.6rem"},
    {name: "token", text: data.text, width: "auto"},
    {name: "origin", code: data.origin, names: data.names.origins, width: "5.6rem"},
    {name: "script", code: data.script, names: data.names.scripts, width: "7.6rem", minor: true},
    {name: "status", code: data.status, names: data.names.statuses, width: "6.6rem", minor: true},
    {name: "support", value: row => data.support[row], show: row => data.support[row] || "", number: true, width: "5.2rem", minor: true},
    {name: "residual", value: row => data.residual[row], show: row => Number.isNaN(data.residual[row]) ? "" : digits(data.residual[row]), number: true, width: "5.4rem", minor: true},
    {name: "norm", value: row => data.norm[row], show: row => digits(data.norm[row]), number: true, width: "4.6rem"},
  ];
  const filters = [["origin", data.origin, data.names.origins], ["status", data.status, data.names.statuses],
    ["script", data.script, data.names.scripts]];
  for (const [id, codes, names] of filters) {
    const used = new Set(codes);
    names.forEach((name, code) => {
      if (!used.has(code)) return;
      const option = make("option", name);
      option.value = code;
      byId(id).append(option);
    });
  }
  let column = null, down = false, shown = new Uint32Array(0), chosen = -1, haystack = null;
  const orders = new Map();  // column -> rows in ascending order

  for (const entry of columns) {
    const cell = make("th", undefined, (entry.number ? "n" : "") + (entry.minor ? " minor" : ""));
    const button = make("button", entry.name);
    button.type = "button";
    cell.scope = "col";
    cell.style.width = entry.width;
    cell.append(button);
    entry.cell = cell;
    button.addEventListener("click", () => {
      down = column === entry ? !down : Boolean(entry.number && entry.name !== "id");
      column = entry;
      filter();
    });
    byId("head").append(cell);
  }

  function order(entry) {
    if (!orders.has(entry)) {
      const rows = Uint32Array.from({length: count}, (_, row) => row);
      const keys = new Float64Array(count);
      if (entry.text) {
        // Numbers of the first three characters decide most comparisons; they are faster to compare than texts.
        const code = (text, at) => at < text.length ? text.charCodeAt(at) + 1 : 0;
        for (let row = 0; row < count; row++)
          keys[row] = (code(entry.text[row], 0) * 65537 + code(entry.text[row], 1)) * 65537 + code(entry.text[row], 2);
        rows.sort((a, b) => keys[a] - keys[b] || (entry.text[a] < entry.text[b] ? -1 : entry.text[a] > entry.text[b] ? 1 : a - b));
      } else {
        for (let row = 0; row < count; row++) {
          const key = entry.value ? entry.value(row) : entry.code[row];
          keys[row] = Number.isNaN(key) ? -Infinity : key;
        }
        rows.sort((a, b) => keys[a] - keys[b] || a - b);
      }
      orders.set(entry, rows);
    }
    return orders.get(entry);
  }

  // Marks the rows whose bytes contain the query. Tokens whose bytes are not those of their text are looked up by hand.
  function findBytes(query) {
    if (!haystack) haystack = new TextEncoder().encode(data.joined.replaceAll(SPACE, " "));
    const hits = new Uint8Array(count), hex = query.map(b => b.toString(16).padStart(2, "0")).join("");
    for (let row = 0, begin = 0; row < count; row++) {
      const next = haystack.indexOf(10, begin), end = next < 0 ? haystack.length : next;
      for (let at = begin; at + query.length <= end && !hits[row]; at++) {
        let same = 0;
        while (same < query.length && haystack[at + same] === query[same]) same++;
        if (same === query.length) hits[row] = 1;
      }
      begin = end + 1;
    }
    for (const [row, bytes] of exceptions) {
      let at = bytes.indexOf(hex);
      while (at > 0 && at % 2) at = bytes.indexOf(hex, at + 1);
      hits[row] = at < 0 ? 0 : 1;
    }
    return hits;
  }

  // Marks the rows whose text, in lower case, contains the query.
  function find(query) {
    const hits = new Uint8Array(count);
    for (let row = 0, at = lower.indexOf(query); at >= 0 && row < count;) {
      while (begins[row + 1] <= at) row++;
      hits[row] = 1;
      at = lower.indexOf(query, begins[row + 1]);
    }
    return hits;
  }

  function matches() {
    const query = byId("search").value.trim().toLowerCase(), id = /^#(\d+)$/.exec(query), hex = /^0x((?:[0-9a-f]{2})+)$/.exec(query.replace(/\s+/g, ""));
    if (!query) return null;
    if (id) {
      const hits = new Uint8Array(count);
      if (+id[1] < count) hits[+id[1]] = 1;
      return hits;
    }
    if (hex) return findBytes(hex[1].match(/../g).map(pair => parseInt(pair, 16)));
    return find(query.replaceAll(" ", SPACE));
  }

  function filter() {
    performance.mark("search");
    const hits = matches(), wanted = filters.map(([id, codes]) => [byId(id).value, codes]).filter(([value]) => value !== "");
    const passes = row => (!hits || hits[row]) && wanted.every(([value, codes]) => codes[row] === +value);
    const result = [];
    if (column) {
      const rows = order(column);
      for (let i = 0; i < count; i++) {
        const row = rows[down ? count - 1 - i : i];
        if (passes(row)) result.push(row);
      }
    } else {
      for (let row = 0; row < count; row++) if (passes(row)) result.push(row);
      // The shortest token first, which is nearest to what was typed.
      const length = row => begins[row + 1] - begins[row] - (data.text[row].startsWith(SPACE) ? 1 : 0);
      if (hits) {
        const groups = [];
        for (const row of result) (groups[length(row)] ||= []).push(row);
        result.length = 0;
        for (const group of groups) if (group) for (const row of group) result.push(row);
      }
    }
    shown = Uint32Array.from(result);
    for (const entry of columns)
      entry.cell.setAttribute("aria-sort", entry !== column ? "none" : down ? "descending" : "ascending");
    byId("table").setAttribute("aria-rowcount", shown.length + 1);
    byId("count").textContent = shown.length ? `${shown.length.toLocaleString("en")} of ${count.toLocaleString("en")} tokens` : "no token matches";
    scroll.scrollTop = 0;
    draw();
    performance.measure("search", "search");
  }

  function gap(height) {
    const line = make("tr"), cell = make("td", undefined, "gap");
    // A cell across hidden columns too would make columns without content.
    cell.colSpan = columns.filter(entry => entry.cell.offsetParent !== null).length;
    cell.style.height = `${height}px`;
    line.setAttribute("aria-hidden", "true");
    line.append(cell);
    return line;
  }

  function draw() {
    const from = Math.max(0, Math.floor(scroll.scrollTop / ROW) - MARGIN);
    const to = Math.min(shown.length, from + Math.ceil(scroll.clientHeight / ROW) + 2 * MARGIN);
    const focused = body.contains(document.activeElement) ? document.activeElement.dataset.row : undefined;
    const lines = [gap(from * ROW)];
    for (let at = from; at < to; at++) {
      const row = shown[at], line = make("tr", undefined, row === chosen ? "chosen" : "");
      line.setAttribute("aria-rowindex", at + 2);
      for (const entry of columns) {
        const cell = make("td", undefined, (entry.number ? "n" : "") + (entry.minor ? " minor" : "") + (entry.text ? " t" : ""));
        if (entry.text) {
          const button = make("button", data.text[row] || "(no token)");
          button.type = "button";
          button.dataset.row = row;
          cell.append(button);
        } else cell.textContent = entry.code ? (entry.name === "status" && !entry.code[row] ? "" : entry.names[entry.code[row]]) : entry.show ? entry.show(row) : row;
        line.append(cell);
      }
      lines.push(line);
    }
    lines.push(gap((shown.length - to) * ROW));
    body.replaceChildren(...lines);
    if (focused !== undefined) body.querySelector(`[data-row="${focused}"]`)?.focus({preventScroll: true});
  }

  function open(row) {
    chosen = row;
    const text = data.text[row], facts = [];
    const say = (name, value) => {
      const line = make("p", `${name}: `, "muted"), strong = make("span", value);
      strong.style.color = "var(--ink)";
      line.append(strong);
      facts.push(line);
    };
    say("origin", data.names.origins[data.origin[row]]);
    say("built by", data.names.rules[data.rule[row]]);
    if (data.status[row]) say("status", data.names.statuses[data.status[row]]);
    if (data.source[row] >= 0) {
      const known = data.source_id.indexOf(data.source[row]);
      say("source token", `${known < 0 ? text : data.source_text[known]} #${data.source[row]}`);
    }
    if (data.rank[row]) say("rank, residual", `${data.rank[row]}, ${digits(data.residual[row])}`);
    if (data.map[row]) say("weight of the map of all anchors", digits(data.map[row]));
    say("norm", digits(data.norm[row]));
    const raw = exceptions.get(row) ?? [...new TextEncoder().encode(text.replaceAll(SPACE, " "))].map(b => b.toString(16).padStart(2, "0")).join("");
    say("bytes", raw ? `0x${raw}` : "none");
    const head = make("h3", `${text || "(no token)"} #${row}`, "t");
    detail.replaceChildren(head, ...facts);
    if (data.parts[row]) {
      const table = make("table"), from = first[row], to = first[row + 1];
      const caption = make("caption", "source tokens by weight", "muted"), rows = [];
      let largest = 0;
      for (let i = from; i < to; i++) {
        rows.push(i);
        largest = Math.max(largest, Math.abs(data.part_weight[i]));
      }
      rows.sort((a, b) => Math.abs(data.part_weight[b]) - Math.abs(data.part_weight[a]));
      table.append(caption);
      for (const i of rows) {
        const weight = data.part_weight[i], source = data.part_source[i], line = make("tr"), picture = make("td");
        const bar = make("span", undefined, weight < 0 ? "bar minus" : "bar");
        bar.style.width = `${3.5 * Math.abs(weight) / (largest || 1)}rem`;
        picture.append(bar);
        line.append(make("td", digits(weight), "n"), picture, make("td", data.source_text[source], "t"), make("td", `#${data.source_id[source]}`, "n muted"));
        table.append(line);
      }
      detail.append(table);
    }
    if (data.more[row]) detail.append(make("p", `${data.more[row]} ${data.parts[row] ? "smaller weights" : "weights"}: saltlm inspect DIR '#${row}'`, "muted"));
    draw();
  }

  let waiting = false;
  scroll.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  });
  addEventListener("resize", draw);
  document.addEventListener("click", event => {
    const button = event.target.closest?.("button[data-row]");
    if (!button) return;
    open(+button.dataset.row);
    if (!scroll.contains(button) || matchMedia("(max-width: 46rem)").matches) detail.scrollIntoView({block: "nearest"});
  });
  byId("search").addEventListener("input", filter);
  for (const [id] of filters) byId(id).addEventListener("change", filter);
  byId("form").addEventListener("submit", event => event.preventDefault());
  filter();
  document.documentElement.dataset.ready = "yes";
}

unpack().then(start).catch(error => {
  byId("count").textContent = typeof DecompressionStream === "undefined"
    ? "this browser is too old for the table; a browser of 2023 or later shows it" : `the table cannot be read: ${error.message}`;
});
