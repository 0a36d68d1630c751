"use strict";
{
  const table = document.getElementById("ranking");
  const [open, rest] = table.tBodies;
  const more = document.getElementById("more");
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    return heads[column].dataset.text === undefined ? NaN : cell.textContent.trim();
  };
  const order = (a, b) => {
    if (typeof a === "string" || typeof b === "string") return String(a).localeCompare(String(b), "en", { numeric: true });
    return Number.isNaN(a) - Number.isNaN(b) || a - b;
  };
  const sort = (column) => {
    const upwards = heads[column].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", upwards ? "ascending" : "descending");
    const rows = [...table.tBodies].flatMap((body) => [...body.rows]);
    const missing = (row) => Number.isNaN(value(row, column));
    rows.sort((a, b) => missing(a) - missing(b) || (upwards ? 1 : -1) * order(value(a, column), value(b, column)));
    const shown = rest ? Number(more.dataset.open) : rows.length;
    open.append(...rows.slice(0, shown));
    if (rest) rest.append(...rows.slice(shown));
    table.querySelectorAll(".grouped").forEach((row) => row.classList.remove("grouped"));
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(column)));
  if (rest) {
    const label = more.textContent;
    rest.hidden = true;
    more.addEventListener("click", () => {
      rest.hidden = !rest.hidden;
      more.textContent = rest.hidden ? label : "Show fewer";
    });
  }
}
