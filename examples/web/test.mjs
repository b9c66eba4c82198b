// The page in a real browser, against the native command line:
//     node examples/web/test.mjs LOGITS_BINARY OUTPUT_FOLDER [MODULES_FOLDER [NUMBER]]
// after `cargo build --bin logits`, `examples/web/run --build` and `npm ci --prefix examples/web`; the output folder must exist. CHROMIUM names the browser. Its numbers are those of the native CPU path, within what both
// promise of float64; each operation, option and type is within its bound; a picture of it is left in the folder; and of
// modules in a folder, as `LOGITS_VARIANTS` leaves them, the browser's own WGSL compiler takes each. With NUMBER every
// operation, option and type runs on WebGPU where it is even and in WebAssembly where it is odd, and the compiler gets
// every fourth module, from module NUMBER / 2 % 4 on.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const [binary, folder, modules, number] = process.argv.slice(2);
assert.match(number ?? "0", /^\d+$/, "NUMBER is no number");
const here = fileURLToPath(new URL(".", import.meta.url));
const types = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm" };
const site = "http://localhost";

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

// The page as it is served, without a server.
async function open(query, before = () => {}) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 1000 } });
  await context.addInitScript(before);
  const page = await context.newPage();
  page.setDefaultTimeout(120_000);
  page.on("pageerror", (error) => assert.fail(`the page threw ${error.stack}`));
  page.on("console", (message) => message.type() === "error" && console.log(`browser: ${message.text()}`));
  await page.route("**/*", (route) => {
    const path = new URL(route.request().url()).pathname;
    const file = join(here, path === "/" ? "index.html" : path);
    return route.fulfill({ path: file, contentType: types[extname(file)] });
  });
  await page.goto(`${site}/${query}`);
  await page.waitForSelector("body[data-ready]");
  return page;
}

function npy(descr, shape, array) {
  const header = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  const start = Buffer.from(`\x93NUMPY\x01\x00\x76\x00${header.padEnd(117)}\n`, "latin1");
  return Buffer.concat([start, Buffer.from(array.buffer)]);
}

const numbers = (name) => {
  const bytes = readFileSync(join(folder, name));
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset + 128, bytes.byteOffset + bytes.length));
};

const text = (page, id) => page.textContent(`#${id}`);
// Reads the loss, and all rows of probabilities and gradients.
const results = (page) => page.evaluate(() => {
  const found = window.logits.results();
  const rows = Number(document.getElementById("row").max) + 1;
  const each = (of) => Array.from({ length: rows }, (_, row) => [...of.call(found, row)]).flat();
  return { loss: found.loss, softmax: each(found.softmax), gradient: each(found.gradient) };
});
const settled = (page) => page.waitForFunction(() => /^Computed|^Finished/.test(document.getElementById("message").textContent));

// Some rows are confident, one has a -inf; all are of class 0.
const [rows, classes] = [37, 1000];
const x = Float32Array.from({ length: rows * classes }, (_, at) => {
  const row = Math.floor(at / classes);
  if (at === 5 * classes + 1) return -Infinity;
  return 6 * Math.sin(at * 12.9898) + (at % classes === 0 && row % 3 === 1 ? 20 : 0) + (row % 3 === 2 ? 100 : 0);
});
const file = { name: "x.npy", mimeType: "", buffer: npy("<f4", [rows, classes], x) };
writeFileSync(join(folder, "x.npy"), file.buffer);
writeFileSync(join(folder, "y.npy"), npy("<i8", [rows], new BigInt64Array(rows)));
const at = (name) => join(folder, name);
const native = JSON.parse(execFileSync(binary, ["loss", "--device", "cpu", "--logits", at("x.npy"), "--targets", at("y.npy"),
  "--probs", at("p.npy"), "--grad", at("g.npy"), "--json"], { encoding: "utf8" }));
const [softmax, gradient] = [numbers("p.npy"), numbers("g.npy")];

