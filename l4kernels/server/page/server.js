// What is asked of the server, and how its answers are read.

const NUMBERS = ["temperature", "top_p", "max_completion_tokens", "seed"];

/** An answer with an error status. `wait`: seconds after which to ask again, or null. */
class Refusal extends Error {
  constructor(response, body) {
    super(body?.error?.message || `The server answered with status ${response.status}.`);
    this.status = response.status;
    const seconds = parseFloat(response.headers.get("Retry-After"));
    this.wait = response.status === 429 || seconds >= 0 ? Math.min(seconds || 2, 60) : null;
  }
}

async function ask(path, options = {}) {
  const key = $("key").value.trim();
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
  });
  if (response.ok) return response;
  throw new Refusal(response, await response.json().catch(() => null));
}

/** The data of server-sent events, however the network cuts them. */
async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const lines = (rest + decoder.decode(value, { stream: !done })).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        if (line || !data.length) continue;
        yield data.join("\n");
        data = [];
      }
      if (done) return;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error; // else the network, in words of the browser's own
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The conversation up to a turn that is to be answered, in OpenAI's form. */
function messagesUntil(last) {
  const system = $("system").value.trim();
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    const images = turn.images.map((url) => ({ type: "image_url", image_url: { url } }));
    const text = turn.text ? [{ type: "text", text: turn.text }] : [];
    const content = images.length ? [...images, ...text] : turn.text;
    if (turn === last) return [...messages, { role: "user", content }];
    if (!turn.answer) continue; // a refused message would be refused again
    messages.push({ role: "user", content }, { role: "assistant", content: turn.answer });
  }
}

/** Streams an answer into the turn. Times are the browser's: they include the way to it. */
async function stream(turn, signal) {
  if ($("model").disabled) await loadModels(signal);
  const began = performance.now();
  const body = {
    model: $("model").value,
    messages: messagesUntil(turn),
    stream: true,
    stream_options: { include_usage: true },
  };
  for (const name of NUMBERS) if ($(name).value !== "") body[name] = Number($(name).value);
  const response = await ask("v1/chat/completions", {
    method: "POST",
    body: JSON.stringify(body),
    signal,
  });
  let first = 0;
  let last = 0;
  let usage = null;
  let reason = null;
  for await (const data of events(response)) {
    if (data === "[DONE]") {
      turn.note = summary(usage, reason, first - began, last - first);
      return;
    }
    const chunk = JSON.parse(data);
    const choice = chunk.choices?.[0];
    if (chunk.error) throw new Error(chunk.error.message);
    usage = chunk.usage ?? usage;
    reason = choice?.finish_reason ?? reason;
    const text = choice?.delta?.content;
    if (!text) continue;
    last = performance.now();
    first ||= last;
    turn.answer += text;
    turn.draw();
  }
  throw new Error("The connection ended before the answer did.");
}

function summary(usage, reason, wait, span) {
  const parts = reason === "length" ? ["reached the limit of tokens"] : [];
  if (usage) parts.push(`${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out`);
  const rate = (((usage?.completion_tokens ?? 0) - 1) / span) * 1000;
  if (span > 0 && rate > 0) parts.push(`${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`);
  if (usage?.completion_tokens) parts.push(`first after ${(wait / 1000).toFixed(2)} s`);
  return parts.join(" · ");
}

const sleep = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
