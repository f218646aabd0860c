"use strict";
// The page is complete without this: it shows the values under the pointer, and lets lines be switched off.
document.documentElement.classList.add("script");
for (const legend of document.querySelectorAll(".legend")) {
  const section = document.getElementById(legend.dataset.section);
  legend.addEventListener("change", (event) => {
    for (const line of section.querySelectorAll(`.plot [data-line="${event.target.dataset.line}"]`)) {
      line.classList.toggle("off", !event.target.checked);
    }
  });
}
for (const plot of document.querySelectorAll("svg.plot")) {
  const readout = document.createElement("p");
  readout.className = "readout";
  readout.textContent = "Point at a size for its values.";
  plot.after(readout);
  const marks = [...plot.querySelectorAll(".mark")];
  const place = (mark) => mark.transform.baseVal.consolidate().matrix.e;
  const clear = () => marks.forEach((mark) => mark.classList.remove("near"));
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width;
    const shown = marks.filter((mark) => !mark.parentNode.classList.contains("off"));
    if (!shown.length) return;
    const nearest = shown.reduce((a, b) => (Math.abs(place(b) - x) < Math.abs(place(a) - x) ? b : a));
    const there = shown.filter((mark) => mark.dataset.size === nearest.dataset.size);
    clear();
    there.forEach((mark) => mark.classList.add("near"));
    const said = there.map((mark) => `${mark.parentNode.dataset.name} ${mark.dataset.value}`);
    readout.textContent = `${nearest.dataset.label}: ${said.join("; ")}`;
  });
  plot.addEventListener("pointerleave", clear);
}
