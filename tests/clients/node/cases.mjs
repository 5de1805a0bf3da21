// Runs cases one after the other and prints one JSON object: what each returned or threw.

export const HELLO = [{ role: "user", content: "one two three" }];

export const ASKED = [{ role: "user", content: "How is the weather in Oslo?" }];
export const TOOL = "weather";
export const SCHEMA = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
};
export const AUDIO = Buffer.concat([Buffer.from("RIFF\r\n--\0\xff", "latin1"), Buffer.alloc(80000, 7)]);
export const IMAGE = Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), Buffer.alloc(500)]);
export const LINES = Buffer.from('{"custom_id":"1"}\n'.repeat(2000));

/** Take all events of a stream; an error that ends it is thrown with what `came` before. */
export async function drain(stream, pick = (event) => event) {
  const came = [];
  try {
    for await (const event of stream) came.push(pick(event));
  } catch (error) {
    throw Object.assign(error, { came });
  }
  return came;
}

/** Take the first event of a stream and leave. */
export async function first(stream) {
  for await (const event of stream) return event;
  throw new Error("there was none");
}

export async function run(cases) {
  const wanted = process.argv.slice(2);
  const names = wanted.length ? wanted : Object.keys(cases);
  const results = {};
  for (const name of names) {
    try {
      results[name] = { value: await cases[name]() };
    } catch (error) {
      results[name] = { error: describe(error) };
    }
  }
  console.log(JSON.stringify(results));
}

function describe(error) {
  return {
    class: error.constructor.name,
    status: error.status ?? null,
    code: error.code ?? null,
    type: error.type ?? null,
    message: error.message,
    body: error.error ?? null,
    id: error.headers?.get("x-trunkline-id") ?? null,
    request_id: error.requestID ?? null,
    came: error.came ?? null,
  };
}
