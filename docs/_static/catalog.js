/* Sorts and filters the table of the catalog, and chooses a view of its plot. Without it the page is a plain table with
   the plot against MACs. */
"use strict";

(() => {
  const table = document.querySelector("table.catalog");
  const form = document.querySelector("form.catalog-filter");
  const plot = document.querySelector("figure.catalog-plot");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const collator = new Intl.Collator("en", { numeric: true });
  const text = (row, column) => row.cells[column].textContent.trim();
  const number = (value) => parseFloat(value.replace("~", ""));

  // Sorting: the head of each column is a button; rows without a value stay at the end.
  const sort = (column, descending, numeric) => {
    const compare = numeric ? (a, b) => number(a) - number(b) : collator.compare;
    const isEmpty = (value) => value === "–";
    rows.sort((one, other) => {
      const [a, b] = [text(one, column), text(other, column)];
      if (isEmpty(a) || isEmpty(b)) return isEmpty(a) - isEmpty(b);
      return descending ? compare(b, a) : compare(a, b);
    });
    body.append(...rows);
  };
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const numeric = head.classList.contains("number");
    const largestFirst = column === 1 || column === 2; // accuracy: the best one is looked for
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : largestFirst;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(column, descending, numeric);
    });
  });

  // Filtering: each field tests a column, or all of them. A row without a value passes no bound.
  const tests = {
    search: (row, value) => {
      const content = row.textContent.toLowerCase();
      return value.toLowerCase().split(/\s+/).every((word) => content.includes(word));
    },
    min: (row, value, column) => number(text(row, column)) >= value,
    max: (row, value, column) => number(text(row, column)) <= value,
    equal: (row, value, column) => text(row, column) === value,
  };
  const fields = [...form.querySelectorAll("[data-test]")];
  const count = form.querySelector("output");
  const filter = () => {
    const active = fields.filter((field) => field.value.trim() !== "");
    const passes = (row) =>
      active.every((field) => tests[field.dataset.test](row, field.value.trim(), field.dataset.column));
    rows.forEach((row) => (row.hidden = !passes(row)));
    const visible = rows.filter((row) => !row.hidden);
    count.textContent = count.dataset.text.replace("%n", visible.length).replace("%m", rows.length);
    const variants = new Set(visible.map((row) => text(row, 0).split(".")[0].split(" ")[0]));
    plot.querySelectorAll("a[data-variant]").forEach((point) => {
      point.classList.toggle("faded", !variants.has(point.dataset.variant));
    });
  };
  form.addEventListener("input", filter);
  form.querySelector("button").addEventListener("click", () => {
    form.reset();
    filter();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter(); // a browser may have restored the fields

  // The plot: one view at a time, and what a point stands for.
  const views = plot.querySelectorAll("[data-view]");
  const choices = plot.querySelector("fieldset");
  const show = () => {
    const chosen = choices.querySelector("input:checked").value;
    views.forEach((view) => (view.hidden = view.dataset.view !== chosen));
  };
  choices.addEventListener("change", show);
  choices.hidden = false;
  show();
  const description = plot.querySelector("output");
  description.hidden = false;
  ["mouseover", "focusin"].forEach((name) =>
    plot.addEventListener(name, (event) => {
      const point = event.target.closest("a[data-variant]");
      if (point) description.textContent = point.getAttribute("aria-label");
    }),
  );
})();
