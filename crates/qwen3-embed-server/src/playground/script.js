// The playground has four forms. Each form sends requests to the public routes of this server and shows the responses.

import { $, composing, decimal, element, plural, template } from "./document.js";
import { map } from "./map.js";
import { embeddingRequest, fetched, missing, post, Refusal, server, SNIPPETS, url, wantsKey } from "./requests.js";
import { cosineMatrix, dot, units } from "./vectors.js";

/** Texts beyond this number are embedded but not shown in the matrix. Browsers are slow with very many cells. */
const MATRIX_LIMIT = 100;
/** The text color of a cell changes at this position between `--heat-low` and `--heat-high`. */
const INK_TURNS_AT = 0.605;
const POLL_MS = 1000, SLIDER_PAUSE_MS = 150;

// ---- Controls ----

/** A list of boxes with one text each. */
class TextList {
  constructor(fieldset) {
    this.noun = fieldset.dataset.noun;
    const examples = [...fieldset.children];
    fieldset.replaceChildren(template("texts"));
    this.list = $("ol", fieldset);
    $("legend", fieldset).textContent = `${this.noun[0].toUpperCase()}${this.noun.slice(1)}s`;
    const add = $(".add", fieldset);
    add.textContent = `Add a ${this.noun}`;
    add.addEventListener("click", () => this.add().focus());
    $(".clear", fieldset).addEventListener("click", () => {
      this.list.replaceChildren();
      this.add().focus();
    });
    this.list.addEventListener("keydown", (event) => this.keydown(event));
    this.list.addEventListener("paste", (event) => this.paste(event));
    this.list.addEventListener("input", () => this.number());
    for (const example of examples) this.insert(null, example.textContent).example = example;
    this.number();
  }

  get boxes() { return [...this.list.querySelectorAll("textarea")]; }

  /** Adds an empty box after another one, or at the end. */
  add(after = null) {
    const box = this.insert(after, "");
    this.number();
    return box;
  }

  insert(after, text) {
    const box = element("textarea", { rows: 1, spellcheck: "false" });
    box.value = text;
    const remove = element("button", { type: "button", title: "Remove" }, "×");
    const item = element("li", {}, element("span", { "aria-hidden": "true" }), box, remove);
    remove.addEventListener("click", () => this.remove(item));
    after ? after.closest("li").after(item) : this.list.append(item);
    return box;
  }

  /** Removes a box and moves the focus to a neighbor. */
  remove(item, towards = "nextElementSibling") {
    const neighbor = item[towards] ?? item.previousElementSibling ?? item.nextElementSibling;
    item.remove();
    this.number();
    (neighbor ? $("textarea", neighbor) : this.add()).focus();
  }

  /** Labels each box with its number, or with the language of the example that it holds. */
  number() {
    this.boxes.forEach((box, i) => {
      const example = box.value === box.example?.textContent ? box.example : null;
      box.label = example?.title || `#${i + 1}`;
      box.lang = example?.lang ?? "";
      box.previousSibling.textContent = box.label;
      box.setAttribute("aria-label", `${this.noun} ${i + 1}`);
      box.nextSibling.setAttribute("aria-label", `Remove ${this.noun} ${i + 1}`);
    });
  }

  keydown(event) {
    const box = event.target;
    const plain = !event.shiftKey && !event.ctrlKey && !event.metaKey && !event.altKey;
    if (box.localName !== "textarea" || composing(event)) return;
    if (event.key === "Enter" && plain) {
      event.preventDefault();
      this.add(box).focus();
    } else if (event.key === "Backspace" && box.value === "" && this.list.children.length > 1) {
      event.preventDefault();
      this.remove(box.closest("li"), "previousElementSibling");
    }
  }

  paste(event) {
    const box = event.target;
    const lines = event.clipboardData.getData("text/plain").split(/\r?\n/).filter((line) => line.trim() !== "");
    if (box.value !== "" || lines.length < 2) return;
    event.preventDefault();
    box.value = lines[0];
    let last = box;
    for (const line of lines.slice(1)) last = this.insert(last, line);
    this.number();
    last.focus();
  }

