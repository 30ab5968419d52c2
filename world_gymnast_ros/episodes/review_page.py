"""The page of `world-gymnast episodes review`, in one piece: nothing is fetched but what review.py serves."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>Episodes</title><style>
:root{--ink:#1d2329;--quiet:#5c6670;--line:#dfe3e7;--paper:#fff;--wash:#f5f7f8;--good:#0b6e4f;--bad:#a4262c;--dim:#5c6670}
*{box-sizing:border-box}body{margin:0;background:var(--wash);color:var(--ink);
font:16px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:16px;display:grid;grid-template-columns:300px minmax(0,1fr);gap:16px}
h1{font-size:1.1rem;margin:0 0 8px}h2{font-size:1.25rem;margin:0 0 2px;line-height:1.25}
section,nav{background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:14px}
nav{max-height:calc(100vh - 32px);overflow:auto;position:sticky;top:16px}
nav ol{list-style:none;margin:0;padding:0}nav button{width:100%;text-align:left;border:0;border-left:4px solid
var(--line);background:none;padding:6px 8px;margin:2px 0;font:inherit;font-size:.9rem;cursor:pointer;color:inherit}
nav button.success{border-color:var(--good)}nav button.failure{border-color:var(--bad)}
nav button[aria-current=true]{background:var(--wash);font-weight:600}nav small{display:block;color:var(--quiet)}
.quiet{color:var(--quiet);font-size:.88rem}#screen{display:block;width:100%;max-height:54vh;object-fit:contain;
background:#000;border-radius:4px;margin:10px 0 6px;aspect-ratio:4/3}
#track{display:flex;height:10px;border-radius:3px;overflow:hidden;background:var(--line);position:relative}
#track i{position:absolute;top:0;bottom:0}#seek{width:100%;margin:4px 0}
.row{display:flex;flex-wrap:wrap;gap:8px;align-items:center}.marks{margin-top:12px}
.row button,.row select,.row input{font:inherit;padding:8px 14px;border:1px solid var(--line);border-radius:6px;
background:var(--paper);color:inherit}.row button{cursor:pointer}button:focus-visible,input:focus-visible,
select:focus-visible{outline:3px solid #4a90d9;outline-offset:1px}
#success{background:var(--good);color:#fff}#failure{background:var(--bad);color:#fff}#unknown{background:var(--dim);
color:#fff}kbd{font:inherit;font-size:.78rem;border:1px solid currentColor;border-radius:3px;padding:0 4px;opacity:.75}
#said{font-weight:600}#who{width:9em}#score{width:6em}#told{min-height:1.4em;margin:8px 0 0}#told.bad{color:var(--bad)}
#judges{margin:12px 0 0;padding:10px 12px;background:var(--wash);border-radius:6px}
#judges ul{margin:4px 0 0;padding-left:18px}
@media(max-width:760px){main{grid-template-columns:1fr;padding:8px;gap:8px}nav{position:static;max-height:26vh}
section,nav{padding:10px}#screen{max-height:none}.marks>button{flex:1 1 40%}kbd{display:none}h2{font-size:1.1rem}}
</style></head><body><main>
<nav aria-label="Episodes"><h1>Episodes <span class="quiet" id="count"></span></h1><ol id="list"></ol></nav>
<section><h2 id="words">Loading</h2><div class="quiet" id="about"></div>
<img id="screen" alt="the camera's image">
<div id="track" aria-hidden="true"></div>
<input id="seek" type="range" min="0" value="0" aria-label="place in the episode">
<div class="row"><button id="play">Play</button><button id="back">-1</button><button id="on">+1</button>
<select id="speed" aria-label="speed"><option value="0.5">half speed</option><option value="1" selected>true speed
</option><option value="2">double</option><option value="4">four times</option></select>
<span class="quiet" id="when"></span></div>
<div class="row marks"><button id="success">Success <kbd>S</kbd></button>
<button id="failure">Failure <kbd>F</kbd></button>
<button id="unknown">Nobody can say <kbd>U</kbd></button></div>
<div class="row marks"><label>who says so <input id="who" autocomplete="name"></label>
<label>part done, 0 to 1 <input id="score" type="number" min="0" max="1" step="0.05" placeholder="none"></label>
<button id="next">Next unmarked <kbd>N</kbd></button></div>
<p id="told" role="status"></p><div>Outcome: <span id="said"></span></div>
<div id="judges"></div>
<p class="quiet">Keys: space plays, arrows step, S F U mark, 0 to 9 set the part done in tenths, N goes on, J shows what
judges think. An opinion of a judge never becomes the outcome.</p>
</section></main><script>
"use strict";
const $ = id => document.getElementById(id), colours = ["#0b6e4f", "#d9a400", "#d9691e", "#a4262c"];
const names = ["sent", "cut down", "held", "stopped"];
let list = [], shown = null, at = 0, playing = false, began = 0, from = 0, reveal = false;
$("who").value = %MARKED_BY%;
try { $("who").value = $("who").value || localStorage.getItem("who") || ""; } catch (e) { /* private window */ }

async function ask(path, body) {
  const answer = await fetch(path, body === undefined ? {} : {method: "POST", body: JSON.stringify(body),
    headers: {"Content-Type": "application/json"}});
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error || answer.statusText);
  return value;
}
function tell(text, bad) { $("told").textContent = text; $("told").className = bad ? "bad" : ""; }
function outcomeWords(e) {
  const part = e.partial_score === null ? "" : ", part done " + e.partial_score.toFixed(2);
  return e.marked_by ? e.outcome + part + ", says " + e.marked_by : "not marked";
}
function drawList() {
  $("count").textContent = list.filter(e => e.marked_by).length + " of " + list.length + " marked";
  $("list").replaceChildren(...list.map(e => {
    const item = document.createElement("li"), button = document.createElement("button");
    const small = document.createElement("small");
    button.textContent = e.instruction || e.id;
    small.textContent = e.id.slice(0, 15) + ", " + e.duration_s.toFixed(0) + " s, " + outcomeWords(e);
    button.append(small); button.className = e.marked_by ? e.outcome : "";
    button.setAttribute("aria-current", shown && shown.id === e.id);
    button.onclick = () => open_(e.id); item.append(button); return item;
  }));
}
function drawSaid() {
  const seen = reveal || shown.marked_by, entry = list.find(e => e.id === shown.id);
  $("said").textContent = outcomeWords(shown) + (shown.fault ? " (" + shown.fault + ")" : "");
  $("about").textContent = [shown.id, "ended by " + entry.ended_by, shown.steps.length + " actions", shown.notes,
    seen ? "policy " + (shown.policy || "not told") + ", adapter " + (shown.adapter || "not told") : ""]
    .filter(Boolean).join(" | ");
  const box = $("judges"), title = document.createElement("b"), lines = document.createElement("ul");
  title.textContent = "Judges: ";
  if (!shown.judgements.length) { box.replaceChildren(title, "no opinion stored"); return; }
  if (!seen) {
    box.replaceChildren(title, shown.judgements.length + " opinion(s), shown once you have marked, or with J");
    return;
  }
  lines.append(...shown.judgements.map(j => {
    const line = document.createElement("li");
    line.textContent = j.judge + ": " + (j.score === null ? "no verdict (" + j.detail + ")" :
      (100 * j.score).toFixed(0) + " % sure of success") + (j.done_at === null ? "" : ", done at action " + j.done_at);
    return line;
  }));
  box.replaceChildren(title, lines);
}
function drawTrack() {
  const end = Math.max(shown.images_s.at(-1), 0.001);
  $("track").replaceChildren(...shown.steps.map((s, i) => {
    const mark = document.createElement("i"), until = i + 1 < shown.steps.length ? shown.steps[i + 1].s : s.s + 0.2;
    mark.style.left = 100 * Math.max(0, s.s) / end + "%"; mark.style.background = colours[s.verdict];
    mark.style.width = Math.max(0.2, 100 * Math.min(0.25, until - s.s) / end) + "%"; return mark;
  }));
}
const imageAt = n => "/image/" + encodeURIComponent(shown.id) + "/" + n + ".jpg";
function show(n) {
  at = Math.max(0, Math.min(shown.images_s.length - 1, n));
  $("screen").src = imageAt(at); $("seek").value = at;
  for (let k = 1; k <= 4; k++) if (at + k < shown.images_s.length) (new Image()).src = imageAt(at + k);
  const step = shown.steps.filter(s => s.s <= shown.images_s[at]).at(-1);
  $("when").textContent = shown.images_s[at].toFixed(1) + " of " + shown.images_s.at(-1).toFixed(1) + " s" +
    (step ? " | " + names[step.verdict] + ", " + step.mm.toFixed(0) + " mm, gripper " +
     (step.open > 0.5 ? "open" : "shut") + (step.reason ? " | " + step.reason : "") : "");
}
function play(yes) {
  playing = yes; $("play").textContent = yes ? "Pause" : "Play";
  if (yes && at >= shown.images_s.length - 1) show(0);
  began = performance.now(); from = shown ? shown.images_s[at] : 0;
  if (yes) requestAnimationFrame(tick);
}
function tick() {
  if (!playing || !shown) return;
  const t = from + (performance.now() - began) / 1000 * Number($("speed").value);
  if ($("screen").complete) {
    let n = at; while (n + 1 < shown.images_s.length && shown.images_s[n + 1] <= t) n++;
    if (n !== at) show(n);
  }
  if (t >= shown.images_s.at(-1)) { show(shown.images_s.length - 1); play(false); return; }
  requestAnimationFrame(tick);
}
async function open_(id) {
  try {
    play(false); reveal = false; shown = await ask("/episode/" + encodeURIComponent(id));
    $("words").textContent = list.find(e => e.id === id).instruction || id;
    $("seek").max = shown.images_s.length - 1; $("score").value = shown.partial_score ?? ""; tell("");
    drawList(); drawTrack(); drawSaid(); show(0);
  } catch (error) { tell(error.message, true); }
}
async function mark(outcome) {
  if (!shown) return;
  const who = $("who").value.trim(), score = $("score").value;
  if (!who) { tell("say who you are: the mark is kept with a name", true); $("who").focus(); return; }
  try { localStorage.setItem("who", who); } catch (e) { /* private window */ }
  try {
    const said = await ask("/mark/" + encodeURIComponent(shown.id), {outcome, marked_by: who,
      partial_score: score === "" ? null : Number(score)});
    Object.assign(shown, said); Object.assign(list.find(e => e.id === shown.id), said);
    drawList(); drawSaid(); tell("kept: " + outcomeWords(shown));
  } catch (error) { tell(error.message, true); }
}
function next() {
  const here = list.findIndex(e => shown && e.id === shown.id);
  const rest = [...list.slice(here + 1), ...list.slice(0, here + 1)].find(e => !e.marked_by);
  if (rest) open_(rest.id); else tell("every episode is marked");
}
for (const outcome of ["success", "failure", "unknown"]) $(outcome).onclick = () => mark(outcome);
$("play").onclick = () => play(!playing); $("next").onclick = next;
$("back").onclick = () => { play(false); show(at - 1); }; $("on").onclick = () => { play(false); show(at + 1); };
$("seek").oninput = () => { play(false); show(Number($("seek").value)); };
$("speed").onchange = () => { if (playing) play(true); };
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || !shown) return;
  if (event.target.tagName === "INPUT" && event.target.type !== "range") return;
  const key = event.key.toLowerCase(), deeds = {s: () => mark("success"), f: () => mark("failure"),
    u: () => mark("unknown"), n: next, j: () => { reveal = !reveal; drawSaid(); }, " ": () => play(!playing),
    arrowleft: () => $("back").click(), arrowright: () => $("on").click()};
  if (/^[0-9]$/.test(key)) { $("score").value = Number(key) / 10; event.preventDefault(); }
  else if (deeds[key]) { deeds[key](); event.preventDefault(); }
});
ask("/episodes").then(found => {
  list = found; drawList();
  const first = list.find(e => !e.marked_by) || list[0];
  if (first) open_(first.id); else { $("words").textContent = "no finished episode here"; }
}).catch(error => tell(error.message, true));
</script></body></html>
"""
