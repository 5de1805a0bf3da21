// Runs several pieces of JavaScript, given as a list in JSON, each as the module it is: the SDKs that they
// import take long to load, once is enough.

import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const directory = mkdtempSync(join(tmpdir(), "several-"));
symlinkSync(join(process.cwd(), "node_modules"), join(directory, "node_modules"));
const write = process.stdout.write;
const said = [];
for (const [number, code] of JSON.parse(process.argv[2]).entries()) {
  const file = join(directory, `${number}.mjs`);
  writeFileSync(file, code);
  let out = "";
  process.stdout.write = (text) => { out += typeof text === "string" ? text : new TextDecoder().decode(text); return true; };
  try {
    await import(pathToFileURL(file));
  } catch (error) {
    out += `${code}\n${error.stack}`;
  }
  said.push(out);
}
process.stdout.write = write;
rmSync(directory, { recursive: true });
console.log(JSON.stringify(said));
