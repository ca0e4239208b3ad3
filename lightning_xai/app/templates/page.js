"use strict";
for (const table of document.querySelectorAll("table.samples")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = header.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const down = header.getAttribute("aria-sort") === "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.key;
      const compare = (a, b) => key(a).localeCompare(key(b), undefined, { numeric: false });
      const number = (a, b) => Number(key(a)) - Number(key(b));
      const rows = [...body.rows].sort(header.dataset.kind === "number" ? number : compare);
      if (down) rows.reverse();
      body.append(...rows);
    });
  });
}
for (const form of document.querySelectorAll("form.filter")) {
  const table = document.getElementById(form.dataset.table);
  const shown = form.querySelector("output");
  const apply = () => {
    const name = form.elements.target.value;
    const wrong = form.elements.wrong?.checked;
    let count = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = (name && row.dataset.target !== name) || (wrong && row.dataset.wrong !== "true");
      count += row.hidden ? 0 : 1;
    }
    shown.textContent = `${count} of ${table.tBodies[0].rows.length} samples`;
  };
  form.addEventListener("input", apply);
  apply();
}
