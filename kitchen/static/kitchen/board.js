// Keeps the board as the server's events say. Without it the page shows the orders and its
// buttons work, and a reload shows what is new.

import { localTimes } from "./times.js";

const board = document.querySelector(".board");
const connection = document.querySelector(".connection");
const ticketTemplate = document.querySelector("template");

function newTicket(order) {
  const ticket = ticketTemplate.content.firstElementChild.cloneNode(true);
  ticket.dataset.order = order.id;
  ticket.querySelector("h3 a").href = board.dataset.page.replace("0", order.id);
  ticket.querySelector(".number").textContent = order.id;
  ticket.querySelector(".customer").textContent = order.customer;
  ticket.querySelector("time").dateTime = order.placed_at;
  localTimes(ticket);
  for (const line of order.lines) {
    const quantity = document.createElement("b");
    quantity.textContent = line.quantity;
    const item = document.createElement("li");
    item.append(quantity, ` ${line.name}`);
    ticket.querySelector(".lines").append(item);
  }
  return ticket;
}

function show(order, isNew) {
  const old = board.querySelector(`[data-order="${order.id}"]`);
  const list = board.querySelector(`[data-status="${order.status}"] ol`);
  if (old?.parentElement === list) return;
  old?.remove();
  const ticket = newTicket(order);
  ticket.classList.toggle("new", isNew);
  const younger = [...list.children].find((other) => Number(other.dataset.order) > order.id);
  list.insertBefore(ticket, younger ?? null);
}

function count() {
  for (const column of board.querySelectorAll(".column")) {
    column.querySelector(".count").textContent = column.querySelector("ol").children.length;
  }
}

const events = new EventSource(board.dataset.events);

events.addEventListener("open", () => {
  connection.textContent = "Live";
  connection.dataset.state = "live";
});

events.addEventListener("error", () => {
  connection.textContent = "Not connected, trying again";
  connection.dataset.state = "lost";
});

events.addEventListener("board", ({ data }) => {
  const orders = JSON.parse(data);
  const ids = new Set(orders.map((order) => String(order.id)));
  for (const ticket of board.querySelectorAll(".ticket")) {
    if (!ids.has(ticket.dataset.order)) ticket.remove();
  }
  for (const order of orders) show(order, false);
  count();
});

events.addEventListener("order", ({ data }) => {
  show(JSON.parse(data), true);
  count();
});

events.addEventListener("removed", ({ data }) => {
  board.querySelector(`[data-order="${JSON.parse(data).id}"]`)?.remove();
  count();
});

board.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { order } = event.target.closest(".ticket").dataset;
  event.submitter.disabled = true;
  try {
    // A refusal means that another cook was faster, which the events show.
    await fetch(board.dataset.advance.replace("0", order), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
    });
  } catch {
    event.submitter.disabled = false;
  }
});

