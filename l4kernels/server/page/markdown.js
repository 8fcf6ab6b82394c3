"use strict";
// Elements, and markdown as elements. What a model or a user wrote only ever becomes text nodes.

const $ = (id) => document.getElementById(id);

/** An element with properties and children. Strings become text, never markup: see the tests. */
function make(tag, properties = {}, children = []) {
  return fill(Object.assign(document.createElement(tag), properties), children);
}

/** Adds children, neighbouring strings as one text. */
function fill(element, children) {
  let text = "";
  for (const child of children) {
    if (typeof child === "string") {
      text += child;
      continue;
    }
    if (text) element.append(text);
    element.append(child);
    text = "";
  }
  if (text) element.append(text);
  return element;
}

function button(label, onclick) {
  const made = make("button", { type: "button", textContent: label });
  made.addEventListener("click", onclick);
  return made;
}

// Markdown, in time linear in the text: a scan consumes what it looks at.

const SPECIAL = /\\[!-\/:-@[-`{-~]|`+|\*\*|__|~~|[*_[]|\](?=\()|https?:\/\/[^\s<>"`]+/g;
const TARGET = /\(<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?:\s+"[^"\n]{0,200}")?\)/y;
const EMPHASIS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };

function link(address, children) {
  let url = null;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (url.protocol !== "https:" && url.protocol !== "http:") return null;
  return make("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, children);
}

/** A paragraph's text on its way to nodes. A marker is open at most once: nothing nests deeply. */
class Inline {
  constructor(text) {
    this.text = text;
    this.nodes = [];
    this.open = new Map(); // markers without an end so far, and where they are in nodes
    this.nextTicks = ticksByLength(text);
  }

  parse() {
    const special = new RegExp(SPECIAL);
    let done = 0;
    for (let match = special.exec(this.text); match; match = special.exec(this.text)) {
      this.keep(done, match.index);
      done = this.take(match[0], match.index, special.lastIndex);
      special.lastIndex = done;
    }
    this.keep(done, this.text.length);
    return this.nodes;
  }

  /** Takes what is special from begin to end, and says where the text goes on. */
  take(token, begin, end) {
    if (token[0] === "\\") return this.keep(begin + 1, end);
    if (token[0] === "`") return this.takeCode(token, begin, end);
    if (token[0] === "h") return this.takeAddress(token, begin);
    if (token === "[") return this.begin(token, end);
    if (token === "]") return this.takeLink(begin, end);
    return this.takeEmphasis(token, begin, end);
  }

  keep(begin, end) {
    if (begin < end) this.nodes.push(this.text.slice(begin, end));
    return end;
  }

  begin(marker, end) {
    this.open.set(marker, this.nodes.push(marker) - 1);
    return end;
  }

  /** Puts what came after the open marker into an element, in the marker's place. */
  wrap(marker, element) {
    const place = this.open.get(marker);
    this.nodes[place] = fill(element, this.nodes.splice(place + 1));
    for (const [other, index] of this.open) if (index >= place) this.open.delete(other);
  }

  takeCode(ticks, begin, end) {
    const close = this.nextTicks(ticks.length, end);
    if (close === undefined) return this.keep(begin, end);
    const textContent = this.text.slice(end, close).replace(/^ (.+) $/, "$1");
    this.nodes.push(make("code", { textContent }));
    return close + ticks.length;
  }

  takeAddress(token, begin) {
    const address = token.replace(/[.,;:!?)\]'*_]{1,20}$/, "");
    const isInLink = this.open.has("[");
    this.nodes.push((!isInLink && link(address, [address])) || address);
    return begin + address.length;
  }

  takeLink(begin, end) {
    TARGET.lastIndex = end;
    const target = this.open.has("[") && TARGET.exec(this.text);
    const element = target && link(target[1], []);
    if (!element) return this.keep(begin, end);
    this.wrap("[", element);
    return TARGET.lastIndex;
  }

  takeEmphasis(marker, begin, end) {
    const before = this.text[begin - 1] ?? " ";
    const after = this.text[end] ?? " ";
    const joins = marker[0] === "_" ? /[\p{L}\p{N}]/u : /^$/; // snake_case is no emphasis
    const isEmpty = this.open.get(marker) === this.nodes.length - 1;
    if (this.open.has(marker) && !isEmpty && /\S/.test(before) && !joins.test(after)) {
      this.wrap(marker, make(EMPHASIS[marker]));
      return end;
    }
    return /\S/.test(after) && !joins.test(before)
      ? this.begin(marker, end)
      : this.keep(begin, end);
  }
}

const inline = (text) => new Inline(text).parse();

/** A function that finds the next run of so many backticks; it is asked from left to right. */
function ticksByLength(text) {
  const places = new Map();
  for (const { 0: run, index } of [...text.matchAll(/`+/g)].reverse()) {
    if (!places.has(run.length)) places.set(run.length, []);
    places.get(run.length).push(index);
  }
  return (length, from) => {
    const found = places.get(length) ?? [];
    while (found.at(-1) < from) found.pop();
    return found.at(-1);
  };
}

const DEPTH = 6; // of lists and quotes in each other
const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6}) (.*)$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( +)(.*)|$)/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const COLUMNS = /^ *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;

const indentation = (line) => line.length - line.trimStart().length;
const isTable = (lines, at) =>
  lines[at].includes("|") &&
  at + 1 < lines.length &&
  lines[at + 1].includes("|") &&
  COLUMNS.test(lines[at + 1]);
const interrupts = (line) =>
  FENCE.test(line) ||
  HEADING.test(line) ||
  QUOTE.test(line) ||
  RULE.test(line) ||
  /^ {0,3}([-*+]|1[.)]) /.test(line);

/** The blocks of lines, each with the line it begins at. */
function blocks(lines, depth = 0) {
  const found = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const [node, next] = block(lines, at, depth);
    found.push({ node, at });
    at = next;
  }
  return found;
}

const nested = (tag, lines, depth) =>
  make(
    tag,
    {},
    blocks(lines, depth + 1).map(({ node }) => node),
  );

/** The block that begins at a line, and the line after it. */
function block(lines, at, depth) {
  const line = lines[at];
  const heading = HEADING.exec(line);
  if (FENCE.test(line)) return fence(lines, at);
  if (heading) {
    const level = Math.min(heading[1].length + 2, 6); // h1 and h2 are the page's
    return [make(`h${level}`, {}, inline(heading[2].replace(/ #+$/, ""))), at + 1];
  }
  if (RULE.test(line)) return [make("hr"), at + 1];
  if (ITEM.test(line) && depth < DEPTH) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  let end = at + 1;
  if (QUOTE.test(line) && depth < DEPTH) {
    while (end < lines.length && QUOTE.test(lines[end])) end++;
    const inner = lines.slice(at, end).map((quoted) => quoted.replace(QUOTE, ""));
    return [nested("blockquote", inner, depth), end];
  }
  while (end < lines.length && lines[end].trim() && !interrupts(lines[end]) && !isTable(lines, end))
    end++;
  return [make("p", {}, inline(lines.slice(at, end).join("\n").trim())), end];
}

function fence(lines, at) {
  const [, marker, info] = FENCE.exec(lines[at]);
  const indent = indentation(lines[at]);
  const closes = (line) =>
    line.trimStart().startsWith(marker) && !line.trim().replaceAll(marker[0], "");
  let end = at + 1;
  while (end < lines.length && !closes(lines[end])) end++;
  const inner = lines
    .slice(at + 1, end)
    .map((line) => line.slice(Math.min(indentation(line), indent)));
  const code = make("code", { textContent: inner.join("\n") });
  const copies = button("Copy", () => copy(code.textContent, copies));
  const top = make("div", {}, [make("span", { textContent: info.trim().split(" ")[0] }), copies]);
  return [
    make("div", { className: "fence" }, [top, make("pre", { tabIndex: 0 }, [code])]),
    end + 1,
  ];
}

function list(lines, at, depth) {
  const isOrdered = (item) => /\d/.test(item[2]);
  const first = ITEM.exec(lines[at]);
  const made = make(isOrdered(first) ? "ol" : "ul");
  if (isOrdered(first)) made.start = parseInt(first[2]);
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || isOrdered(item) !== isOrdered(first) || RULE.test(lines[at])) break;
    const [, before, marker, gap = " ", text = ""] = item;
    const inner = [text];
    const indent = before.length + marker.length + (gap.length < 5 ? gap.length : 1);
    for (at++; at < lines.length; at++) {
      const line = lines[at];
      const inside = indentation(line) >= 2 || !line.trim();
      if (!inside && (ITEM.test(line) || interrupts(line) || !inner.at(-1).trim())) break;
      inner.push(line.slice(Math.min(indentation(line), indent)));
    }
    made.append(nested("li", inner, depth));
  }
  return [made, at];
}

function table(lines, at) {
  const cells = (line) =>
    line
      .trim()
      .replace(/^\||\|$/g, "")
      .split("|");
  const row = (line, tag) =>
    make(
      "tr",
      {},
      cells(line).map((text) => make(tag, {}, inline(text.trim()))),
    );
  const head = make("thead", {}, [row(lines[at], "th")]);
  const body = make("tbody");
  for (at += 2; at < lines.length && lines[at].includes("|"); at++)
    body.append(row(lines[at], "td"));
  const made = make("table", {}, [head, body]);
  return [make("div", { className: "scroll" }, [made]), at];
}

/** Shows a growing text: once a block has a successor, its nodes are final and not made again. */
class Rendering {
  constructor(element) {
    this.element = element;
    this.final = 0; // nodes
    this.begin = 0; // of the text without those nodes
  }

  show(text) {
    const lines = text.slice(this.begin).split("\n");
    const found = blocks(lines);
    while (this.element.childNodes.length > this.final) this.element.lastChild.remove();
    for (const { node } of found) this.element.append(node);
    let last = found.length - 1;
    while (last > 0 && found[last].at >= lines.length - 1) last--; // an unfinished line may change
    if (last <= 0) return;
    this.final += last;
    this.begin += lines.slice(0, found[last].at).join("\n").length + 1;
  }
}

async function copy(text, from) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { value: text, className: "unseen" }); // without https
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  from.textContent = "Copied";
  setTimeout(() => {
    from.textContent = "Copy";
  }, 1500);
}