  /** The texts of the boxes that are not empty, with their labels. */
  texts() {
    const filled = this.boxes.filter((box) => box.value !== "");
    if (!filled.length) throw missing(`Write at least one ${this.noun}.`, this.boxes[0]);
    return filled.map(({ value, label, lang }) => ({ text: value, label, lang }));
  }
}

/** A choice between the model's prompts, no prompt, and the user's own instruction. */
class Instruction {
  constructor(place) {
    place.append(template("instruction"));
    $("span", place).textContent = place.dataset.label;
    this.select = $("select", place);
    this.custom = $(".custom", place);
    this.prompt = $(".prompt", place);
    this.prompts = server.info.embedder.prompts;
    this.select.append(element("option", { value: "none" }, "None"));
    for (const name of Object.keys(this.prompts)) {
      const selected = name === place.dataset.default ? "" : null;
      this.select.append(element("option", { value: `prompt ${name}`, selected }, `The model’s prompt “${name}”`));
    }
    this.select.append(element("option", { value: "custom" }, "My own instruction …"));
    this.select.addEventListener("change", () => {
      this.describe();
      if (!this.custom.hidden) $("textarea", this.custom).focus();
    });
    this.describe();
  }

  /** The name of the chosen prompt, or null. */
  name() {
    return this.select.value.startsWith("prompt ") ? this.select.value.slice("prompt ".length) : null;
  }

  describe() {
    this.custom.hidden = this.select.value !== "custom";
    const name = this.name();
    // Line breaks are shown, because they are part of the prompt.
    this.prompt.textContent = name === null ? "" : this.prompts[name].replaceAll("\n", "⏎\n") || "(an empty prompt)";
  }

  /** The fields of the request for the chosen prompt. */
  options() {
    if (this.select.value === "none") return {};
    const name = this.name();
    if (name !== null) return { prompt_name: name };
    const box = $("textarea", this.custom);
    if (box.value === "") throw missing("Write an instruction, or choose another.", box);
    return { instruct: box.value };
  }
}

/** A slider and a number field with the same value. */
class Dimensions {
  constructor(place, changed) {
    place.append(template("dimensions"));
    const { dimensions, min_dimensions } = server.info.embedder;
    this.all = dimensions;
    this.slider = $('[type="range"]', place);
    this.number = $('[type="number"]', place);
    const powers = element("datalist", { id: `powers-${place.closest("section").id}` });
    for (let power = 32; power <= dimensions; power *= 2) powers.append(element("option", { value: power }));
    place.append(powers);
    const range = { min: min_dimensions, max: dimensions, value: dimensions };
    for (const input of [this.slider, this.number]) Object.assign(input, range);
    this.slider.setAttribute("list", powers.id);
    const soon = () => {
      clearTimeout(this.pause);
      this.pause = setTimeout(changed, SLIDER_PAUSE_MS);
    };
    for (const [moved, follows] of [[this.slider, this.number], [this.number, this.slider]]) {
      moved.addEventListener("input", () => (follows.value = moved.value));
      moved.addEventListener("change", soon);
    }
  }

  /** The fields of the request. There are none if all dimensions are chosen. The server checks the number. */
  options() {
    clearTimeout(this.pause);
    if (this.number.value === "") throw missing("Choose how many dimensions.", this.number);
    const dimensions = Number(this.number.value);
    return dimensions === this.all ? {} : { dimensions };
  }
}

// ---- Results ----

/** A form with its result. `prepare` returns the requests for the form, and a function that turns the responses into a
 * summary and nodes. */
