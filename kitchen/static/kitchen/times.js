// Shows times as those of the reader's zone. Imported or included, it does so for the whole page.

const format = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });

export function localTimes(element) {
  for (const time of element.querySelectorAll("time[datetime]")) {
    time.textContent = format.format(new Date(time.dateTime));
  }
}

localTimes(document);
