// Sortable tables: a button in each header; cells without a value stay last. Without this script the tables stand as they are.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  table.dataset.sorting = "";
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    header.dataset.name = button.textContent;
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const now = header.getAttribute("aria-sort");
      const order = now === "none" ? header.dataset.first : now === "ascending" ? "descending" : "ascending";
      headers.forEach((other) => other.setAttribute("aria-sort", other === header ? order : "none"));
      const valued = [...body.rows].map((row) => [row.cells[column].dataset.value, row]);
      valued.sort(([a], [b]) => {
        if (!a || !b) return (b ? 1 : 0) - (a ? 1 : 0);
        const rising = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
        return order === "ascending" ? rising : -rising;
      });
      body.append(...valued.map(([, row]) => row));
    });
  });
}
