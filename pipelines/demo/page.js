// The page: a photograph goes out, its job is asked after, its pictures are compared.
// What is on the screen follows from the `data-state` of <html>: empty, chosen, busy, failed, done.

const PERIOD = 400; // milliseconds between two questions how far a job is
const LOST = 20; // questions in a row without an answer, after which the program is taken to be gone
const NAMES = { "restored.png": "restored", "posterior-mean.png": "posterior mean", "spread.png": "spread map" };
const NOTES = {
  "posterior-mean.png": "What the model is sure of: faithful, and blurred.",
  "spread.png": "How much the samples differ, in levels of 255: black 0, red 5, yellow 10, white 15.",
};
const BEFORE = "input.png";
const HOW = "restored.json";

const at = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const form = at("options");
const chosen = { file: null, name: "" };
let about = null; // the model and the limits
let job = null; // the name of the job that this page waits for or shows

function go(state) {
  document.documentElement.dataset.state = state;
  at("restore").disabled = state === "busy" || !chosen.file;
  at("chosen").hidden = !chosen.file;
}

function fail(error) {
  at("error").textContent = error.message;
  go("failed");
  at("restore").focus({ preventScroll: true });
}

async function ask(path, options) {
  const response = await fetch(path, options); // raises TypeError where nobody answers
  const unsaid = () => ({ error: `the program answered ${response.status}, without a reason` });
  const body = await response.json().catch(unsaid);
  if (!response.ok) throw new Error(body.error);
  return body;
}

// Choosing ------------------------------------------------------------------------------------

function choose(file, name) {
  forget();
  if (about && file.size > about.max_bytes) {
    chosen.file = null;
    const limit = `at most ${about.max_bytes / 1e6} MB are taken`;
    return fail(new Error(`${name} has ${(file.size / 1e6).toFixed(1)} MB; ${limit}`));
  }
  Object.assign(chosen, { file, name });
  URL.revokeObjectURL(at("preview").src);
  at("preview").className = "";
  at("preview").src = URL.createObjectURL(file);
  at("chosen-name").textContent = name;
  go("chosen");
}

async function useExample() {
  const name = form.elements.whole.value === "true" ? "photograph.png" : "face.png";
  const response = await fetch(`/examples/${name}`);
  choose(await response.blob(), name);
}

// Restoring -----------------------------------------------------------------------------------

async function restore() {
  forget();
  const { file, name } = chosen;
  progressed("Sending the photograph…");
  go("busy");
  at("cancel").focus({ preventScroll: true }); // the button that was pressed is disabled now
  const query = new URLSearchParams(new FormData(form));
  query.set("name", name);
  try {
    const sent = await ask(`/restore?${query}`, { method: "POST", body: file });
    job = sent.job;
    const found = await finished(sent.job);
    if (found && job === sent.job) show(found);
  } catch (error) {
    const gone = error instanceof TypeError;
    fail(gone ? new Error("the program does not answer; is it still running?") : error);
  }
}

// Ask until a job has ended; null if this page has turned to something else meanwhile.
async function finished(name) {
  for (let unanswered = 0; job === name; await pause(PERIOD)) {
    try {
      const found = await ask(`/jobs/${name}`);
      unanswered = 0;
      if (found.state === "done") return found;
      if (found.error) throw new Error(found.error);
      if (found.before) progressed(`Waiting: ${found.before} before this one`);
      else progressed("Restoring…", found.progress);
    } catch (error) {
      const isLost = error instanceof TypeError && ++unanswered < LOST; // a phone that slept, say
      if (!isLost) throw error;
    }
  }
  return null;
}

function progressed(said, share) {
  if (at("status").textContent !== said) at("status").textContent = said;
  if (share) at("progress").value = share;
  else at("progress").removeAttribute("value");
}

function forget() {
  if (job) fetch(`/jobs/${job}`, { method: "DELETE", keepalive: true }).catch(() => {});
  job = null;
}

// Showing -------------------------------------------------------------------------------------

