// Requests to the public routes of this server, and the same requests as commands and programs.

/** What the server has said about itself. */
export const server = {};

/** Whether requests need an API key. If they do, the snippets contain a variable for the key. */
export function wantsKey() {
  server.key ??= fetch(url("v1/models"), { credentials: "omit" }).then(({ status }) => status === 401, () => false);
  return server.key;
}

/** An error response of the server, with its exact message. */
export class Refusal extends Error {
  constructor(status, statusText, body) {
    const error = parsed(body)?.error;
    super(error?.message ?? (body.trim() || statusText || "no message"));
    this.status = status;
    this.detail = [`status ${status}`];
    for (const key of ["type", "param", "code"]) {
      if (error?.[key] != null) this.detail.push(`${key} ${error[key]}`);
    }
  }
}

/** An error about a form field, which is found before a request is sent. */
export const missing = (message, field) => Object.assign(new Error(message), { field });

/** The URL of a route, relative to this page, without the `user:password@` that the page's own URL may contain. */
export const url = (path) => new URL(path, location.origin + location.pathname).href;

function parsed(json) {
  try {
    return JSON.parse(json);
  } catch {
    return null;
  }
}

export async function fetched(path, options) {
  const response = await fetch(url(path), options);
  const body = await response.text();
  const answer = response.ok ? parsed(body) : null;
  if (answer === null) throw new Refusal(response.status, response.statusText, body);
  return answer;
}

export function post({ path, body }, signal) {
  const headers = { "content-type": "application/json" };
  return fetched(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** A request for embeddings in base64, which takes a third of the bytes that decimal numbers take. */
export const embeddingRequest = (input, options) => ({
  path: "v1/embeddings",
  body: { model: server.info.embedder.id, input, ...options, encoding_format: "base64" },
});

// ---- The request as a curl command or a Python program ----

export const SNIPPETS = {
  curl(requests, key) {
    return requests.map(({ path, body }) => {
      const quoted = JSON.stringify(body, null, 2).replaceAll("'", String.raw`'\''`);
      const authorization = key ? ` \\\n  -H "authorization: Bearer $API_KEY"` : "";
      return `curl '${url(path)}' \\\n  -H 'content-type: application/json'${authorization} \\\n  -d '${quoted}'`;
    }).join("\n\n") + "\n";
  },

  python(requests, key) {
    const os = key ? "import os\n" : "";
    if (!requests[0].path.endsWith("embeddings")) return urllibCall(requests[0], os);
    const names = requests.length > 1 ? ["query", "documents"] : ["response"];
    const calls = requests.map(({ body }, i) => openaiCall(names[i], body)).join("\n");
    const apiKey = key ? 'os.environ["API_KEY"]' : '"EMPTY"';
    const client = `client = OpenAI(base_url=${python(url("v1"))}, api_key=${apiKey})`;
    return `${os}${os && "\n"}from openai import OpenAI\n\n${client}\n${calls}`;
  },
};

/** A value as Python source. JSON is also Python if it does not contain `true`, `false` or `null`. */
const python = (value, depth = 1) => JSON.stringify(value, null, 4).replaceAll("\n", `\n${"    ".repeat(depth)}`);

function openaiCall(name, { encoding_format: chosenByTheClient, instruct, prompt_name, ...body }) {
  const extra = Object.entries({ instruct, prompt_name }).filter(([, value]) => value !== undefined);
  if (extra.length) body.extra_body = Object.fromEntries(extra);
  const passed = Object.entries(body).map(([key, value]) => `    ${key}=${python(value)},\n`).join("");
  return `${name} = client.embeddings.create(\n${passed})\n`;
}

/** A rerank request in Python with the standard library, because the openai package does not support reranking. */
function urllibCall({ path, body }, os) {
  const authorization = os && `, "authorization": "Bearer " + os.environ["API_KEY"]`;
  return `import json\n${os}import urllib.request\n
request = urllib.request.Request(
    ${python(url(path))},
    json.dumps(${python(body)}).encode(),
    {"content-type": "application/json"${authorization}},
)
with urllib.request.urlopen(request) as response:
    results = json.load(response)["results"]\n`;
}
