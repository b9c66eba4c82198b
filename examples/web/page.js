// The page: passes the user's choices to the crate, and draws its results. `?device=cpu` or
// `?device=gpu` chooses as `logits --device` does.
import init, { Batch, Place } from "./pkg/logits_web.js";

const at = (id) => document.getElementById(id);
const MOST_BARS = 20;

let gpu = null; // null where there is none
let cpu;
let batch;
// The batch that `results` were computed from, and the results.
let shown = null;
let results = null;
// The promise of the computation under way, or null; and whether its input has changed since.
let busy = null;
let stale = false;

function say(text, wrong = false) {
  at("message").textContent = text;
  at("message").classList.toggle("wrong", wrong);
}

function percent(p) {
  return Number.isNaN(p) ? "NaN" : p >= 0.0001 ? `${(100 * p).toFixed(2)} %` : p.toExponential(1);
}

function drawRow() {
  const row = Number(at("row").value);
  const softmax = results.softmax(row);
  const target = shown.target(row);
  let drawn = [...softmax.keys()];
  if (drawn.length > MOST_BARS) {
    drawn = drawn.sort((a, b) => softmax[b] - softmax[a]).slice(0, MOST_BARS);
  }
  const most = softmax.length > MOST_BARS ? `, the ${MOST_BARS} most likely of ${softmax.length} classes` : "";
  at("title").textContent = `Softmax of row ${row}${most}`;
  at("bars").replaceChildren(...drawn.map((index) => {
    const line = document.createElement("div");
    line.className = index === target ? "row target" : "row";
    line.innerHTML = `<span class="class">${index}</span><span class="track"><div class="bar"></div></span><span>${percent(softmax[index])}</span>`;
    line.querySelector(".bar").style.width = `${100 * (softmax[index] || 0)}%`;
    return line;
  }));
  const chances = results.chances(row);
  at("best").replaceChildren(...[...results.best(row)].map((index, nth) => {
    const line = document.createElement("li");
    line.textContent = `class ${index}: ${percent(chances[nth])}${index === target ? ", the target" : ""}`;
    return line;
  }));
  at("target").value = target;
}

function drawTimes(onGpu, onCpu) {
  const ms = (time) => (time === undefined ? "–" : `${time.toFixed(1)} ms`);
  const lines = [["softmax", "softmax_ms"], ["loss and gradient", "loss_ms"], ["top 5", "top_k_ms"]];
  at("times").innerHTML = lines
    .map(([name, field]) => `<tr><th>${name}<td>${ms(onGpu?.[field])}<td>${ms(onCpu[field])}`).join("");
}

async function computeOnce() {
  const [now, temperature] = [batch, 2 ** Number(at("temperature").value)];
  at("degrees").textContent = temperature.toFixed(2);
  say(`Computing ${now.rows()} rows of ${now.classes()} classes.`);
  const onCpu = await now.compute(cpu, temperature);
  let onGpu = null;
  if (gpu) {
    // The first call compiles the kernels.
    if (now !== shown) (await now.compute(gpu, temperature)).free();
    onGpu = await now.compute(gpu, temperature);
  }
  [shown, results] = [now, onGpu ?? onCpu];
  at("loss").textContent = results.loss.toPrecision(6);
  const accuracy = `${(100 * results.accuracy).toFixed(1)} % of ${now.rows()} rows are right`;
  at("loss-more").textContent = `nats a row; perplexity ${results.perplexity.toPrecision(4)}; ${accuracy}`;
  at("difference").textContent = onGpu ? onGpu.difference(onCpu).toExponential(2) : "– (no GPU)";
  drawTimes(onGpu, onCpu);
  drawRow();
  const fellBack = results.fell_back();
  say(fellBack ? `Finished on the CPU: ${fellBack}` : gpu ? "Computed on both." : "Computed on the CPU alone.");
}

// Runs one computation at a time. Changes made meanwhile are computed together, once more.
function compute() {
  stale = true;
  busy ??= (async () => {
    while (stale) {
      stale = false;
      try {
        await computeOnce();
      } catch (error) {
        say(error.message, true);
      }
    }
    busy = null;
  })();
  return busy;
}

function take(next) {
  batch = next;
  at("row").value = 0;
  at("row").max = batch.rows() - 1;
  at("target").max = batch.classes() - 1;
  return compute();
}

async function seeded() {
  try {
    await take(Batch.seeded(Number(at("rows").value), Number(at("classes").value), (Math.random() * 2 ** 32) >>> 0));
  } catch (error) {
    say(error.message, true);
  }
}

async function dropped(file) {
  try {
    await take(Batch.from_npy(new Uint8Array(await file.arrayBuffer())));
  } catch (error) {
    say(`${file.name}: ${error.message}`, true);
  }
}

function listen() {
  at("rows").onchange = at("classes").onchange = at("again").onclick = seeded;
  at("temperature").oninput = compute;
  at("file").onchange = (event) => event.target.files[0] && dropped(event.target.files[0]);
  at("row").onchange = () => {
    const row = Math.trunc(Number(at("row").value)) || 0;
    at("row").value = Math.max(0, Math.min(row, batch.rows() - 1));
    if (shown === batch) drawRow();
  };
  at("target").onchange = async () => {
    await busy;
    batch.set_target(Number(at("row").value), Math.max(0, Math.trunc(Number(at("target").value)) || 0));
    compute();
  };
  document.body.ondragover = (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  };
  document.body.ondragleave = () => document.body.classList.remove("dragging");
  document.body.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (event.dataTransfer.files[0]) dropped(event.dataTransfer.files[0]);
  };
}

await init();
cpu = await Place.open("cpu");
at("cpu").textContent = cpu.label();
try {
  const found = await Place.open(new URLSearchParams(location.search).get("device") ?? "auto");
  at("gpu").textContent = found.is_gpu() ? found.label() : `No GPU is used. ${found.label()}`;
  if (found.is_gpu()) gpu = found;
} catch (error) {
  at("gpu").textContent = `No GPU is used: ${error.message}.`;
}
listen();
await seeded();
// For the test of this page.
window.logits = { Place, gpu, cpu, results: () => results };
document.body.dataset.ready = "yes";
