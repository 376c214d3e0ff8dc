() => {
  // What is typed to search a class replaces the name that stands there.
  document.addEventListener("focusin", ({ target }) => target.matches("#class input") && target.select());
  // Thumbnails get names for screen readers, whenever they are drawn.
  const nameExamples = () => {
    for (const button of document.querySelectorAll("#examples button:not([aria-label])")) {
      const picture = button.querySelector("img");
      if (picture) button.ariaLabel = "Example " + decodeURIComponent(picture.src.split("/").pop());
    }
  };
  new MutationObserver(nameExamples).observe(document.body, { childList: true, subtree: true });
  nameExamples();
}
