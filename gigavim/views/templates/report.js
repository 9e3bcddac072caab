for (const box of document.querySelectorAll("input[data-layer]")) {
  const layer = document.getElementById(box.dataset.layer);
  const show = () => layer.classList.toggle("off", !box.checked);
  box.addEventListener("change", show);
  show();
}
const shade = document.getElementById("shade");
if (shade) {
  shade.addEventListener("input", () => {
    document.documentElement.style.setProperty("--shade", shade.value / 100);
  });
}
