// The page at "/": asks the server, and shows answers with the passages that carry them. Texts from
// elsewhere (questions, answers, passages) are set as text and never as markup.

const $ = (id) => document.getElementById(id);
const form = $("ask");
const question = $("question");
const store = sessionStorage;
const TRIES = 5;

let asking = null; // the AbortController of the question that is being answered
let server = {};
let shown = null; // the answer on the page
const asked = new URLSearchParams(location.search);

// texts

const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;

/** Control characters and those that turn the direction of text, made visible. */
function visible(text) {
  return String(text ?? "").replace(HIDDEN, (sign) => {
    const code = sign.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

function percent(share) {
  const value = 100 * share;
  let digits = value.toFixed(value < 10 ? 1 : 0);
  if (value >= 99.5) digits = "100";
  if (value < 0.1) digits = value > 0 ? "<\u00a00.1" : "0";
  return `${digits}\u00a0%`;
}

const plural = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;

/** The address if it is one of the web; anything else leads nowhere. */
function webAddress(source) {
  try {
    const address = new URL(source);
    return ["http:", "https:"].includes(address.protocol) ? address.href : null;
  } catch {
    return null;
  }
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const announce = (text) => { $("said").textContent = text; };

// the server

class Refusal extends Error {
  constructor(status, message, seconds) {
    super(message);
    this.status = status;
    this.seconds = seconds;
  }
}

async function request(path, body, signal) {
  const headers = { Accept: "text/event-stream, application/json" };
  const key = store.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    headers,
    body: body && JSON.stringify(body),
    signal,
    cache: "no-store",
  });
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch { /* of something between the server and here: the number has to do */ }
  throw new Refusal(response.status, message, Number(response.headers.get("Retry-After")) || 1);
}

/** Server-sent events of a response: pairs of a name and data. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.filter((line) => line.startsWith(`${name}: `))
        .map((line) => line.slice(name.length + 2)).join("\n");
      if (field("data")) yield [field("event"), JSON.parse(field("data"))];
    }
  }
}

// asking

async function ask(text) {
  asking?.abort();
  const mine = asking = new AbortController();
  const started = performance.now();
  showWaiting(text);
  try {
    for (let tries = 1; ; tries += 1) {
      try {
        await answerOnce(text, mine.signal, started);
        break;
      } catch (error) {
        if (error.status !== 429 || tries === TRIES) throw error;
        await waitForRoom(error.seconds * tries, mine.signal);
      }
    }
  } catch (error) {
    if (asking === mine) showProblem(error, text);
  } finally {
    if (asking === mine) {
      asking = null;
      $("send").textContent = "Ask";
      $("result").removeAttribute("aria-busy");
    }
  }
}

async function answerOnce(text, signal, started) {
  const response = await request("answer/stream", { question: text, ...chosen() }, signal);
  const seconds = () => (performance.now() - started) / 1000;
  if (!response.headers.get("Content-Type").startsWith("text/event-stream")) {
    showAnswer((await response.json()).answers[0], seconds());
    return;
  }
  for await (const [name, data] of events(response)) {
    if (name === "passages") showPassages(data.passages);
    if (name === "text") showPart(data.text);
    if (name === "answers") showAnswer(data.answers[0], seconds());
    if (name === "error") throw new Refusal(data.status, data.error.message, 1);
  }
  if (!shown) throw new Refusal(0, "The connection ended before the answer was complete.");
}

/** The options that were set, by the names of `generate`. */
function chosen() {
  const options = {};
  for (const field of document.querySelectorAll("#options [name]")) {
    if (field.value) options[field.name] = field.type === "number" ? Number(field.value) : field.value;
  }
  return options;
}

async function waitForRoom(seconds, signal) {
  const text = () => `Many are asking. Trying again in ${plural(seconds, "second")}.`;
  announce(text());
  problem("The server is busy", text(), false);
  $("problem").classList.add("calm");
  $("result").hidden = true;
  for (; seconds > 0; seconds -= 1) {
    $("problem-text").textContent = text();
    await new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, 1000);
      signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); });
    });
  }
  $("problem").hidden = true;
  $("result").hidden = false;
}

// states