class Panel {
  constructor(section, prepare) {
    this.section = section;
    this.prepare = prepare;
    section.append(template("results"));
    this.results = $(".results", section);
    this.form = $("form", section);
    const run = (event) => {
      event.preventDefault();
      this.run();
    };
    this.form.addEventListener("submit", run);
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !composing(event)) run(event);
    });
    if (/^(Mac|iP)/.test(navigator.platform)) $(".submit kbd", this.form).textContent = "⌘";
    this.language = "curl";
    for (const button of this.section.querySelectorAll("[data-language]")) {
      button.addEventListener("click", () => this.showSnippet(button.dataset.language));
    }
    $(".copy", section).addEventListener("click", ({ target }) => this.copy(target));
  }

  /** Computes the example in the form when the panel is shown for the first time. Later changes and errors do not repeat
   * this. */
  start() {
    if (!this.started) this.run();
    this.started = true;
  }

  /** Sends the requests, and aborts earlier requests that are still in progress. */
  async run() {
    this.controller?.abort();
    const controller = new AbortController();
    this.controller = controller;
    const start = performance.now();
    try {
      const { requests, show } = this.prepare();
      this.requests = requests;
      this.showSnippet(this.language);
      this.show("Waiting for the response …", null);
      const answers = await Promise.all(requests.map((request) => post(request, controller.signal)));
      const elapsed = since(start);
      if (controller.signal.aborted) return;
      const [summary, nodes] = show(answers);
      const tokens = answers.reduce((sum, { usage }) => sum + usage.total_tokens, 0);
      this.show([summary, plural(tokens, "token"), elapsed].join(" · "), nodes);
    } catch (error) {
      // A newer request has replaced this one and shows its own result.
      if (this.controller === controller) this.showError(error, since(start));
    } finally {
      // If one request has failed, the others are stopped.
      controller.abort();
    }
  }

  /** Shows a result. If `nodes` is null, a request is in progress, and the previous result stays visible, dimmed. */
  show(status, nodes) {
    this.results.setAttribute("aria-busy", nodes === null);
    $(".error", this.results).replaceChildren();
    $(".status", this.results).textContent = status;
    if (nodes) $(".answer", this.results).replaceChildren(...nodes);
  }

  showError(error, elapsed) {
    const refused = error instanceof Refusal;
    this.show(refused ? `Refused · ${elapsed}` : "", []);
    const message = refused || error.field ? error.message : `The server does not respond: ${error.message}`;
    $(".error", this.results).append(element("p", {}, message));
    if (refused) $(".error", this.results).append(element("p", {}, error.detail.join(" · ")));
    error.field?.focus();
  }

  async showSnippet(language) {
    this.language = language;
    for (const button of this.section.querySelectorAll("[data-language]")) {
      button.setAttribute("aria-pressed", button.dataset.language === language);
    }
    const requests = this.requests;
    const key = await wantsKey();
    if (requests !== this.requests || language !== this.language) return;
    $("code", this.section).textContent = SNIPPETS[language](requests, key);
    $(".request", this.section).hidden = false;
  }

  async copy(button) {
    const code = $("code", this.section);
    getSelection().selectAllChildren(code);
    // In a page from another machine over plain HTTP, browsers have no clipboard API, only the old command.
    navigator.clipboard ? await navigator.clipboard.writeText(code.textContent) : document.execCommand("copy");
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }
}

const since = (start) => `${Math.ceil(performance.now() - start)} ms`;

/** The cosine similarity of each pair of texts, as a colored table. */
function matrix(texts, rows) {
  const shown = texts.slice(0, MATRIX_LIMIT);
  const cosines = cosineMatrix(rows.slice(0, MATRIX_LIMIT));
  const lowest = Math.min(...cosines.flat());
  const head = element("tr", {}, element("td"));
  for (const { label, text } of shown) head.append(element("th", { scope: "col", title: text }, label));
  const body = element("tbody");
  shown.forEach(({ label, text, lang }, i) => {
    const name = element("div", {}, element("b", {}, label), element("span", { lang: lang || null }, text.slice(0, 200)));
    const row = element("tr", {}, element("th", { scope: "row", title: text }, name));
    for (const value of cosines[i]) row.append(element("td", {}, decimal(value)));
    body.append(row);
  });
  const caption = element("caption", {}, "Cosine similarity of each pair of texts");
  const table = element("table", {}, caption, element("thead", {}, head), body);
  const size = shown.length > 8 ? "matrix many" : "matrix";
  const box = element("div", { class: size, tabindex: 0, role: "region", "aria-label": "Similarity matrix" }, table);
  const legend = template("legend").firstElementChild;
  const fit = $("input", legend);
  const color = () => {
    // The color scale covers a range of at least 0.05, so that nearly equal similarities do not look different.
    const low = Math.min(fit.checked ? Math.floor(lowest * 20) / 20 : Math.min(lowest, 0), 0.95);
    $(".low", legend).textContent = low.toFixed(2).replace("-", "−");
    [...body.querySelectorAll("td")].forEach((cell, k) => {
      const value = cosines[Math.floor(k / shown.length)][k % shown.length];
      const share = Math.min(Math.max((value - low) / (1 - low), 0), 1);
      cell.style.setProperty("--share", share.toFixed(4));
      cell.classList.toggle("over", share > INK_TURNS_AT);
    });
  };
  fit.addEventListener("change", color);
  color();
  const rest = texts.length > shown.length ? `The matrix shows the first ${MATRIX_LIMIT} texts.` : "";
  return [box, legend, element("p", { class: "hint" }, rest)];
}

