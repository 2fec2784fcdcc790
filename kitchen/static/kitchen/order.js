// Moves the order's progress on when the kitchen does.

import "./times.js";

const receipt = document.querySelector(".receipt");
const status = receipt.querySelector("[role=status]");

function show(order) {
  if (String(order.id) !== receipt.dataset.order) return;
  for (const step of receipt.querySelectorAll("[data-step]")) {
    if (step.dataset.step === order.status) step.setAttribute("aria-current", "step");
    else step.removeAttribute("aria-current");
  }
  if (order.status !== receipt.dataset.status) status.textContent = `Your order is ${order.status}.`;
  receipt.dataset.status = order.status;
  if (order.status === "ready") events.close();
}

const events = new EventSource(receipt.dataset.events);
events.addEventListener("board", ({ data }) => JSON.parse(data).forEach(show));
events.addEventListener("order", ({ data }) => show(JSON.parse(data)));
if (receipt.dataset.status === "ready") events.close();