function showWaiting(text) {
  shown = null;
  document.body.classList.add("asked");
  const address = new URL(location);
  address.search = `?${new URLSearchParams({ q: text })}`;
  address.hash = "";
  history.replaceState(null, "", address);
  document.title = `${visible(text)} · dualrag`;
  $("examples").hidden = true;
  $("problem").hidden = true;
  $("result").hidden = false;
  $("result").setAttribute("aria-busy", "true");
  $("answer-text").textContent = "";
  $("answer").replaceChildren();
  $("answer").className = "answer waiting";
  $("facts").textContent = "Searching and reading…";
  $("hint").hidden = true;
  $("passages").replaceChildren(...[1, 2, 3].map(() => {
    const ghost = element("li", "passage ghost");
    ghost.append(element("i"), element("i"), element("i"));
    ghost.setAttribute("aria-hidden", "true");
    return ghost;
  }));
  $("send").textContent = "Stop";
  announce("Searching and reading.");
}

function problem(heading, text, canRetry) {
  $("problem-heading").textContent = heading;
  $("problem-text").textContent = text;
  $("again").hidden = !canRetry;
  $("problem").classList.remove("calm");
  $("problem").hidden = false;
}

function showProblem(error, text) {
  $("result").hidden = true;
  if (error.name === "AbortError") {
    $("problem").hidden = true;
    announce("Stopped.");
    offerExamples();
    return;
  }
  const headings = {
    0: "The answer broke off",
    401: "This server asks for an API key",
    429: "The server is busy",
    503: "The server is not ready",
    504: "This took too long",
  };
  let heading = headings[error.status];
  let message = visible(error.message);
  if (!(error instanceof Refusal)) {
    heading = "The server cannot be reached";
    message = "Nothing answers at this address. Is it still running?";
  } else if (!heading) {
    heading = error.status < 500 ? "This cannot be answered" : "Something went wrong on the server";
  }
  problem(heading, message, true);
  announce(`${heading}. ${message}`);
  $("again").onclick = () => ask(text);
  if (error.status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
  }
}

function showPart(text) {
  $("answer").textContent = visible(text);
}

function showAnswer(answer, seconds) {
  shown = answer;
  const box = $("answer");
  box.classList.remove("waiting");
  box.classList.toggle("long", answer.text.length > 160);
  showTokens(answer);
  $("answer-text").textContent = visible(answer.text) || "No answer.";
  const carriers = answer.passages.filter((passage) => passage.posterior >= 0.25)
    .sort((one, other) => other.posterior - one.posterior);
  const isCalibrated = answer.confidence !== null;
  $("facts").textContent = [
    ...(isCalibrated ? [`right with a probability of ${percent(answer.confidence)}`] : []),
    `log-probability ${answer.log_probability.toFixed(2).replace("-", "\u2212")}`,
    `${plural(answer.passages.length, "passage")} weighed`,
    `${seconds.toFixed(2)} s`,
  ].map((fact) => fact.replaceAll(" ", "\u00a0")).join(" · ");
  $("hint").hidden = !answer.text;
  $("hint").classList.toggle("whole", !answer.token_posteriors);
  showPassages(answer.passages, answer);
  const from = carriers.map((passage) => `${visible(passage.title)}, ${percent(passage.posterior)}`);
  announce(`Answer: ${visible(answer.text) || "none"}.${from.length ? ` Carried by ${from.join("; ")}.` : ""}`);
}

// tokens

/** Parts of the answer that can be pointed at: what one token wrote, or those that share a letter. */
function partsOf(answer) {
  const letters = Array.from(answer.text);
  const parts = [];
  (answer.token_spans ?? []).forEach(([start, end], token) => {
    const last = parts.at(-1);
    if (last && start < last.end) {
      last.end = Math.max(last.end, end);
      last.tokens.push(token);
    } else if (end > start) {
      parts.push({ start, end, tokens: [token] });
    }
  });
  if (!parts.length && letters.length) parts.push({ start: 0, end: letters.length, tokens: [] });
  for (const part of parts) part.text = visible(letters.slice(part.start, part.end).join(""));
  return parts;
}

/** p(z|x, y) of each passage, for a part of the answer. */
function sharesOf(answer, part) {
  const rows = part.tokens.map((token) => answer.token_posteriors?.[token]).filter(Boolean);
  if (!rows.length) return answer.passages.map((passage) => passage.posterior);
  return answer.passages.map((_, place) =>
    rows.reduce((sum, row) => sum + row[place], 0) / rows.length);
}

