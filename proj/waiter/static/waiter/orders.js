// Looks every two seconds, while the page is seen, how the orders are now. Without it a reload does.

const SECONDS = 2;
const timeFormat = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });

function localTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    time.textContent = timeFormat.format(new Date(time.dateTime));
  }
}

function statuses(board) {
  return [...board.querySelectorAll("[data-order]")].map(
    (ticket) => `${ticket.dataset.order} ${ticket.closest(".column").dataset.status}`,
  );
}

async function look() {
  const response = await fetch(location.pathname, { cache: "no-store" });
  if (!response.ok) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const shown = document.querySelector(".board");
  const found = page.querySelector(".board");
  // A button that somebody is about to press stays where it is, if nothing has changed.
  if (String(statuses(shown)) === String(statuses(found))) return;
  shown.replaceWith(found);
  document.querySelector("nav").replaceWith(page.querySelector("nav"));
  localTimes();
}

async function lookAgain() {
  if (!document.hidden) {
    // A kitchen that does not answer is asked again.
    await look().catch(() => {});
  }
  setTimeout(lookAgain, SECONDS * 1000);
}

localTimes();
setTimeout(lookAgain, SECONDS * 1000);
