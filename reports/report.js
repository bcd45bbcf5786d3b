"use strict";
// Tables sort by the header that is clicked; the case browser filters and sorts. Without scripts all is shown as it is.

function number(text) {
  const value = parseFloat(text.replace(/,/g, "").replace(/^</, ""));
  return Number.isNaN(value) ? null : value;
}

function compare(a, b) {
  const [x, y] = [number(a), number(b)];
  if (x !== null && y !== null) return x - y;
  if (x !== null || y !== null) return x === null ? 1 : -1; // gaps last
  return a.localeCompare(b);
}

for (const table of document.querySelectorAll("figure table")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") !== "descending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const text = (row) => row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows];
      const gap = (row) => number(text(row)) === null && rows.some((other) => number(text(other)) !== null);
      rows.sort((a, b) => {
        if (gap(a) !== gap(b)) return gap(a) ? 1 : -1;
        return descending ? compare(text(b), text(a)) : compare(text(a), text(b));
      });
      table.tBodies[0].append(...rows);
    });
  });
}

const browser = document.getElementById("cases");
if (browser) {
  const list = browser.querySelector("ol");
  const cases = [...list.children];
  const controls = [...browser.querySelectorAll("select")];
  const chosen = (name) => browser.querySelector(`select[name="${name}"]`).value;
  const update = () => {
    const method = chosen("method");
    const dice = (item) => JSON.parse(item.dataset.dice)[method] ?? null;
    const sign = chosen("order") === "best" ? -1 : 1;
    for (const item of cases) {
      item.hidden = ["dataset", "object", "size"].some((name) => chosen(name) && item.dataset[name] !== chosen(name));
      for (const shown of item.querySelectorAll("[data-method]")) {
        shown.classList.toggle("chosen", shown.dataset.method === method);
      }
    }
    cases.sort((a, b) => {
      const [x, y] = [dice(a), dice(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (x - y);
    });
    list.append(...cases);
    const seen = cases.filter((item) => !item.hidden).length;
    browser.querySelector("output").textContent = `${seen} of ${cases.length} cases`;
  };
  controls.forEach((control) => control.addEventListener("change", update));
  browser.querySelector("form").hidden = false;
  update();
}
