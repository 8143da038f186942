// The SQL box: DuckDB in this browser over the published Parquet files, all from the server of this page, on demand.
// DuckDB for browsers has no Parquet reader of its own: parquet-wasm decodes each file to Arrow, which DuckDB takes.
// The worker is started from a blob so that it inherits the page's security policy: it can ask no other server.
(() => {
  "use strict";
  const box = window.DIGITALSTADT_SQL, section = document.getElementById("sql");
  if (!box || !section) return;
  section.hidden = false;
  document.querySelector('nav a[href="#sql"]').parentElement.hidden = false;
  const part = (name) => section.querySelector(`.${name}`);
  if (location.protocol === "file:") {
    part("server").hidden = false;
    return;
  }
  const SHOWN = 1000;
  const WORDS = {
    de: {
      load: "DuckDB wird geladen …", run: "Abfrage läuft …", lost: "DuckDB ließ sich nicht laden", wrong: "Die Abfrage ist fehlgeschlagen",
      rows: (n, ms) => `${n} ${n === 1 ? "Zeile" : "Zeilen"} in ${ms} ms.` + (n > SHOWN ? ` Gezeigt sind die ersten ${SHOWN}; die Datei hat alle.` : ""), result: "Ergebnis der Abfrage",
      alone: "Das bräuchte eine Erweiterung von DuckDB; diese Seite lädt nichts von anderen Servern. Alle Zahlen stehen in den Tabellen (Beispiel „Was gibt es hier?“).",
    },
    en: {
      load: "Loading DuckDB …", run: "Running …", lost: "DuckDB could not be loaded", wrong: "The query failed",
      rows: (n, ms) => `${n} ${n === 1 ? "row" : "rows"} in ${ms} ms.` + (n > SHOWN ? ` The first ${SHOWN} are shown; the file has them all.` : ""), result: "Result of the query",
      alone: "That would need an extension of DuckDB, and this page loads nothing from other servers. All numbers are in the tables (example “What is here?”).",
    },
  };
  const word = () => WORDS[document.documentElement.lang === "en" ? "en" : "de"];
  const form = part("ask"), text = section.querySelector("textarea"), button = part("run"), status = part("status"), result = part("result"), csv = part("csv");
  const examples = [...section.querySelectorAll("[data-sql]")];
  let connection = null, busy = false, answer = null;
  form.hidden = false;
  text.value = examples[0].dataset.sql;
  for (const example of examples) example.addEventListener("click", () => { text.value = example.dataset.sql; form.requestSubmit(); });

  function script(url, integrity) {
    return new Promise((resolve, reject) => {
      const element = document.createElement("script");
      Object.assign(element, { src: url, integrity, onload: resolve, onerror: () => reject(new Error(url)) });
      document.head.append(element);
    });
  }
  async function got(path, integrity) {
    const answer = await fetch(path, integrity ? { integrity } : {});
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer;
  }
  async function engine(at) {
    await script(at(box.client), box.integrity);
    const starter = URL.createObjectURL(new Blob([`importScripts(${JSON.stringify(at(box.worker))});`], { type: "text/javascript" }));
    const database = new window.duckdb.AsyncDuckDB(new window.duckdb.VoidLogger(), new Worker(starter));
    await database.instantiate(at(box.engine));
    URL.revokeObjectURL(starter);
    await database.open({ query: { castBigIntToDouble: true, castDecimalToDouble: true } });
    return database.connect();
  }
  async function reader(at) {
    const parquet = await import(at(box.reader));
    await parquet.default({ module_or_path: at(box.decoder) });
    return parquet;
  }
  async function published() {
    const tables = await (await got("page/tables.json")).json();
    const files = tables.parquet.map(async ({ path, integrity }) => new Uint8Array(await (await got(path, integrity)).arrayBuffer()));
    return [tables, await Promise.all(files)];
  }
  async function open() {
    const at = (name) => new URL(`${box.folder}/${name}`, document.baseURI).href;
    const [opened, parquet, [tables, files]] = await Promise.all([engine(at), reader(at), published()]);
    const insert = (name, stream) => opened.insertArrowFromIPCStream(stream, { name, create: true });
    for (const [n, { name }] of tables.parquet.entries()) await insert(name, parquet.readParquet(files[n]).intoIPCStream());
    for (const [name, stream] of Object.entries(tables.arrow)) await insert(name, Uint8Array.from(atob(stream), (c) => c.charCodeAt(0)));
    for (const sql of [
      ...tables.statements, "SET autoinstall_known_extensions = false", "SET autoload_known_extensions = false",
      "SET enable_external_access = false", "SET lock_configuration = true",
    ]) await opened.query(sql);
    return opened;
  }
  function shown(value, type) {
    if (value === null || value === undefined) return "";
    if (/^Date|^Timestamp/.test(type)) {
      const moment = new Date(Number(value)).toISOString();
      return type.startsWith("Date") ? moment.slice(0, 10) : moment.replace("T", " ").replace("Z", "");
    }
    if (typeof value === "number") return String(Number.isInteger(value) ? value : Number(value.toPrecision(9)));
    return String(value);
  }
  function cell(tag, value, number) {
    const element = document.createElement(tag);
    element.textContent = value;
    if (!number) element.className = "text";
    if (tag === "th") element.scope = "col";
    return element;
  }
  function row(cells) {
    const element = document.createElement("tr");
    element.append(...cells);
    return element;
  }
  const cells = (n) => answer.types.map((type, i) => shown(answer.columns[i].get(n), type));
  function show({ names, numbers, rows }) {
    const table = document.createElement("table"), head = document.createElement("thead"), body = document.createElement("tbody");
    head.append(row(names.map((name, i) => cell("th", name, numbers[i]))));
    for (let n = 0; n < Math.min(rows, SHOWN); n++) body.append(row(cells(n).map((value, i) => cell("td", value, numbers[i]))));
    table.append(head, body);
    result.replaceChildren(table);
    result.setAttribute("aria-label", word().result);
    result.hidden = csv.hidden = false;
  }
  async function ask(sql) {
    status.className = "status";
    csv.hidden = result.hidden = true;
    status.textContent = word().load;
    try {
      connection ??= await open();
    } catch (error) {
      throw new Error(`${word().lost}: ${error.message}`);
    }
    status.textContent = word().run;
    const start = performance.now();
    let table;
    try {
      table = await connection.query(sql);
    } catch (error) {
      const why = /extension/i.test(error.message) ? word().alone : error.message;
      throw new Error(`${word().wrong}: ${why}`);
    }
    const took = Math.round(performance.now() - start), types = table.schema.fields.map((field) => String(field.type));
    answer = {
      names: table.schema.fields.map((field) => field.name), types,
      numbers: types.map((type) => /^(Int|Uint|Float)/.test(type)),
      columns: types.map((_type, i) => table.getChildAt(i)), rows: table.numRows,
    };
    status.textContent = word().rows(answer.rows, took);
    show(answer);
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (busy) return;
    busy = true;
    button.setAttribute("aria-disabled", "true");
    try {
      await ask(text.value);
    } catch (error) {
      status.textContent = error.message;
      status.className = "status wrong";
    } finally {
      busy = false;
      button.removeAttribute("aria-disabled");
    }
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
  });
  csv.addEventListener("click", () => {
    const quoted = (value) => `"${value.replace(/"/g, '""').replace(/^(?=[=+@\t\r])/, "'")}"`;
    const lines = [answer.names, ...Array.from({ length: answer.rows }, (_row, n) => cells(n))].map((values) => values.map(quoted).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }));
    link.download = "result.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
})();
