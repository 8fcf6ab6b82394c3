"use strict";
// Elements, and markdown as elements. What a model or a user wrote only ever becomes text nodes.

const $ = (id) => document.getElementById(id);

/** An element with properties and children. Strings become text, never markup: see the tests. */
function make(tag, properties = {}, children = []) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const child of children) element.append(child);
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
  try { url = new URL(address); } catch { return null; }
  if (url.protocol !== "https:" && url.protocol !== "http:") return null;
  return make("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, children);
}

/** The nodes of a paragraph's text. A marker is open at most once, so that nothing nests deeply. */
function inline(text) {
  const nodes = [], open = new Map(), special = new RegExp(SPECIAL), runs = codeRuns(text);
  const literal = (from, to) => { if (from < to) nodes.push(text.slice(from, to)); };
  const wrap = (marker, element) => {
    const at = open.get(marker);
    for (const node of nodes.splice(at + 1)) element.append(node);
    nodes[at] = element;
    for (const [other, index] of open) if (index >= at) open.delete(other);
  };
  let done = 0;
  for (let match; (match = special.exec(text)); ) {
    const [token] = match, at = match.index, end = at + token.length;
    literal(done, at);
    done = end;
    const before = text[at - 1] ?? " ", after = text[end] ?? " ";
    if (token[0] === "\\") literal(at + 1, end);
    else if (token[0] === "`") {
      const close = runs(token.length, end);
      if (close === undefined) { literal(at, end); continue; }
      nodes.push(make("code", { textContent: text.slice(end, close).replace(/^ (.+) $/, "$1") }));
      done = close + token.length;
    } else if (token[0] === "h") {
      const address = token.replace(/[.,;:!?)\]'*_]{1,20}$/, "");
      nodes.push((!open.has("[") && link(address, [address])) || address);
      done = at + address.length;
    } else if (token === "[") {
      open.set("[", nodes.push("[") - 1);
    } else if (token === "]") {
      TARGET.lastIndex = end;
      const target = open.has("[") && TARGET.exec(text), element = target && link(target[1], []);
      if (element) { wrap("[", element); done = TARGET.lastIndex; } else literal(at, end);
    } else {
      const inWord = token[0] === "_" ? /[\p{L}\p{N}]/u : /^$/;
      const closes = open.has(token) && nodes.length > open.get(token) + 1;
      if (closes && /\S/.test(before) && !inWord.test(after)) wrap(token, make(EMPHASIS[token]));
      else if (/\S/.test(after) && !inWord.test(before)) open.set(token, nodes.push(token) - 1);
      else literal(at, end);
    }
    special.lastIndex = done;
  }
  literal(done, text.length);
  return nodes;
}

/** A function that says where the next run of so many backticks begins, asked from left to right. */
function codeRuns(text) {
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

const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/, HEADING = /^ {0,3}(#{1,6}) (.*)$/, QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( +)(.*)|$)/, RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const COLUMNS = /^ *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/, DEPTH = 6;
const indentation = (line) => line.length - line.trimStart().length;
const isTable = (lines, at) => lines[at].includes("|") && at + 1 < lines.length
  && lines[at + 1].includes("|") && COLUMNS.test(lines[at + 1]);
const interrupts = (line) => FENCE.test(line) || HEADING.test(line) || QUOTE.test(line)
  || RULE.test(line) || /^ {0,3}([-*+]|1[.)]) /.test(line);

/** The blocks of lines, each with the line it begins at. */
function blocks(lines, depth = 0) {
  const found = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) { at++; continue; }
    const [node, next] = block(lines, at, depth);
    found.push({ node, at });
    at = next;
  }
  return found;
}

const nested = (tag, lines, depth) => make(tag, {}, blocks(lines, depth + 1).map(({ node }) => node));

/** The block that begins at a line, and the line after it. */
function block(lines, at, depth) {
  const line = lines[at], heading = HEADING.exec(line);
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
  while (end < lines.length && lines[end].trim() && !interrupts(lines[end]) && !isTable(lines, end)) end++;
  return [make("p", {}, inline(lines.slice(at, end).join("\n").trim())), end];
}

function fence(lines, at) {
  const [, marker, info] = FENCE.exec(lines[at]), indent = indentation(lines[at]);
  const closes = (line) => line.trimStart().startsWith(marker) && !line.trim().replaceAll(marker[0], "");
  let end = at + 1;
  while (end < lines.length && !closes(lines[end])) end++;
  const inner = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indentation(line), indent)));
  const code = make("code", { textContent: inner.join("\n") });
  const copies = button("Copy", () => copy(code.textContent, copies));
  const top = make("div", {}, [make("span", { textContent: info.trim().split(" ")[0] }), copies]);
  return [make("div", { className: "fence" }, [top, make("pre", { tabIndex: 0 }, [code])]), end + 1];
}

function list(lines, at, depth) {
  const isOrdered = (item) => /\d/.test(item[2]), first = ITEM.exec(lines[at]);
  const made = make(isOrdered(first) ? "ol" : "ul");
  if (isOrdered(first)) made.start = parseInt(first[2]);
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || isOrdered(item) !== isOrdered(first) || RULE.test(lines[at])) break;
    const [, before, marker, gap = " ", text = ""] = item;
    const inner = [text], indent = before.length + marker.length + (gap.length < 5 ? gap.length : 1);
    for (at++; at < lines.length; at++) {
      const line = lines[at], inside = indentation(line) >= 2 || !line.trim();
      if (!inside && (ITEM.test(line) || interrupts(line) || !inner.at(-1).trim())) break;
      inner.push(line.slice(Math.min(indentation(line), indent)));
    }
    made.append(nested("li", inner, depth));
  }
  return [made, at];
}

function table(lines, at) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|");
  const row = (line, tag) => make("tr", {}, cells(line).map((text) => make(tag, {}, inline(text.trim()))));
  const made = make("table", {}, [make("thead", {}, [row(lines[at], "th")])]), body = make("tbody");
  for (at += 2; at < lines.length && lines[at].includes("|"); at++) body.append(row(lines[at], "td"));
  made.append(body);
  return [make("div", { className: "scroll" }, [made]), at];
}

/** Shows a growing text: once a block has a successor, its nodes are final and not made again. */
class Rendering {
  constructor(element) { Object.assign(this, { element, final: 0, begin: 0 }); }
  show(text) {
    const lines = text.slice(this.begin).split("\n"), found = blocks(lines);
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
  try { await navigator.clipboard.writeText(text); } catch {
    const area = make("textarea", { value: text, className: "unseen" }); // without https
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  from.textContent = "Copied";
  setTimeout(() => { from.textContent = "Copy"; }, 1500);
}
