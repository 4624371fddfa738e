"use strict";
const tools = document.querySelector(".tools");
if (tools) {
  const search = tools.querySelector("input"), choice = tools.querySelector("select"), count = tools.querySelector("output");
  const cards = [...document.querySelectorAll(".card")].map((card) => [card, card.textContent.toLowerCase()]);
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean), kind = choice.value;
    let shown = 0;
    for (const [card, text] of cards) {
      const fits = (kind === "" || card.dataset.kind === kind || card.dataset.code === kind) && words.every((word) => text.includes(word));
      card.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${cards.length} shown`;
  };
  const fromAddress = () => {
    const wanted = new URLSearchParams(location.hash.slice(1));
    search.value = wanted.get("q") ?? "";
    choice.value = wanted.get("kind") ?? "";
    if (choice.selectedIndex < 0) choice.value = "";
    filter();
  };
  const toAddress = () => {
    filter();
    const wanted = new URLSearchParams();
    if (search.value) wanted.set("q", search.value);
    if (choice.value) wanted.set("kind", choice.value);
    history.replaceState(null, "", `#${wanted}`);
  };
  search.addEventListener("input", toAddress);
  choice.addEventListener("input", toAddress);
  window.addEventListener("hashchange", fromAddress);
  tools.hidden = false;
  fromAddress();
}
