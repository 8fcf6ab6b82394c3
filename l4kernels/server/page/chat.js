// The conversation, the composer and the settings.

const RETRIES = 5;
const KEPT = ["system", ...NUMBERS];
// Larger images, or of other types, are sent as JPEG of at most so many pixels a side.
const SIDE = 2048;
const BYTES = 2 << 20;
const TYPES = ["image/png", "image/jpeg", "image/webp"];
let turns = [];
let pending = []; // images that go with the next message
let running = null; // what ends the answer that is on its way

/** A question with its answer, and their place in the page. */
class Turn {
  constructor(text, images) {
    Object.assign(this, { text, images, answer: "", note: "", error: "" });
    const bubble = text ? [make("div", { className: "text", textContent: text })] : [];
    this.editing = make("div", { className: "notes" }, [button("Edit", () => edit(this))]);
    this.body = make("div", { className: "markdown" });
    this.foot = make("div");
    this.element = make("article", { className: "turn" }, [
      make("div", { className: "question" }, [...thumbnails(images), ...bubble, this.editing]),
      make("div", { className: "answer" }, [this.body, this.foot]),
    ]);
  }

  /** Draws at most once a frame, and spends a fifth of the time on it however long the text is. */
  draw() {
    if (this.timer) return;
    this.timer = setTimeout(() => requestAnimationFrame(() => this.drawNow()), this.pause ?? 0);
  }

  drawNow() {
    const began = performance.now();
    const atEnd = isAtEnd();
    this.timer = 0;
    this.rendering.show(this.answer);
    if (atEnd) scrollToEnd();
    this.pause = 4 * (performance.now() - began);
  }

  async run() {
    if (running) return;
    const controller = (running = new AbortController());
    Object.assign(this, { answer: "", note: "", error: "", rendering: new Rendering(this.body) });
    this.body.replaceChildren();
    update();
    write();
    scrollToEnd();
    try {
      for (let tries = 0; ; tries++) {
        try {
          await stream(this, controller.signal);
          break;
        } catch (error) {
          if (error.wait == null || tries === RETRIES || this.answer) throw error;
          say(`The server is busy: next try in ${Math.ceil(error.wait)} s.`);
          await sleep(error.wait, controller.signal);
          say("");
        }
      }
    } catch (error) {
      if (controller.signal.aborted) this.note = "stopped";
      else this.error = error.message;
      if (error.status === 401) askForKey();
    }
    if (running !== controller) return; // a new chat has begun
    running = null;
    const atEnd = isAtEnd();
    this.drawNow();
    update();
    if (atEnd) scrollToEnd();
    say("");
  }
}

function thumbnails(images) {
  const shown = images.map((src, i) => make("img", { src, alt: `Attached image ${i + 1}` }));
  return images.length ? [make("div", { className: "images" }, shown)] : [];
}

/** Brings the page in line with the conversation. */
function update() {
  const last = turns.at(-1);
  for (const turn of turns) {
    const idle = turn === last && !running;
    const copies = button("Copy", () => copy(turn.answer, copies));
    const error = make("p", { className: "error", role: "alert", textContent: turn.error });
    const notes = make("div", { className: "notes" }, [make("span", { textContent: turn.note })]);
    if (turn.answer && (turn !== last || idle)) notes.append(copies);
    if (idle) notes.append(button(turn.error ? "Try again" : "Regenerate", () => turn.run()));
    turn.foot.replaceChildren(...(turn.error ? [error] : []), notes);
    turn.editing.hidden = !idle;
  }
  $("welcome").hidden = turns.length > 0;
  $("log").ariaBusy = String(Boolean(running));
  $("stop").hidden = !running;
  $("send").hidden = Boolean(running);
}

/** Fits the composer to what is in it. */
function fit() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
  $("send").disabled = !$("text").value.trim() && !pending.length;
}

const say = (text) => {
  $("hint").textContent = text;
};
/** Touch screens have keyboards without Shift+Enter, that cover half of the page. */
const isTouch = () => matchMedia("(pointer: coarse)").matches;
const write = () => isTouch() || $("text").focus();
const isAtEnd = () => $("main").scrollHeight - $("main").scrollTop - $("main").clientHeight < 60;
const scrollToEnd = () => {
  $("main").scrollTop = $("main").scrollHeight;
};