function showTokens(answer) {
  const ends = new Map();
  for (const citation of answer.citations ?? []) {
    ends.set(citation.end, [...(ends.get(citation.end) ?? []), citation]);
  }
  const box = $("answer");
  box.replaceChildren();
  for (const part of partsOf(answer)) {
    const shares = sharesOf(answer, part);
    const words = part.text.trimStart() || part.text;
    box.append(part.text.slice(0, part.text.length - words.length));
    const token = element("button", "token", words);
    token.type = "button";
    token.tabIndex = box.querySelector(".token") ? -1 : 0;
    token.setAttribute("aria-pressed", "false");
    token.setAttribute("aria-label", `${words.trim()}: ${spoken(answer, shares)}`);
    token.addEventListener("pointerenter", () => light(token, part, shares));
    token.addEventListener("focus", () => light(token, part, shares));
    token.addEventListener("click", () => light(token, part, shares));
    box.append(token);
    for (const citation of ends.get(part.end) ?? []) {
      const link = element("a", "cite", `[${citation.passage + 1}]`);
      link.href = `#passage-${citation.passage + 1}`;
      link.setAttribute("aria-label",
        `Passage ${citation.passage + 1}, ${percent(citation.probability)} of “${visible(citation.text)}”`);
      box.append(link);
    }
  }
}

function spoken(answer, shares) {
  return shares.map((share, place) => [share, place]).filter(([share]) => share >= 0.01)
    .sort(([one], [other]) => other - one)
    .map(([share, place]) => `${visible(answer.passages[place].title)} ${percent(share)}`).join(", ");
}

function light(token, part, shares) {
  for (const other of $("answer").querySelectorAll(".token")) {
    other.classList.toggle("on", other === token);
    other.setAttribute("aria-pressed", String(other === token));
  }
  [...$("passages").children].forEach((item, place) => {
    item.style.setProperty("--light", String(shares[place]));
    item.classList.toggle("lit", shares[place] >= 0.25);
    setBar(item, "posterior", shares[place]);
    item.querySelector(".posterior dt").textContent = `For “${part.text.trim()}”`;
  });
}

function dim() {
  if (!shown) return;
  for (const token of $("answer").querySelectorAll(".token")) {
    token.classList.remove("on");
    token.setAttribute("aria-pressed", "false");
  }
  [...$("passages").children].forEach((item, place) => {
    item.style.removeProperty("--light");
    item.classList.remove("lit");
    setBar(item, "posterior", shown.passages[place].posterior);
    item.querySelector(".posterior dt").textContent = "Posterior";
  });
}

// passages

function setBar(item, name, share) {
  item.querySelector(`.${name} i`).style.width = `${(100 * share).toFixed(2)}%`;
  item.querySelector(`.${name} .value`).textContent = percent(share);
}

function showPassages(passages, answer = null) {
  const before = [...$("passages").children].filter((item) => !item.classList.contains("ghost"));
  const items = passages.map((passage, place) => {
    let item = before[place];
    if (item?.dataset.id !== String(passage.id)) item = passageItem(passage, place);
    if (passage.prior !== undefined) setBar(item, "prior", passage.prior);
    item.querySelector(".posterior").hidden = passage.posterior === undefined;
    // the bar grows from nothing once it is on the page
    if (passage.posterior !== undefined) requestAnimationFrame(() => setBar(item, "posterior", passage.posterior));
    item.classList.toggle("cited", answer?.citations?.some((citation) => citation.passage === place) ?? true);
    const carried = answer?.citations?.filter((citation) => citation.passage === place) ?? [];
    if (carried.length) {
      const carries = item.querySelector(".carries");
      carries.textContent = `carries “${carried.map((citation) => visible(citation.text)).join("”, “")}”`;
      carries.hidden = false;
      markWords(item.querySelector(".text"), passage.text, carried.map((citation) => citation.text));
    }
    return item;
  });
  $("passages").replaceChildren(...items);
  for (const item of items) offerMore(item);
}

function passageItem(passage, place) {
  const item = $("passage-template").content.firstElementChild.cloneNode(true);
  item.id = `passage-${place + 1}`;
  item.dataset.id = passage.id;
  item.querySelector(".number").textContent = `${place + 1}`;
  const title = item.querySelector(".title");
  title.textContent = visible(passage.title) || "Untitled";
  const permalink = `?${new URLSearchParams({ passage: passage.id })}`;
  const address = webAddress(passage.source);
  title.href = address ?? permalink;
  if (address) {
    title.target = "_blank";
    title.rel = "noopener noreferrer";
    title.append(element("span", "unseen", " (opens in a new tab)"));
  }
  item.querySelector(".permalink").href = permalink;
  item.querySelector(".origin").textContent = visible(passage.origin ?? passage.source ?? "");
  item.querySelector(".text").textContent = visible(passage.text);
  const more = item.querySelector(".more");
  more.setAttribute("aria-label", `Show all of passage ${place + 1}`);
  more.addEventListener("click", () => {
    const isOpen = item.classList.toggle("open");
    more.textContent = isOpen ? "Show less" : "Show all";
    more.setAttribute("aria-expanded", String(isOpen));
  });
  return item;
}