/** A list of the documents with their scores, best first. Bars that start at zero show the scores. */
function ranking(documents, scores) {
  const order = documents.map((_, i) => i).filter((i) => scores[i] !== undefined).sort((a, b) => scores[b] - scores[a]);
  const low = Math.min(0, ...order.map((i) => scores[i]));
  const span = Math.max(1, ...order.map((i) => scores[i])) - low;
  const list = element("ol", { class: "ranking" });
  order.forEach((i, place) => {
    const bar = element("i");
    bar.style.setProperty("--from", (Math.min(scores[i], 0) - low) / span);
    bar.style.setProperty("--width", Math.abs(scores[i]) / span);
    const { text } = documents[i];
    const name = element("span", { class: "text", title: text }, text.slice(0, 1000));
    const score = element("span", { class: "score" }, decimal(scores[i]));
    const track = element("span", { class: "bar", "aria-hidden": "true" }, bar);
    list.append(element("li", {}, element("span", {}, `${place + 1}`), name, score, track));
  });
  return [list];
}

// ---- The four panels ----

function similarityPanel(section) {
  const texts = new TextList($(".texts", section));
  const instruction = new Instruction($(".instruction", section));
  const panel = new Panel(section, () => {
    const chosen = texts.texts();
    const options = { ...dimensions.options(), ...instruction.options() };
    const requests = [embeddingRequest(chosen.map(({ text }) => text), options)];
    return { requests, show: ([answer]) => [sized(answer), matrix(chosen, units(answer))] };
  });
  const dimensions = new Dimensions($(".dimensions", section), () => panel.requests && panel.run());
  return panel;
}

function searchPanel(section) {
  const instruction = new Instruction($(".instruction", section));
  const texts = new TextList($(".texts", section));
  const panel = new Panel(section, () => {
    const asked = query(section);
    const documents = texts.texts();
    const size = dimensions.options();
    const requests = [
      embeddingRequest(asked, { ...size, ...instruction.options() }),
      embeddingRequest(documents.map(({ text }) => text), size),
    ];
    const show = ([first, second]) => {
      const [vector] = units(first);
      return [sized(second), ranking(documents, units(second).map((row) => dot(vector, row)))];
    };
    return { requests, show };
  });
  const dimensions = new Dimensions($(".dimensions", section), () => panel.requests && panel.run());
  return panel;
}

function rerankPanel(section) {
  const instruct = $(".instruct", section);
  const texts = new TextList($(".texts", section));
  return new Panel(section, () => {
    const asked = query(section);
    const documents = texts.texts();
    const body = {
      model: server.info.reranker.id,
      query: asked,
      documents: documents.map(({ text }) => text),
    };
    if (instruct.value !== "") body.instruct = instruct.value;
    const show = ([answer]) => {
      const scores = [];
      for (const { index, relevance_score } of answer.results) scores[index] = relevance_score;
      return [plural(documents.length, "document"), ranking(documents, scores)];
    };
    return { requests: [{ path: "v1/rerank", body }], show };
  });
}

