// The chat page: one conversation with a model of this server, kept in the browser until "New chat".
"use strict";

const element = (id) => document.getElementById(id);
const KEPT = "pangu-chat";
const FIELDS = ["temperature", "max-tokens", "system"];
const TOUCH = matchMedia("(hover: none) and (pointer: coarse)");

let messages = []; // {role, content, reasoning, note}
let models = []; // of the server: {id, domains, ...}
let running = null; // AbortController of the answer that is being streamed

// ---- What is kept

function stored() {
  try {
    return JSON.parse(localStorage.getItem(KEPT)) || {};
  } catch {
    return {}; // not ours, damaged, or the browser keeps nothing
  }
}

function keep() {
  const { model, domain } = chosen();
  const kept = { messages, model, domain, theme: document.documentElement.dataset.theme };
  for (const name of FIELDS) kept[name] = element(name).value;
  try {
    localStorage.setItem(KEPT, JSON.stringify(kept));
    sessionStorage.setItem(KEPT, element("api-key").value); // a key does not outlive the tab
  } catch {
    // The browser keeps nothing, or no more: the conversation goes on without.
  }
}

function load() {
  const kept = stored();
  if (Array.isArray(kept.messages)) messages = kept.messages.filter((one) => typeof one?.content === "string");
  for (const name of FIELDS) if (kept[name] !== undefined) element(name).value = kept[name];
  try {
    element("api-key").value = sessionStorage.getItem(KEPT) || "";
  } catch {
    // see keep
  }
  if (kept.theme) document.documentElement.dataset.theme = kept.theme;
  messages.forEach(show);
  update();
}

// ---- The server

function headers() {
  const key = element("api-key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers() });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(`The server cannot be reached (${error.message}).`);
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  const hint = response.status === 401 ? " The key goes into Settings." : "";
  throw new Error((said?.error?.message || `The server answered ${response.status} ${response.statusText}.`) + hint);
}

async function listModels() {
  models = (await (await ask("v1/models")).json()).data;
  fill("model", models.map((model) => model.id), stored().model);
  listDomains();
}

async function connect() {
  try {
    await listModels();
    say("");
  } catch (error) {
    say(error.message);
  }
}

function listDomains() {
  const domains = models.find((model) => model.id === element("model").value)?.domains || [];
  element("domain-label").hidden = !domains.length;
  fill("domain", domains, stored().domain);
}

function fill(id, names, wanted) {
  element(id).replaceChildren(...names.map((name) => new Option(name, name, false, name === wanted)));
}

function chosen() {
  const kept = models.length ? {} : stored(); // nothing to choose from yet
  return { model: element("model").value || kept.model, domain: element("domain").value || kept.domain };
}

function request() {
  const system = element("system").value.trim();
  const sent = messages.filter((message) => message.content).map(({ role, content }) => ({ role, content }));
  const { model, domain } = chosen();
  const number = (id) => (element(id).value === "" ? undefined : Number(element(id).value)); // the server's default
  return {
    model,
    domain: domain || undefined,
    messages: system ? [{ role: "system", content: system }, ...sent] : sent,
    temperature: number("temperature"),
    max_tokens: number("max-tokens"),
    stream: true,
  };
}

// The objects of a stream of server-sent events.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection ended before the answer did.");
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// ---- The conversation

// Show a message as an article; returns a function that shows its newest state. Texts are never HTML.
function show(message) {
  const article = document.createElement("article");
  article.className = message.role;
  article.setAttribute("aria-label", message.role === "user" ? "You" : "Model");
  const add = (parent, name, text = "") => {
    const child = document.createElement(name);
    child.textContent = text;
    parent.append(child);
    return child;
  };
  const thoughts = add(article, "details");
  add(thoughts, "summary", "Thoughts");
  const thought = add(thoughts, "div");
  const content = add(article, "div");
  content.className = "content";
  content.dir = "auto";
  const footer = add(article, "footer");
  const copy = add(footer, "button", "Copy");
  copy.type = "button";
  copy.addEventListener("click", () => copyText(message.content, content, copy));
  const note = add(footer, "span");
  const box = element("messages");
  const refresh = () => {
    const follow = box.scrollHeight - box.scrollTop - box.clientHeight < 80; // whoever has scrolled up stays there
    content.textContent = message.content;
    thought.textContent = message.reasoning || "";
    thoughts.hidden = !message.reasoning;
    note.textContent = message.note || "";
    article.classList.toggle("streaming", running !== null && message.role === "assistant" && message === messages.at(-1));
    if (follow) box.scrollTop = box.scrollHeight;
  };
  box.append(article);
  refresh();
  box.scrollTop = box.scrollHeight;
  return refresh;
}

// At most once a frame.
function throttled(refresh) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => {
      waits = false;
      refresh();
    });
  };
}