function show(found) {
  const pictures = Object.keys(found.files).filter((file) => file.endsWith(".png") && file !== BEFORE);
  at("views").replaceChildren(at("views").firstElementChild, ...pictures.map(view));
  at("before").src = `/jobs/${job}/${BEFORE}`;
  at("before").onload = (event) => fit(event.target);
  at("warnings").replaceChildren(...found.summary.warnings.map((said) => element("li", said)));
  const facts = Object.entries({ ...found.summary.facts, seconds: found.seconds.toFixed(1) });
  at("facts").replaceChildren(...facts.map(([name, value]) => {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", value));
    return pair;
  }));
  const stem = chosen.name.replace(/\.[^.]*$/, "");
  at("downloads").replaceChildren(link("restored.png", `${stem}.png`, "Download PNG"),
    link(HOW, `${stem}.json`, "Download JSON"));
  at("status").textContent = "Done"; // heard by those who do not see the picture
  select(pictures[0]);
  go("done");
  at("split").focus({ preventScroll: true });
}

function view(file, number) {
  const input = element("input");
  Object.assign(input, { type: "radio", name: "view", value: file, checked: number === 0 });
  input.addEventListener("change", () => select(file));
  const label = element("label");
  label.append(input, title(file));
  return label;
}

function title(file) {
  return NAMES[file] ?? file.replace(".png", "").replace("-", " ");
}

function select(file) {
  at("after").src = `/jobs/${job}/${file}`;
  at("after").alt = `The photograph: ${title(file)}`;
  at("after-name").textContent = title(file);
  at("view-note").textContent = NOTES[file] ?? "";
}

// Make room for a picture of any shape: as wide as there is room, and never taller than the window.
function fit({ naturalWidth: width, naturalHeight: height }) {
  at("compare").style.aspectRatio = `${width} / ${height}`;
  at("compare").style.maxWidth = `min(100%, calc(72vh * ${width / height}))`;
}

function split(percent) {
  const rounded = Math.round(Math.min(100, Math.max(0, percent)));
  at("split").value = rounded;
  at("split").setAttribute("aria-valuetext", `${rounded} % as it was`);
  at("compare").style.setProperty("--split", `${rounded}%`);
}

function pointed(event) {
  if (event.type === "pointermove" && !event.buttons) return;
  const box = at("compare").getBoundingClientRect();
  split((100 * (event.clientX - box.left)) / box.width);
}

function element(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function link(file, download, text) {
  const made = element("a", text);
  Object.assign(made, { href: `/jobs/${job}/${file}`, download, className: "button" });
  return made;
}

// What the user does --------------------------------------------------------------------------

at("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) choose(target.files[0], target.files[0].name);
  target.value = ""; // so that the same file can be chosen again
});
at("example").addEventListener("click", () => useExample().catch(fail));
at("preview").addEventListener("error", ({ target }) => { target.className = "cannot"; });
at("cancel").addEventListener("click", () => {
  forget();
  go("chosen");
  at("restore").focus({ preventScroll: true });
});
at("again").addEventListener("click", () => { forget(); chosen.file = null; go("empty"); });
at("split").addEventListener("input", ({ target }) => split(Number(target.value)));
for (const kind of ["pointerdown", "pointermove"]) at("compare").addEventListener(kind, pointed);
at("compare").addEventListener("pointerdown", ({ pointerId }) => {
  at("compare").setPointerCapture(pointerId);
  at("split").focus({ preventScroll: true });
});
at("compare").addEventListener("mousedown", (event) => event.preventDefault()); // keeps the focus

form.addEventListener("submit", (event) => { event.preventDefault(); restore(); });
form.addEventListener("input", () => {
  at("strength-value").textContent = form.elements.strength.value;
  const isFace = form.elements.whole.value !== "true";
  Object.assign(at("whole-options"), { disabled: isFace, hidden: isFace });
});

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const [file] = event.dataTransfer.files;
  if (file) choose(file, file.name);
});
document.addEventListener("paste", ({ clipboardData }) => {
  const [file] = clipboardData.files;
  if (file) choose(file, file.name);
});
addEventListener("pagehide", forget);

go("empty");
ask("/about.json").then((found) => {
  about = found;
  for (const [name, value] of Object.entries(found.defaults)) form.elements[name].value = value;
  at("strength-value").textContent = form.elements.strength.value;
  at("about").textContent = found.model;
}).catch(fail);
