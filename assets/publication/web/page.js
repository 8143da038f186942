// Draws the published numbers that data.js brings. No request, no storage but the language, no library but charts.js.
(() => {
  "use strict";
  const data = window.DIGITALSTADT;
  const LEVELS = data.time_levels;
  const COLUMN = { care: 0, level: 1, start: 2, group: 3, measure: 4, value: 5, low: 6, high: 7, quality: 8, status: 9, all: 10 };
  const WORDS = {
    de: {
      care: "Versorgung", measure: "Kennzahl", level: "Zeiteinheit", group: "Auswahl", all: "alle zusammen",
      inside: "im Rauschen", outside: "größer als das Rauschen",
      latest: (unit, value, low, high) => `Neuester Wert, ${unit}: ${value}. Ohne Rauschen liegt er mit 95\u00a0% Sicherheit zwischen ${low} und ${high}.`,
      everybody: (value, low, high) => `Geschätzt für alle Patientinnen und Patienten der beteiligten Kliniken, auch ohne Einwilligung: ${value} (${low} bis ${high}), sofern Einwilligung und Erkrankung nicht zusammenhängen.`,
      change: (by, half) => `Veränderung zur Zeiteinheit davor: ${by} (± ${half}) `,
      time: (measure, group, cut) => `${measure}, ${group}: Verlauf mit 95-%-Band${cut ? " (Achse beginnt nicht bei null)" : ""}`,
      compared: (measure, unit) => `${measure} im Vergleich, ${unit}`,
      ranking: (n, all) => `${n} von ${all} Werten ${n === 1 ? "ist" : "sind"} vom Mittel dieser Werte nicht zu unterscheiden: ihr Intervall schließt es ein (graue Balken, „im Rauschen“). Nahe Plätze können durch das Rauschen vertauscht sein.`,
      mean: "Mittel der Werte", week: (w, y) => `KW ${w}/${y}`, to: "bis", value: "Wert", from: "von", until: "bis", unit: "Zeitraum", what: "Gruppe", status: "Stand",
      verdict: "Unterschied zum Mittel", differs: "unterscheidet sich vom Mittel", none: "Noch keine Werte für diese Auswahl.",
    },
    en: {
      care: "Care", measure: "Measure", level: "Unit of time", group: "Selection", all: "all combined",
      inside: "inside the noise", outside: "larger than the noise",
      latest: (unit, value, low, high) => `Latest value, ${unit}: ${value}. Without noise it lies between ${low} and ${high} with 95% certainty.`,
      everybody: (value, low, high) => `Estimated for all patients of the participating clinics, including those who did not consent: ${value} (${low} to ${high}), if consent is unrelated to illness.`,
      change: (by, half) => `Change from the unit of time before: ${by} (± ${half}) `,
      time: (measure, group, cut) => `${measure}, ${group}: over time, with its 95% band${cut ? " (axis does not start at zero)" : ""}`,
      compared: (measure, unit) => `${measure} compared, ${unit}`,
      ranking: (n, all) => `${n} of ${all} values cannot be distinguished from the mean of these values: their interval contains it (grey bars, “inside the noise”). Neighbouring ranks may be swapped by the noise.`,
      mean: "mean of the values", week: (w, y) => `week ${w}/${y}`, to: "to", value: "value", from: "from", until: "to", unit: "period", what: "group", status: "status",
      verdict: "difference from the mean", differs: "differs from the mean", none: "No values for this selection yet.",
    },
  };
  const DE_TIME = {
    dateTime: "%A, %e. %B %Y, %X", date: "%d.%m.%Y", time: "%H:%M:%S", periods: ["", ""],
    days: ["Sonntag", "Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag"], shortDays: ["So", "Mo", "Di", "Mi", "Do", "Fr", "Sa"],
    months: ["Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September", "Oktober", "November", "Dezember"],
    shortMonths: ["Jan", "Feb", "Mär", "Apr", "Mai", "Jun", "Jul", "Aug", "Sep", "Okt", "Nov", "Dez"],
  };
  const DE_NUMBER = { decimal: ",", thousands: ".", grouping: [3], currency: ["", " €"] };
  const DAY = 86400000;
  let language = "de";
  const word = () => WORDS[language];
  const say = (pair) => pair[language === "de" ? 0 : 1];
  const esc = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

  const isShare = (measure) => measure.key === "share" || measure.key === "mortality";
  function number(value, measure) {
    const percent = isShare(measure);
    const shown = percent ? value * 100 : value;
    const digits = percent ? 1 : measure.decimals;
    return new Intl.NumberFormat(language, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(shown) + (percent ? (language === "de" ? "\u00a0%" : "%") : "");
  }
  const named = (m) => say(m.name).charAt(0).toUpperCase() + say(m.name).slice(1) + (isShare(m) ? " (%)" : m.key.endsWith("_days") ? (language === "de" ? " (Tage)" : " (days)") : "");
  const signed = (value, measure) => (value < 0 ? "−" : "+") + number(Math.abs(value), measure);
  const floor = (value, measure) => Math.min(Math.max(value, 0), isShare(measure) ? 1 : Infinity);

  function isoWeek(start) {
    const day = new Date(start * DAY), thursday = new Date((start + 3 - ((day.getUTCDay() + 6) % 7)) * DAY);
    const first = Date.UTC(thursday.getUTCFullYear(), 0, 1);
    return [1 + Math.floor((thursday - first) / DAY / 7), thursday.getUTCFullYear()];
  }
  const dateText = (day) => new Intl.DateTimeFormat(language === "de" ? "de-DE" : "en-GB", { timeZone: "UTC", day: "numeric", month: "short", year: "numeric" }).format(new Date(day * DAY));
  function unitText(level, start) {
    if (level === "day") return dateText(start);
    if (level === "week") return word().week(...isoWeek(start));
    if (level === "month") return new Intl.DateTimeFormat(language, { timeZone: "UTC", month: "long", year: "numeric" }).format(new Date(start * DAY));
    return `${dateText(start)} ${word().to} ${dateText(start + data.days[level] - 1)}`;
  }

  class Panel {
    constructor(section) {
      this.section = section;
      this.set = data.datasets[section.dataset.dataset];
      this.rows = this.set.rows;
      this.choice = {};
      this.wish = {}; // what the reader chose; the choice follows it wherever it exists
      this.draws = 0;
      this.build();
    }
    options(field) {
      const c = this.choice, at = COLUMN;
      const fits = (row, upTo) => upTo.every((name) => row[at[name]] === c[name]);
      const order = ["care", "measure", "level", "group"];
      const before = order.slice(0, order.indexOf(field));
      const found = [...new Set(this.rows.filter((row) => fits(row, before)).map((row) => row[at[field]]))].sort((a, b) => a - b);
      return found;
    }
    preferred(field, found) {
      if (found.includes(this.wish[field])) return this.wish[field];
      if (field === "level" && found.includes(1)) return 1;
      if (field === "group" && !found.includes(0)) return this.largest(found);
      return found[0];
    }
    largest(found) {
      const rows = this.rows.filter((r) => ["care", "measure", "level"].every((n) => r[COLUMN[n]] === this.choice[n]));
      const last = Math.max(...rows.map((r) => r[COLUMN.start]));
      const now = rows.filter((r) => r[COLUMN.start] === last).sort((a, b) => b[COLUMN.value] - a[COLUMN.value]);
      return now.length ? now[0][COLUMN.group] : found[0];
    }
    label(field, index) {
      if (field === "care") return say(data.care[index]);
      if (field === "measure") return say(data.measures[index].name);
      if (field === "level") return say(data.levels[index]);
      return index === 0 ? word().all : say(this.set.groups[index - 1].name);
    }
    build() {
      const box = this.section.querySelector(".controls");
      box.textContent = "";
      for (const field of ["care", "measure", "level", "group"]) {
        const found = this.options(field);
        this.choice[field] = this.preferred(field, found);
        if (found.length < 2) continue;
        const label = document.createElement("label"), select = document.createElement("select");
        label.append(word()[field], select);
        select.dataset.field = field;
        for (const index of found) {
          const option = new Option(this.label(field, index), index);
          option.selected = index === this.choice[field];
          select.add(option);
        }
        select.addEventListener("change", () => {
          this.wish[field] = Number(select.value);
          this.build();
          this.section.querySelector(`select[data-field="${field}"]`)?.focus();
        });
        box.append(label);
      }
      this.draw();
    }
    draw() {
      const { care, measure, level, group } = this.choice;
      const m = data.measures[measure] ?? { key: "", decimals: 0 }, unit = LEVELS[level];
      const mine = this.rows.filter((r) => r[COLUMN.care] === care && r[COLUMN.measure] === measure && r[COLUMN.level] === level);
      const series = mine.filter((r) => r[COLUMN.group] === group).sort((a, b) => a[COLUMN.start] - b[COLUMN.start]);
      this.latest(series, m, unit);
      if (!series.length) return;
      this.section.querySelector("figure").hidden = series.length < 2; // one value is no course: the box above says it
      if (series.length > 1) this.time(series, m, unit);
      const last = series[series.length - 1][COLUMN.start];
      if (!this.section.querySelector(".ranked")) return;
      // Areas differ in size: they are compared by their rate wherever there is one.
      const at = (index) => this.rows.filter((r) => r[COLUMN.care] === care && r[COLUMN.measure] === index && r[COLUMN.level] === level && r[COLUMN.start] === last && r[COLUMN.group] > 0);
      const fair = measure === 0 && at(this.set.compared).length ? this.set.compared : measure;
      this.ranked(at(fair), data.measures[fair], unit, last);
    }
    latest(series, m, unit) {
      const box = this.section.querySelector(".latest"), w = word();
      if (!series.length) { box.textContent = w.none; return; }
      const now = series[series.length - 1];
      const [value, low, high] = [COLUMN.value, COLUMN.low, COLUMN.high].map((i) => number(floor(now[i], m), m));
      let html = esc(w.latest(unitText(unit, now[COLUMN.start]), "\u0001", low, high)).replace("\u0001", `<strong class="value">${esc(value)}</strong>${isShare(m) ? "" : ` ${esc(say(m.unit))}`}`);
      const before = series[series.length - 2];
      const gap = before ? now[COLUMN.start] - before[COLUMN.start] : 0;
      if (unit === "month" ? gap >= 28 && gap <= 31 : gap && gap === data.days[unit]) {
        const half = (r) => (r[COLUMN.high] - r[COLUMN.low]) / 2, a = half(now), b = half(before);
        const by = now[COLUMN.value] - before[COLUMN.value], noise = Math.sqrt(a * a + b * b + (2 * a * b) / 3);
        const inside = Math.abs(by) <= noise;
        html += ` ${esc(w.change(signed(by, m), number(noise, m)))}<span class="${inside ? "inside" : "outside"}">${esc(inside ? w.inside : w.outside)}</span>.`;
      }
      html += ` <span class="stand">${esc(say(data.statuses[now[COLUMN.status]]))}</span>`;
      if (now.length > COLUMN.all) html += `<br>${esc(w.everybody(...now.slice(COLUMN.all).map((v) => number(floor(v, m), m))))}`;
      box.innerHTML = html;
    }
    record(row, m, unit) {
      const scale = isShare(m) ? 100 : 1;
      return {
        day: new Date(row[COLUMN.start] * DAY).toISOString().slice(0, 10), unit: unitText(unit, row[COLUMN.start]),
        value: floor(row[COLUMN.value], m) * scale, low: floor(row[COLUMN.low], m) * scale, high: floor(row[COLUMN.high], m) * scale,
        status: say(data.statuses[row[COLUMN.status]]).split(/[:,]/)[0],
        shown: number(floor(row[COLUMN.value], m), m), range: `${number(floor(row[COLUMN.low], m), m)} – ${number(floor(row[COLUMN.high], m), m)}`,
      };
    }
    table(place, heads, rows, caption) {
      const box = this.section.querySelector(place);
      box.tabIndex = 0;
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", caption);
      box.innerHTML = `<table><thead><tr>${heads.map((h) => `<th scope="col">${esc(h)}</th>`).join("")}</tr></thead><tbody>${rows.map((r) => `<tr>${r.map((c) => `<td>${esc(c)}</td>`).join("")}</tr>`).join("")}</tbody></table>`;
    }
    embed(place, spec, caption) {
      const box = this.section.querySelector(place);
      const narrow = box.clientWidth < 520;
      box.setAttribute("role", "img");
      box.setAttribute("aria-label", caption);
      const config = { aria: false, font: "system-ui, sans-serif", axis: { labelFontSize: narrow ? 11 : 12, titleFontSize: 12, titleFontWeight: "normal", gridColor: "#e2e7ed", labelColor: "#1a2330", titleColor: "#4a5666" }, view: { stroke: null }, legend: { labelFontSize: 12, labelLimit: 0, orient: "bottom", columns: narrow ? 1 : 2, title: null, symbolType: "square" } };
      const local = language === "de" ? { formatLocale: DE_NUMBER, timeFormatLocale: DE_TIME } : {};
      const turn = ++this.draws;
      this.pending = window.vegaEmbed(box, { $schema: undefined, width: "container", autosize: { type: "fit", contains: "padding" }, background: null, config, ...spec(narrow) }, { renderer: "svg", actions: false, ast: true, mode: "vega-lite", ...local })
        .then(() => {
          // The box has the description and the table the values: the drawing itself is not read out mark by mark.
          box.querySelector("svg").setAttribute("aria-hidden", "true");
          box.dataset.drawn = String(turn);
        });
    }
    time(series, m, unit) {
      const values = series.map((r) => this.record(r, m, unit)), w = word();
      const caption = w.time(named(m), this.label("group", this.choice.group), Math.min(...values.map((v) => v.low)) > 0);
      this.section.querySelector(".over-time").textContent = caption;
      const tooltip = [{ field: "unit", title: w.unit }, { field: "shown", title: w.value }, { field: "range", title: "95 %" }];
      const x = { field: "day", type: "temporal", title: null, scale: { type: "utc" }, axis: { labelOverlap: true, labelFlush: true, grid: false } };
      const y = (field) => ({ field, type: "quantitative", title: null, scale: { zero: false, nice: true } });
      this.embed(".time", (narrow) => ({
        height: narrow ? 220 : 280, data: { values },
        layer: [
          series.length > 2 ? { mark: { type: "area", opacity: 0.25, color: "#14508f" }, encoding: { x, y: y("low"), y2: { field: "high" } } }
                            : { mark: { type: "rule", strokeWidth: 4, opacity: 0.3, color: "#14508f" }, encoding: { x, y: y("low"), y2: { field: "high" } } },
          { mark: { type: "line", color: "#14508f", strokeWidth: 1.8 }, encoding: { x, y: y("value") } },
          { mark: { type: "point", filled: true, color: "#14508f", size: series.length > 60 ? 12 : 30 }, encoding: { x, y: y("value"), tooltip } },
        ],
      }), caption);
      this.table(".time-table", [w.unit, w.value, "95 %", w.status], values.map((v) => [v.unit, v.shown, v.range, v.status]).reverse(), caption);
    }
    ranked(rows, m, unit, last) {
      const w = word(), caption = w.compared(named(m), unitText(unit, last));
      this.section.querySelector(".compared").textContent = caption;
      if (!rows.length) return;
      const mean = rows.reduce((sum, r) => sum + r[COLUMN.value], 0) / rows.length, scale = isShare(m) ? 100 : 1;
      const values = rows.map((r) => {
        const inside = r[COLUMN.low] <= mean && mean <= r[COLUMN.high];
        return { ...this.record(r, m, unit), name: this.label("group", r[COLUMN.group]), inside, verdict: inside ? w.inside : w.differs };
      }).sort((a, b) => b.value - a.value);
      this.section.querySelector(".ranking").textContent = w.ranking(values.filter((v) => v.inside).length, values.length);
      const tooltip = [{ field: "name", title: w.what }, { field: "shown", title: w.value }, { field: "range", title: "95 %" }, { field: "verdict", title: w.verdict }];
      this.embed(".ranked", (narrow) => {
        const y = { field: "name", type: "nominal", sort: values.map((v) => v.name), title: null, axis: { labelLimit: narrow ? 125 : 280, ticks: false, domain: false } };
        const x = (field) => ({ field, type: "quantitative", title: null, axis: { tickCount: narrow ? 4 : 8, labelOverlap: true } });
        return {
          height: 24 * values.length + (narrow ? 75 : 55), data: { values },
          layer: [
            { mark: { type: "bar", height: 15 }, encoding: { y, x: x("value"), tooltip, color: { field: "verdict", type: "nominal", scale: { domain: [w.differs, w.inside], range: ["#3f7cc0", "#b4bcc6"] } } } },
            { mark: { type: "rule", strokeWidth: 2, color: "#1a2330" }, encoding: { y, x: x("low"), x2: { field: "high" }, tooltip } },
            { data: { values: [{ mean: mean * scale }] }, mark: { type: "rule", strokeDash: [5, 4], color: "#b3470a", strokeWidth: 1.5 }, encoding: { x: { field: "mean", type: "quantitative", title: null }, tooltip: { value: w.mean } } },
          ],
        };
      }, caption);
      this.table(".ranked-table", [w.what, w.value, "95 %", w.verdict], values.map((v) => [v.name, v.shown, v.range, v.verdict]), caption);
    }
  }

  const remembered = () => { try { return localStorage.getItem("language"); } catch { return null; } };
  function speak(next, panels) {
    language = next;
    document.documentElement.lang = next;
    document.title = document.body.dataset[next === "de" ? "titleDe" : "titleEn"];
    for (const button of document.querySelectorAll("[data-language]")) button.setAttribute("aria-pressed", String(button.dataset.language === next));
    for (const time of document.querySelectorAll("time")) time.textContent = dateText(Date.parse(time.getAttribute("datetime")) / DAY);
    for (const panel of panels) panel.build();
  }
  const wanted = new URLSearchParams(location.search).get("lang") ?? remembered() ?? (navigator.language || "de").slice(0, 2);
  language = wanted === "en" ? "en" : "de";
  const panels = [...document.querySelectorAll("section.dataset")].map((section) => new Panel(section));
  speak(language, []);
  for (const button of document.querySelectorAll("[data-language]")) {
    button.addEventListener("click", () => {
      try { localStorage.setItem("language", button.dataset.language); } catch { /* private mode: not remembered */ }
      speak(button.dataset.language, panels);
    });
  }
  let width = window.innerWidth;
  addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; clearTimeout(window.redraw); window.redraw = setTimeout(() => panels.forEach((p) => p.draw()), 150); } });
})();