/** A button where the text is cut. */
function offerMore(item) {
  const text = item.querySelector(".text");
  if (!item.classList.contains("open")) item.querySelector(".more").hidden = text.scrollHeight <= text.clientHeight + 1;
}

/** The answer's words, marked where the passage has them. */
function markWords(box, text, words) {
  const wanted = words.map((word) => word.trim()).filter(Boolean)
    .map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  box.replaceChildren();
  if (!wanted.length) {
    box.textContent = visible(text);
    return;
  }
  const pattern = new RegExp(`(?<![\\p{L}\\p{N}])(${wanted.join("|")})(?![\\p{L}\\p{N}])`, "giu");
  text.split(pattern).forEach((piece, place) => {
    box.append(place % 2 ? element("mark", "", visible(piece)) : visible(piece));
  });
}

async function showOnePassage(id) {
  $("result").hidden = false;
  $("result").classList.add("alone");
  document.querySelector("h1").textContent = "A passage of the knowledge base";
  try {
    const passage = await (await request(`passages/${encodeURIComponent(id)}`)).json();
    const item = passageItem(passage, 0);
    item.querySelector(".number").textContent = `${passage.id}`;
    $("passages").replaceChildren(item);
    document.title = `${visible(passage.title)} · dualrag`;
  } catch (error) {
    $("result").classList.remove("alone");
    showProblem(error, "");
    $("again").onclick = () => location.reload();
  }
}

// the page

function offerExamples() {
  const examples = server.examples ?? [];
  $("examples").hidden = !examples.length;
  $("examples").querySelector("ul").replaceChildren(...examples.map((text) => {
    const item = element("li");
    const button = element("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => {
      question.value = text;
      question.focus();
      ask(text);
    });
    item.append(button);
    return item;
  }));
}

async function introduce() {
  try {
    server = await (await request("info")).json();
  } catch (error) {
    if (error.status === 401) $("key-field").hidden = false;
    if (error.status === 503) {
      $("about").textContent = "The model is being loaded…";
      setTimeout(introduce, 1000 * error.seconds);
    }
    return;
  }
  $("key-field").hidden = true;
  const heads = { sequence: "RAG-Sequence", token: "RAG-Token" };
  const parts = [
    server.model?.name,
    heads[server.model?.head],
    server.knowledge_base && plural(server.knowledge_base.passages, "passage"),
  ];
  $("about").textContent = parts.filter(Boolean).map(visible).join(" · ");
  $("credit").textContent = visible(server.knowledge_base?.credit);
  $("n-docs").placeholder = server.model?.n_docs ?? "";
  if (!asked.has("passage") && !document.body.classList.contains("asked")) offerExamples();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (key && key !== store.getItem("key")) {
    store.setItem("key", key);
    introduce();
  }
  if (asking) {
    asking.abort();
    return;
  }
  const text = question.value.trim();
  if (text) ask(text);
  else question.focus();
});

question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    asking?.abort();
    asking = null;
    form.requestSubmit();
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") asking ? asking.abort() : dim();
});

$("answer").addEventListener("pointerleave", () => {
  if (!$("answer").contains(document.activeElement)) dim();
});
$("answer").addEventListener("focusout", (event) => {
  if (!$("answer").contains(event.relatedTarget)) dim();
});

/** One stop of Tab; within, the arrow keys move, and Home and End. */
$("answer").addEventListener("keydown", (event) => {
  const tokens = [...$("answer").querySelectorAll(".token")];
  const here = tokens.indexOf(document.activeElement);
  const to = {
    ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tokens.length - 1,
  }[event.key];
  if (here < 0 || to === undefined || !tokens[to]) return;
  event.preventDefault();
  for (const token of tokens) token.tabIndex = token === tokens[to] ? 0 : -1;
  tokens[to].focus();
});

addEventListener("resize", () => {
  if (shown) for (const item of $("passages").children) offerMore(item);
});

await introduce();
if (asked.has("passage")) {
  showOnePassage(asked.get("passage"));
} else if (asked.get("q")) {
  question.value = asked.get("q");
  ask(question.value);
} else {
  question.focus({ preventScroll: true });
}