async function answer(replaced = null) {
  running = new AbortController();
  say("");
  const message = { role: "assistant", content: "", reasoning: "", note: "" };
  messages.push(message);
  const refresh = show(message);
  const soon = throttled(refresh);
  element("status").textContent = "The model is answering.";
  update();
  let failure = "";
  try {
    if (!models.length) await listModels(); // the server was away, or there was no key
    const body = JSON.stringify(request());
    const response = await ask("v1/chat/completions", { method: "POST", body, signal: running.signal });
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices?.[0];
      message.content += choice?.delta?.content || "";
      message.reasoning += choice?.delta?.reasoning_content || "";
      if (choice?.finish_reason === "length") message.note = "cut off: no more tokens";
      soon();
    }
  } catch (error) {
    if (error.name === "AbortError") message.note = "stopped";
    else failure = error.message;
  }
  running = null;
  const empty = !message.content && !message.reasoning;
  if (failure) message.note = "broken off";
  else if (empty && !message.note) message.note = "no answer";
  refresh();
  if (empty && (failure || message.note === "stopped")) takeBack(replaced);
  element("status").textContent = failure ? "" : message.content || message.note;
  say(failure);
  update();
}

function removeLast() {
  element("messages").lastElementChild.remove();
  return messages.pop();
}

// Nothing was answered: an earlier answer comes back; a new question goes back to where it was written.
function takeBack(replaced) {
  removeLast();
  if (replaced) {
    messages.push(replaced);
    show(replaced);
  } else if (!element("text").value) {
    element("text").value = removeLast().content;
  }
}

function send() {
  const text = element("text").value;
  if (running || !text.trim()) return;
  element("text").value = "";
  const message = { role: "user", content: text };
  messages.push(message);
  show(message);
  answer();
}

function retry() {
  if (running) return;
  const replaced = messages.at(-1)?.role === "assistant" ? removeLast() : null;
  if (messages.length) answer(replaced);
}

function stop() {
  running?.abort();
}

function newChat() {
  if (messages.length && !confirm("Delete this conversation?")) return;
  messages = [];
  element("messages").replaceChildren();
  say("");
  update();
  element("text").focus();
}

// ---- The page

function say(error) {
  element("error").textContent = error;
  element("error").hidden = !error;
}

function update() {
  const held = document.activeElement;
  element("send").hidden = running !== null;
  element("stop").hidden = running === null;
  element("retry").disabled = running !== null || !messages.length;
  element("new-chat").disabled = running !== null;
  // What is hidden or disabled loses the focus: it goes to what takes its place. (Not to the field of a touch screen,
  // which would bring up the keyboard.)
  if (held?.hidden || held?.disabled) element(running ? "stop" : TOUCH.matches ? "send" : "text").focus();
  keep();
}

async function copyText(text, content, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Over plain HTTP, from another machine, there is only the old way.
    getSelection().selectAllChildren(content);
    done = document.execCommand("copy");
  }
  button.textContent = done ? "Copied" : "Selected";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  keep();
}

// An input method's Enter chooses a word, and its Escape leaves it; some browsers say so by the code 229 alone.
const composing = (event) => event.isComposing || event.keyCode === 229;

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
element("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || composing(event) || TOUCH.matches) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !composing(event)) stop();
});
element("stop").addEventListener("click", stop);
element("retry").addEventListener("click", retry);
element("new-chat").addEventListener("click", newChat);
element("theme").addEventListener("click", switchTheme);
element("api-key").addEventListener("change", () => {
  keep();
  connect();
});
element("model").addEventListener("change", () => {
  listDomains();
  keep();
});
for (const name of [...FIELDS, "domain"]) element(name).addEventListener("change", keep);
addEventListener("pagehide", keep); // also in the middle of an answer

load();
connect();
