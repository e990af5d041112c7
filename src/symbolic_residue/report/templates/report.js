"use strict";
// The page says everything without this. It adds two comforts: the numbers of the token under the pointer, and one button.
for (const prompt of document.querySelectorAll(".prompt")) {
  const readout = prompt.nextElementSibling;
  readout.hidden = false;
  const rest = "Point at a token for its numbers.";
  readout.textContent = rest;
  prompt.addEventListener("mouseover", (event) => {
    const token = event.target.closest(".t");
    readout.textContent = token ? token.title : rest;
  });
  prompt.addEventListener("mouseleave", () => { readout.textContent = rest; });
}
const folded = document.querySelectorAll("details");
if (folded.length) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "expand all";
  button.addEventListener("click", () => {
    const open = button.textContent === "expand all";
    for (const part of folded) part.open = open;
    button.textContent = open ? "fold all" : "expand all";
  });
  document.querySelector("header.page").append(button);
}
