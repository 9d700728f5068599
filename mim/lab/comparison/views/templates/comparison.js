// Tables that sort, and pictures that enlarge. Charts are in figures.js.
"use strict";

(() => {
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows].at(-1).cells;
    [...heads].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, heads, column));
    });
  }

  // Sorts the rows by a column: first in the order that its heading names, then in the other. Rows without a value come last.
  function sort(table, heads, column) {
    const head = heads[column];
    const current = head.getAttribute("aria-sort");
    const order = current === null ? head.dataset.first : current === "ascending" ? "descending" : "ascending";
    const sign = order === "ascending" ? 1 : -1;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, key: key(row.cells[column]) }));
    rows.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      return sign * (typeof a.key === "number" ? a.key - b.key : a.key.localeCompare(b.key, undefined, { numeric: true }));
    });
    body.append(...rows.map(({ row }) => row));
  }

  function key(cell) {
    if (cell.tagName === "TD" && cell.classList.contains("number")) {
      return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
    }
    return cell.textContent.trim();
  }

  const viewer = document.getElementById("viewer");
  if (viewer) {
    const enlarged = viewer.querySelector("img");
    for (const picture of document.querySelectorAll(".sheet img")) {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-label", `Enlarge: ${picture.alt}`);
      picture.replaceWith(button);
      button.append(picture);
      button.addEventListener("click", () => {
        enlarged.src = picture.src;
        enlarged.alt = picture.alt;
        viewer.showModal();
      });
    }
    viewer.querySelector("button").addEventListener("click", () => viewer.close());
    viewer.addEventListener("click", (event) => {
      if (event.target === viewer) viewer.close();
    });
  }
})();