function send() {
  const text = $("text").value.trim();
  if (running || !(text || pending.length)) return;
  const turn = new Turn(text, pending);
  turns.push(turn);
  $("log").append(turn.element);
  compose("", []);
  turn.run();
}

/** Takes the last message back into the composer. */
function edit(turn) {
  turns.pop();
  turn.element.remove();
  compose(turn.text, turn.images);
  update();
  $("text").focus();
}

function compose(text, images) {
  pending = images;
  $("text").value = text;
  $("pending").replaceChildren(
    ...images.map((src, i) => {
      const remove = button("×", () =>
        compose(
          $("text").value,
          pending.filter((_, other) => other !== i),
        ),
      );
      remove.ariaLabel = `Remove image ${i + 1}`;
      return make("div", {}, [make("img", { src, alt: `Image ${i + 1} to send` }), remove]);
    }),
  );
  $("pending").hidden = !images.length;
  fit();
}

function startAnew() {
  running?.abort();
  running = null;
  turns = [];
  $("log").replaceChildren();
  compose("", []);
  update();
  say("");
  write();
}

async function attach(files) {
  say("");
  for (const file of files) {
    try {
      const url = await dataUrl(file); // meanwhile the user may go on writing
      compose($("text").value, [...pending, url]);
    } catch {
      say(`${file.name}: this browser cannot read it as an image.`);
    }
  }
}

/** An image as a data URL: as it is where a server takes it so, else as a JPEG of moderate size. */
async function dataUrl(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && file.size <= BYTES && TYPES.includes(file.type)) {
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = reject;
      reader.readAsDataURL(file);
    });
  }
  const [width, height] = [bitmap.width, bitmap.height].map((n) =>
    Math.max(1, Math.round(n * scale)),
  );
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d");
  Object.assign(context, { fillStyle: "white", imageSmoothingQuality: "high" }); // JPEG is opaque
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", 0.9);
}

async function loadModels(signal) {
  const { data } = await (await ask("v1/models", { signal })).json();
  $("model").replaceChildren(
    ...data.map(({ id }) => make("option", { value: id, textContent: id })),
  );
  $("model").disabled = !data.length;
}

async function connect() {
  try {
    await loadModels();
    say("");
  } catch (error) {
    $("model").replaceChildren(make("option", { textContent: "not connected" }));
    say(error.message);
    if (error.status === 401) askForKey();
  }
}

function askForKey() {
  $("text").blur(); // focus that a dialog gives back to a text field may come without a caret
  if (!$("panel").open) $("panel").showModal();
  $("key").focus();
}

/** Settings stay in the browser, a key only in this tab. Browsers may refuse both. */
function keep() {
  const values = Object.fromEntries(KEPT.map((name) => [name, $(name).value]));
  try {
    localStorage.setItem("l4kernels.settings", JSON.stringify(values));
    sessionStorage.setItem("l4kernels.key", $("key").value);
  } catch {
    /* then they last as long as the page */
  }
}

function restore() {
  try {
    const values = JSON.parse(localStorage.getItem("l4kernels.settings") ?? "{}");
    for (const name of KEPT) $(name).value = values[name] ?? "";
    $("key").value = sessionStorage.getItem("l4kernels.key") ?? "";
  } catch {
    /* as above */
  }
}

const on = (id, type, action) => $(id).addEventListener(type, action);
on("compose", "submit", (event) => {
  event.preventDefault();
  send();
});
on("text", "input", fit);
on("text", "keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || isTouch()) return;
  event.preventDefault();
  send();
});
on("text", "paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  attach([...event.clipboardData.files]);
});
on("attach", "click", () => $("files").click());
on("files", "change", () => {
  attach([...$("files").files]);
  $("files").value = "";
});
on("stop", "click", () => {
  running?.abort();
  write();
});
on("new", "click", startAnew);
on("settings", "click", () => $("panel").showModal());
on("panel", "click", (event) => {
  if (event.target === $("panel")) $("panel").close();
});
on("panel", "input", keep);
on("panel", "close", () => {
  if (document.activeElement === document.body) $("text").focus();
  if ($("model").disabled) connect();
});
for (const type of ["dragover", "dragleave", "drop"]) {
  addEventListener(type, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", type === "dragover");
    if (type === "drop") attach([...event.dataTransfer.files]);
  });
}
restore();
update();
fit();
connect();
