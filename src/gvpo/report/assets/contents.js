// The contents list: a link to a section scrolls there, and opens what is folded.

function goToSection(hash) {
  const section = document.getElementById(decoded(hash.slice(1)));
  if (!section) return;
  for (const folded of section.querySelectorAll("details")) folded.open = true;
  section.scrollIntoView();
}
