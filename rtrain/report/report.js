// Without scripts the page loses the copy button's work and the values under the pointer, nothing else.
for (const button of document.querySelectorAll(".copy button")) button.onclick = () => {
  const range = document.createRange();
  range.selectNodeContents(button.previousElementSibling);
  const selection = getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
  document.execCommand("copy");
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
};

const SVG = "http://www.w3.org/2000/svg";
for (const figure of document.querySelectorAll("svg[data-readings]")) {
  const lines = JSON.parse(figure.dataset.readings);
  const make = (tag, name) => {
    const made = figure.appendChild(document.createElementNS(SVG, tag));
    made.setAttribute("class", name);
    return made;
  };
  const cross = make("line", "cross");
  const dots = lines.map(() => make("circle", "dot"));
  const told = figure.parentElement.appendChild(document.createElement("output"));
  const show = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(figure.getScreenCTM().inverse()).x;
    const nearest = lines.map((line) => line.points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)));
    if (!nearest.length) return;
    const first = nearest.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    cross.setAttribute("x1", first[0]);
    cross.setAttribute("x2", first[0]);
    cross.setAttribute("y1", 4);
    cross.setAttribute("y2", figure.viewBox.baseVal.height - 30);
    nearest.forEach((point, i) => {
      dots[i].setAttribute("cx", point[0]);
      dots[i].setAttribute("cy", point[1]);
      dots[i].setAttribute("r", 3.5);
    });
    const said = nearest.map((point, i) => `${lines[i].name} ${point[3]}${point[2] === first[2] ? "" : ` (at ${point[2]})`}`);
    told.textContent = `${lines[0].x} ${first[2]}: ${said.join(", ")}`;
    figure.classList.add("pointed");
  };
  figure.addEventListener("pointermove", show);
  figure.addEventListener("pointerdown", show);
  figure.addEventListener("pointerleave", () => {
    figure.classList.remove("pointed");
    told.textContent = "";
  });
}
