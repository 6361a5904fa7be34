// A click on a heading sorts; numbers by data-value. The first click puts the most first.
document.querySelectorAll("table.sortable").forEach(function (table) {
  var heads = Array.from(table.tHead.rows[0].cells), body = table.tBodies[0];
  heads.forEach(function (head, i) {
    head.setAttribute("aria-sort", "none");
    head.tabIndex = 0;
    function value(row) { var c = row.cells[i], v = parseFloat(c.dataset.value !== undefined ? c.dataset.value : c.textContent); return c.dataset.value !== undefined || !isNaN(v) ? v : c.textContent; }
    function sort() {
      var down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach(function (h) { h.setAttribute("aria-sort", "none"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      Array.from(body.rows).sort(function (a, b) {
        var x = value(a), y = value(b);
        if (typeof x === "number" && typeof y === "number") {
          if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
          return down ? y - x : x - y;
        }
        return String(x).localeCompare(String(y)) * (down ? 1 : -1);
      }).forEach(function (row) { body.appendChild(row); });
    }
    head.addEventListener("click", sort);
    head.addEventListener("keydown", function (e) { if (e.key === "Enter") sort(); });
  });
});
