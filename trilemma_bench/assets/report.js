"use strict";
// Everything is in the page already: this sorts, filters, opens grids and shows one model as a page of its own.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);

document.body.classList.add("js");

// --- theme
const theme = one("#theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  theme.textContent = dark ? "Dark" : "Light";
});

// --- sorting: ranked rows among themselves, rows without a number after those with one
for (const table of all("table.board")) {
  all("thead th", table).forEach((head, place) => {
    const button = one("button", head);
    if (button === null) return;
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const first = head.dataset.first;
      const order = before === null ? first : before === "ascending" ? "descending" : "ascending";
      all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => row.cells[place].dataset.value ?? "";
      const rows = all("tbody tr", table).sort((a, b) => {
        const unranked = a.classList.contains("unranked") - b.classList.contains("unranked");
        if (unranked) return unranked;
        const [x, y] = [key(a), key(b)];
        if (place === 0) return sign * x.localeCompare(y);
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (Number(x) - Number(y));
      });
      one("tbody", table).append(...rows);
    });
  });
}

// --- filters
const filters = { protocol: one("#protocol"), dataset: one("#dataset"), family: one("#family") };
const search = one("#search");
const status = one("#status");
function filter() {
  const words = search.value.toLowerCase();
  let shown = 0;
  for (const section of all("section.protocol")) {
    // Published figures stand below what was measured on their data set, and go with the last of it.
    section.hidden = section.classList.contains("published")
      ? !all("section.protocol:not(.published)").some((other) => !other.hidden && other.dataset.dataset === section.dataset.dataset)
      : ["protocol", "dataset"].some((name) => filters[name].value && section.dataset[name] !== filters[name].value);
    for (const row of all("tbody tr[data-family]", section)) {
      row.hidden = (filters.family.value && row.dataset.family !== filters.family.value) || !row.dataset.name.toLowerCase().includes(words);
      if (!row.hidden && !section.hidden && row.closest("table.board:not(.published)")) shown += 1;
    }
    for (const item of all(".gallery li", section)) {
      item.hidden = (filters.family.value && item.dataset.family !== filters.family.value) || !item.dataset.name.toLowerCase().includes(words);
    }
  }
  status.textContent = `${shown} row${shown === 1 ? "" : "s"}`;
}
for (const input of [...Object.values(filters), search]) input.addEventListener("input", filter);
one(".bar").hidden = false;
filter();

// --- grids at full size
const dialog = one("#grid");
for (const button of all(".gallery button")) {
  button.addEventListener("click", () => {
    const image = one("img", button);
    one("img", dialog).src = image.src;
    one("img", dialog).alt = image.alt;
    one("p", dialog).textContent = image.alt;
    dialog.showModal();
  });
}
one("button", dialog).addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

// --- pages of models
function route() {
  const found = location.hash.startsWith("#model-") ? document.getElementById(location.hash.slice(1)) : null;
  all("article.shown").forEach((article) => article.classList.remove("shown"));
  document.body.classList.toggle("page", found !== null);
  if (found !== null) {
    found.classList.add("shown");
    one("h3", found).focus();
    scrollTo(0, 0);
  }
}
addEventListener("hashchange", route);
route();
