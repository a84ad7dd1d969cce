// What HTML alone cannot do: copy a text, and move what is live. The page says the same without this script.
"use strict";

const said = document.createElement("p");
said.className = "skip";
said.setAttribute("role", "status");
document.body.append(said);

// The clipboard belongs to pages of HTTPS and of this machine; elsewhere a selection can be copied.
async function copy(pre) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(pre.textContent);
  }
  getSelection().selectAllChildren(pre);
  if (!document.execCommand("copy")) {
    throw new Error("not copied");
  }
}

for (const pre of document.querySelectorAll(".copy pre")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy: ${pre.getAttribute("aria-label")}`);
  button.addEventListener("click", async () => {
    try {
      await copy(pre);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(pre);
      button.textContent = "Selected";
    }
    said.textContent = button.textContent;
  });
  pre.after(button);
}

const live = document.getElementById("live");
const trouble = document.createElement("p");
trouble.setAttribute("role", "status");

// How long an answer may take.
const patience = 10_000;

// What is live in the same view, as the cache shows it now.
async function asked() {
  // Not `href`, which may have a name and a secret in it.
  const { origin, pathname, search } = location;
  const headers = { accept: "text/html" };
  const answer = await fetch(origin + pathname + search, { headers, signal: AbortSignal.timeout(patience) });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const next = page.getElementById("live");
  if (!next) {
    const why = answer.status === 401 || answer.status === 403 ? "log in again" : `status ${answer.status}`;
    return { why: `The cache does not show this any more: ${why}.` };
  }
  return { next, why: answer.ok ? "" : `The cache answers with status ${answer.status}.` };
}

// A sign that what is shown is old, and why. The time in it is that of the view, so that each is read out once.
function sign(why) {
  const text = why && `${why} This was shown at ${seen.toISOString().slice(11, 19)} UTC.`;
  if (text !== trouble.textContent) {
    trouble.textContent = text;
    trouble.className = why && "note bad";
  }
}

let seen = new Date();

// Asks for the same view again, and shows what is new in it. A text that is being selected, or has the focus, stays.
async function refresh() {
  if (!document.hidden) {
    try {
      const { next, why } = await asked();
      const selection = getSelection();
      const isInUse =
        live.contains(document.activeElement) || (!selection.isCollapsed && live.contains(selection.anchorNode));
      if (why) {
        sign(why);
      } else if (isInUse && live.innerHTML !== next.innerHTML) {
        sign("What is in use stays as it is.");
      } else {
        live.dataset.every = next.dataset.every;
        if (live.innerHTML !== next.innerHTML) {
          live.replaceChildren(...next.childNodes);
        }
        seen = new Date();
        sign("");
      }
    } catch {
      // The cache may be back the next time.
      sign("The cache does not answer.");
    }
  }
  setTimeout(refresh, live.dataset.every * 1000);
}

if (live) {
  live.before(trouble);
  setTimeout(refresh, live.dataset.every * 1000);
}
