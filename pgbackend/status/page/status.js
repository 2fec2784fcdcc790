"use strict";

// Seconds that plots show; a longer silence than GAP breaks a line.
const SHOWN = 120;
const GAP = 5;
// A transaction that is open for longer, seconds, is worth a look.
const LONG = 60;

const byId = (id) => document.getElementById(id);
const copy = (id) => byId(id).content.firstElementChild.cloneNode(true);

function tell(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function add(parent, name, text = "", className = "") {
  const child = document.createElement(name);
  child.textContent = text;
  child.className = className;
  parent.append(child);
  return child;
}

// Numbers for readers

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.0995) return `${Math.round(value * 1000)} ms`;
  if (value < 99.5) return `${value.toFixed(1)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  return value < 9.95 && !Number.isInteger(value) ? value.toFixed(1) : String(Math.round(value));
}

// Plots. Each takes a sample of an alias and the one before it, and gives a number for each line.

const rate = (name) => (now, before) => (before ? (now[name] - before[name]) / (now.clock - before.clock) : null);

function wait(now, before) {
  if (!before) return null;
  const queued = now.queued - before.queued;
  return queued > 0 ? (now.wait_ms - before.wait_ms) / 1000 / queued : 0;
}

const PLOTS = [
  { name: "Connections on loan", lines: [["on loan", (now) => now.on_loan], ["idle", (now) => now.idle]], limit: "max_size", text: number },
  { name: "Waiting tasks", lines: [["waiting", (now) => now.waiting]], text: number },
  { name: "Statements a second", lines: [["short", rate("short")], ["cursors", rate("cursor")], ["threads", rate("thread")]], text: number },
  { name: "Mean wait", lines: [["wait", wait]], text: seconds, least: 0.01 },
];

class Plot {
  constructor(parent, alias, kind) {
    this.kind = kind;
    this.alias = alias;
    this.points = kind.lines.map(() => []);
    const figure = copy("plot");
    tell(figure.querySelector(".name"), kind.name);
    this.top = figure.querySelector(".top");
    this.svg = figure.querySelector("svg");
    this.limit = this.path("limit");
    this.paths = kind.lines.map((_, place) => this.path(`s${place}`));
    this.values = kind.lines.map(([name], place) => {
      const item = add(figure.querySelector(".legend"), "li");
      add(item, "i", "", `s${place}`);
      item.append(`${name} `);
      return add(item, "b", "–");
    });
    parent.append(figure);
  }

  path(className) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", className);
    this.svg.append(path);
    return path;
  }

  show(now, before) {
    const { lines, text, limit, least } = this.kind;
    const values = lines.map(([, value]) => value(now, before));
    const since = now.clock - SHOWN;
    let top = Math.max(limit ? now[limit] : 0, least ?? 1);
    this.points.forEach((points, place) => {
      if (values[place] !== null) points.push([now.clock, values[place]]);
      while (points.length && points[0][0] < since) points.shift();
      for (const [, value] of points) top = Math.max(top, value);
    });
    const y = (value) => (58 - (value / top) * 55).toFixed(2);
    this.points.forEach((points, place) => {
      let last = -Infinity;
      const drawn = points.map(([clock, value]) => {
        const move = clock - last > GAP ? "M" : "L";
        last = clock;
        return `${move}${(((clock - since) / SHOWN) * 240).toFixed(1)} ${y(value)}`;
      });
      this.paths[place].setAttribute("d", drawn.join(""));
      tell(this.values[place], text(values[place]));
    });
    if (limit && now[limit]) this.limit.setAttribute("d", `M0 ${y(now[limit])}H240`);
    tell(this.top, limit ? `of ${now[limit]}` : `top ${text(top)}`);
    const said = lines.map(([name], place) => `${name} ${text(values[place])}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.kind.name} of ${this.alias} in the last two minutes, now: ${said}`);
  }
}

// Tables, whose rows are lists of texts; a cell of a wide column has a statement

function fill(body, rows, wide) {
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  rows.forEach((cells, place) => {
    const row = body.rows[place] ?? body.insertRow();
    cells.forEach((text, column) => {
      const cell = row.cells[column] ?? row.insertCell();
      cell.className = wide.includes(column) ? "wide" : "";
      tell(cell, text);
    });
  });
  const region = body.closest(".scroll");
  region.hidden = !rows.length;
}

class Table {
  constructor(parent, alias, key, title, empty, columns, wide) {
    const element = copy("table");
    const heading = element.querySelector("h3");
    heading.id = `${key}-of-${alias}`;
    element.dataset.table = key;
    tell(heading, title);
    element.querySelector(".scroll").setAttribute("aria-labelledby", heading.id);
    for (const name of columns) add(element.querySelector("thead tr"), "th", name).scope = "col";
    this.empty = element.querySelector(".empty");
    tell(this.empty, empty);
    this.body = element.querySelector("tbody");
    this.wide = wide;
    parent.append(element);
  }

  show(rows) {
    fill(this.body, rows, this.wide);
    this.empty.hidden = rows.length > 0;
  }
}

// One alias

class Alias {
  constructor(alias, hasServer) {
    this.alias = alias;
    this.before = null;
    this.element = copy("alias");
    this.element.dataset.alias = alias;
    const heading = this.element.querySelector("h2");
    heading.id = `alias-${alias}`;
    tell(heading, `Database ${alias}`);
    this.element.setAttribute("aria-labelledby", heading.id);
    const plots = this.element.querySelector(".plots");
    this.plots = PLOTS.map((kind) => new Plot(plots, alias, kind));
    const tables = this.element.querySelector(".tables");
    const table = (...rest) => new Table(tables, alias, ...rest);
    this.tables = {};
    if (hasServer) {
      this.tables.blocked = table("blocked", "Blocked statements", "No statement waits for a lock.", ["Waits for", "Blocked", "Lock", "Blocked by"], [1, 3]);
      this.tables.longest = table("longest", "Longest transactions", "No transaction is open.", ["Open for", "State", "Session", "Statement"], [3]);
    }
    this.tables.waits = table("waits", "Waiting tasks of this process", "No task waits for a connection.", ["Waits for", "Task", "Request"], []);
    this.tables.loans = table("loans", "Connections on loan to tasks of this process", "None is on loan.", ["For", "Task", "Request", "Session"], []);
    byId("aliases").append(this.element);
  }

  show(process, server) {
    const sizes = process.aliases[this.alias];
    const now = { ...sizes, clock: process.clock };
    for (const plot of this.plots) plot.show(now, this.before);
    this.before = now;
    const requests = new Map(sizes.loans.filter((loan) => loan.pid).map((loan) => [String(loan.pid), loan.request || loan.task]));
    this.tables.waits.show(sizes.waits.map((each) => [seconds(each.seconds), each.task, each.request || "–"]));
    this.tables.loans.show(sizes.loans.map((each) => [seconds(each.seconds), each.task, each.request || "–", each.pid ? String(each.pid) : "–"]));
    if (server) this.showServer(server, requests);
  }

  showServer({ error, answer, age }, requests) {
    const problem = this.element.querySelector(".problem");
    const words = [];
    if (error) words.push(`The server could not be asked: ${error}.`);
    if (answer && (error || age > 3)) words.push(`What is shown of it is ${seconds(age)} old.`);
    if (answer?.sessions.hidden) words.push(`${answer.sessions.hidden} sessions of other roles are hidden from this role: GRANT pg_read_all_stats shows them.`);
    problem.hidden = !words.length;
    tell(problem, words.join(" "));
    if (!answer) return;
    const { sessions } = answer;
    tell(
      this.element.querySelector(".server"),
      `PostgreSQL ${answer.version}, ${answer.replica ? "a replica" : "a primary"}. Sessions in the database ${answer.database}: `
        + `${sessions.active} active, ${sessions.in_transaction} idle in a transaction, ${sessions.idle} idle. `
        + `Of the whole server: ${answer.of_server} of ${answer.max_connections} connections.`,
    );
    const session = (pid) => describe(pid, answer.by_pid[pid], requests);
    this.tables.blocked.show(answer.blocked.map((wait) => [
      seconds(wait.seconds),
      session(wait.pid),
      [wait.mode, wait.relation ?? wait.locktype].join(" on "),
      [...new Set(wait.blockers)].map(session).join("\n"),
    ]));
    this.tables.longest.show(answer.longest.map((pid) => {
      const found = answer.by_pid[pid];
      const who = [`${pid}`, found.user, found.application, requests.get(String(pid))].filter(Boolean).join(", ");
      return [seconds(found.open_seconds), state(found), who, found.query];
    }));
  }
}

function state(found) {
  const words = found.state ?? found.kind ?? "unknown";
  return `${words} for ${seconds(found.state_seconds)}${found.wait && found.state === "active" ? `, waits for ${found.wait}` : ""}`;
}

function describe(pid, found, requests) {
  if (pid === 0) return "A prepared transaction: see pg_prepared_xacts";
  if (!found) return `${pid}: gone`;
  if (found.hidden) return `${pid} (${found.user}): hidden from this role`;
  const request = requests.get(String(pid));
  return `${pid} (${[found.user, request, state(found)].filter(Boolean).join("; ")}): ${found.query}`;
}

// The whole page

const aliases = new Map();
let shownProcess = null;

const TILES = [
  ["Connections on loan", (found) => `${found.onLoan} of ${found.most}`, (found) => found.most > 0 && found.onLoan >= found.most],
  ["Waiting tasks", (found) => String(found.waiting), (found) => found.waiting > 0],
  ["Blocked statements", (found) => (found.asked ? String(found.blocked) : "unknown"), (found) => found.blocked > 0],
  ["Longest transaction", (found) => (found.asked ? (found.longest ? seconds(found.longest) : "none") : "unknown"), (found) => found.longest > LONG],
  ["Servers not asked", (found) => String(found.silent), (found) => found.silent > 0],
  ["Event loop late by", (found) => seconds(found.late), (found) => found.late > 0.2],
];

function summary({ process, servers, late }) {
  const found = { onLoan: 0, most: 0, waiting: 0, blocked: 0, longest: 0, silent: 0, asked: false, late };
  for (const each of Object.values(process.aliases)) {
    found.onLoan += each.on_loan;
    found.most += each.max_size;
    found.waiting += each.waiting;
  }
  for (const { error, answer } of Object.values(servers)) {
    if (error || !answer) found.silent += 1;
    if (!answer) continue;
    found.asked = true;
    found.blocked += answer.blocked.length;
    found.longest = Math.max(found.longest, ...answer.longest.map((pid) => answer.by_pid[pid].open_seconds));
  }
  return found;
}

function showTiles(found) {
  const list = byId("tiles");
  TILES.forEach(([name, value, isBad], place) => {
    const item = list.children[place] ?? add(list, "li");
    if (!item.children.length) {
      add(item, "b");
      add(item, "span", name);
    }
    tell(item.firstElementChild, value(found));
    item.className = isBad(found) ? "bad" : "";
  });
}

function show(snapshot) {
  const { process, servers, others } = snapshot;
  const name = `${process.host}, ${process.pid}`;
  if (name !== shownProcess) {
    // Another worker process answers: its counts are others.
    for (const each of aliases.values()) each.element.remove();
    aliases.clear();
    shownProcess = name;
  }
  const skipped = Object.entries(others).map(([alias, engine]) => `${alias} (${engine})`).join(", ");
  tell(byId("process"), `Process ${process.pid} on ${process.host}, at ${new Date(snapshot.at * 1000).toLocaleTimeString()}.${skipped ? ` Not shown: ${skipped}.` : ""}`);
  showTiles(summary(snapshot));
  for (const alias of Object.keys(process.aliases)) {
    if (!aliases.has(alias)) aliases.set(alias, new Alias(alias, alias in servers));
    aliases.get(alias).show(process, servers[alias]);
  }
  fill(byId("findings"), process.findings.map((each) => [each.place, seconds(each.seconds), new Date(each.at * 1000).toLocaleTimeString()]), [0]);
  byId("no-findings").hidden = process.findings.length > 0;
}

// The stream: open while somebody looks

let source = null;
let retry = 0;
let isPaused = false;

function say(state, words) {
  byId("connection").dataset.state = state;
  tell(byId("connection"), words);
}

function open() {
  close();
  source = new EventSource("events");
  let isSingle = false;
  source.addEventListener("snapshot", ({ data }) => {
    show(JSON.parse(data));
    say("live", "Live");
  });
  // Under WSGI each response has one snapshot, and the browser asks for the next one.
  source.addEventListener("single", ({ data }) => {
    isSingle = true;
    show(JSON.parse(data));
    say("live", "Every few seconds: without ASGI there is no stream");
  });
  source.addEventListener("end", open);
  source.addEventListener("error", () => {
    if (!isSingle) say("lost", "Not connected, trying again");
    isSingle = false;
    // The browser tries again by itself unless the server answered with an error.
    if (source?.readyState === EventSource.CLOSED) {
      say("lost", "Refused, trying again; if you are no longer logged in, load the page again");
      retry = setTimeout(open, 5000);
    }
  });
}

function close() {
  clearTimeout(retry);
  source?.close();
  source = null;
}

function follow() {
  if (isPaused || document.hidden) {
    close();
    say("paused", "Paused");
  } else {
    open();
  }
}

byId("pause").addEventListener("click", ({ currentTarget }) => {
  isPaused = !isPaused;
  currentTarget.setAttribute("aria-pressed", String(isPaused));
  follow();
});
document.addEventListener("visibilitychange", follow);
window.addEventListener("pagehide", close);
window.addEventListener("pageshow", ({ persisted }) => {
  if (persisted) follow();
});
follow();