function mapPanel(section) {
  const texts = new TextList($(".texts", section));
  const instruction = new Instruction($(".instruction", section));
  const count = $(".clusters", section);
  const panel = new Panel(section, () => {
    const chosen = texts.texts();
    const k = clusterCount(count, chosen.length);
    const options = { ...dimensions.options(), ...instruction.options() };
    const requests = [embeddingRequest(chosen.map(({ text }) => text), options)];
    const show = ([answer]) => {
      const [summary, nodes] = map(chosen, units(answer), k);
      return [`${sized(answer)} · ${summary}`, nodes];
    };
    return { requests, show };
  });
  const again = () => panel.requests && panel.run();
  const dimensions = new Dimensions($(".dimensions", section), again);
  count.addEventListener("change", again);
  return panel;
}

/** The number of clusters in a field. By default, there are as many clusters as texts in a cluster. */
function clusterCount(field, nTexts) {
  if (field.validity.badInput) throw missing("The number of clusters is not a number.", field);
  if (field.value === "") return Math.round(Math.sqrt(nTexts));
  const count = Number(field.value);
  if (!Number.isInteger(count) || count < 1) throw missing("The number of clusters must be 1 or more.", field);
  return count;
}

const sized = (answer) => `${plural(answer.data.length, "vector")} of ${plural(units(answer)[0].length, "dimension")}`;

function query(section) {
  const box = $(".query", section);
  if (box.value === "") throw missing("Write a query.", box);
  return box.value;
}

// ---- The page ----

const PANELS = { similarity: similarityPanel, search: searchPanel, rerank: rerankPanel, map: mapPanel };

/** Waits until the server is ready and shows its messages meanwhile. Then loads the information about its models. */
async function ready() {
  const waiting = $("#waiting");
  for (;;) {
    try {
      const response = await fetch(url("readyz"), { cache: "no-store" });
      if (!response.ok) throw new Refusal(response.status, response.statusText, await response.text());
      server.info = await fetched("info", { cache: "no-store" });
      waiting.hidden = true;
      return;
    } catch (error) {
      const lines = error instanceof Refusal ? ["Loading …", error.message] : ["Waiting for the server …", ""];
      // Writing the status again would make screen readers repeat it.
      for (const line of waiting.querySelectorAll("p")) {
        const text = lines.shift();
        if (line.textContent !== text) line.textContent = text;
      }
      waiting.hidden = false;
    }
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}

function facts({ embedder, reranker, version }) {
  for (const [term, model] of Object.entries({ Embedder: embedder, Reranker: reranker })) {
    if (model) $("#facts").append(element("div", {}, element("dt", {}, term), element("dd", {}, model.id)));
  }
  $("#version").textContent = `qwen3-embed ${version}`;
}

/** Shows the tabs for the loaded models. Arrow keys move between tabs, as users of screen readers expect. */
function tabs() {
  const list = $("#tabs");
  const all = [...list.children].filter((tab) => server.info[tab.dataset.needs]);
  for (const tab of list.children) tab.hidden = !all.includes(tab);
  const name = (tab) => tab.getAttribute("aria-controls");
  const panels = new Map(all.map((tab) => [tab, PANELS[name(tab)]($(`#${name(tab)}`))]));
  const select = (chosen) => {
    for (const tab of all) {
      tab.setAttribute("aria-selected", tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      $(`#${name(tab)}`).hidden = tab !== chosen;
    }
    history.replaceState(null, "", `#${name(chosen)}`);
    panels.get(chosen).start();
  };
  for (const tab of all) tab.addEventListener("click", () => select(tab));
  list.addEventListener("keydown", ({ key, target }) => {
    const at = all.indexOf(target);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: -1 }[key];
    if (to === undefined) return;
    select(all.at(to % all.length));
    all.at(to % all.length).focus();
  });
  select(all.find((tab) => `#${name(tab)}` === location.hash) ?? all[0]);
  list.hidden = all.length < 2;
}

await ready();
facts(server.info);
$("#notice").textContent = server.info.notice ?? "";
$("#notice").hidden = !server.info.notice;
tabs();