// The limits are twice the bounds of README.md, because both sides may err.
function same(found, where) {
  assert.ok(Math.abs(found.loss - native.loss) <= 2e-6 * native.loss, `${where}: loss ${found.loss}, not ${native.loss}`);
  assert.equal(found.softmax.length, softmax.length);
  assert.equal(found.gradient.length, gradient.length);
  let [worst, worstGradient] = [0, 0];
  for (let i = 0; i < softmax.length; i += 1) {
    worst = Math.max(worst, Math.abs(found.softmax[i] - softmax[i]) / Math.max(softmax[i], 1.2e-38));
    worstGradient = Math.max(worstGradient, Math.abs(found.gradient[i] - gradient[i]) * rows);
  }
  assert.ok(worst <= 4e-6, `${where}: a probability is off by ${worst}`);
  assert.ok(worstGradient <= 2e-6, `${where}: a gradient is off by ${worstGradient}`);
  const [p, g] = [worst.toExponential(1), worstGradient.toExponential(1)];
  console.log(`${where}: as on the native CPU; probabilities differ by ${p} relative, gradients by ${g}`);
}

const page = await open("?device=gpu");
console.log(await text(page, "gpu"));
console.log(await text(page, "cpu"));
assert.match(await text(page, "gpu"), /webgpu/);
assert.match(await text(page, "cpu"), /simd128/);
assert.match(await text(page, "message"), /^Computed on both/);
assert.ok(Number(await text(page, "difference")) < 2e-6);
await page.screenshot({ path: at("page.png"), fullPage: true });
console.log(`a picture of the page: ${at("page.png")}`);

await page.setInputFiles("#file", file);
await page.waitForFunction((count) => Number(document.getElementById("row").max) === count - 1, rows);
await settled(page);
same(await results(page), "WebGPU");
assert.match(await page.evaluate(() => window.logits.gpu.blocking()), /must not wait/);
assert.equal(await page.evaluate(() => window.logits.cpu.blocking()), undefined);

// A wait ends when its time is over, and an upload of several pieces waits for those before.
assert.match(await page.evaluate(() => window.logits.gpu.hurried()), /time allowed/);
assert.equal(await page.evaluate(() => window.logits.gpu.uploaded()), 7);

// Bad input is reported, and the earlier results stay.
await page.setInputFiles("#file", { ...file, buffer: file.buffer.subarray(0, 1000) });
await page.waitForSelector("#message.wrong");
assert.match(await text(page, "message"), /x.npy: cut short: 872 bytes/);
assert.equal((await results(page)).softmax.length, rows * classes);
await page.fill("#target", "1000");
await page.dispatchEvent("#target", "change");
await page.waitForFunction(() => /1000/.test(document.getElementById("message").textContent));
console.log(`a target that is no class: ${await text(page, "message")}`);

const alone = await open("", () => delete Navigator.prototype.gpu);
assert.match(await text(alone, "gpu"), /No GPU is used/);
assert.match(await text(alone, "message"), /^Computed on the CPU alone/);
console.log(`without WebGPU: ${await text(alone, "gpu")}`);
await alone.setInputFiles("#file", file);
await alone.waitForFunction((count) => Number(document.getElementById("row").max) === count - 1, rows);
await settled(alone);
same(await results(alone), "WebAssembly");

// The page runs only some of the kernels; the modules are all of them.
if (modules) {
  const all = readdirSync(modules).filter((name) => name.endsWith(".wgsl")).sort();
  assert.ok(all.length > 500, `${all.length} modules in ${modules}`);
  const names = number ? all.filter((_, nth) => nth % 4 === Math.floor(number / 2) % 4) : all;
  assert.ok(names.length > 100, `${names.length} of ${all.length} modules`);
  const sources = names.map((name) => readFileSync(join(modules, name), "utf8"));
  const refused = await page.evaluate(async (sources) => {
    const adapter = await navigator.gpu.requestAdapter();
    const device = await adapter.requestDevice({ requiredFeatures: ["subgroups"] });
    const refused = [];
    for (const code of sources) {
      const { messages } = await device.createShaderModule({ code }).getCompilationInfo();
      const errors = messages.filter((message) => message.type === "error");
      if (errors.length > 0) refused.push(errors[0].message);
    }
    device.destroy();
    return refused;
  }, sources);
  assert.deepEqual(refused, []);
  console.log(`${sources.length} modules accepted by Tint of Chromium ${browser.version()}`);
}

for (const device of number ? [number % 2 === 0 ? "gpu" : "cpu"] : ["gpu", "cpu"]) {
  const start = Date.now();
  const { failed, text } = await page.evaluate(async (device) => {
    const { failed, text } = await window.logits[device].conformance();
    return { failed, text };
  }, device);
  console.log(`\n${text}`);
  console.log(`${Math.round((Date.now() - start) / 1000)} s`);
  assert.equal(failed, 0);
}
await browser.close();
